"""The exceptions that users are meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager


class PdlabError(Exception):
    """Something the user can put right: its message is one line that says what is wrong and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class Damaged(PdlabError):
    """A file whose content is proved to be another than was written; it may be set aside, never removed."""

    def __init__(self, what: object, why: str) -> None:
        super().__init__(f"{what} is damaged ({why}): make it again, or take a copy of it")


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around the imports of what the extra `name` brings: without it, PdlabError says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "pdlab":
            raise
        raise PdlabError(f"{what} needs {error.name}: pip install 'pdlab[{name}]'") from error


def reason(error: BaseException) -> str:
    """Why `error` came, in one line without a path: the system's own words where there are some."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
