"""The exceptions that users are meant to read."""


class PdlabError(Exception):
    """Something the user can put right: its message is one line that says what is wrong and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class Damaged(PdlabError):
    """A file whose content is proved to be another than was written; it may be set aside, never removed."""

    def __init__(self, what: object, why: str) -> None:
        super().__init__(f"{what} is damaged ({why}): make it again, or take a copy of it")


def reason(error: BaseException) -> str:
    """Why `error` came, in one line without a path: the system's own words where there are some."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
