"""How pdlab writes files: beside, then renamed, so that nothing is ever half-written."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pdlab.errors import PdlabError


@contextmanager
def atomic_file(path: Path, remedy: str = "choose another place") -> Iterator[IO[bytes]]:
    """A file to write `path` through: it takes its name when the block ends well, else it vanishes.

    Raises PdlabError, which ends in `remedy`, when the folder cannot be written to or the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            temporary = Path(file.name)
            yield file.file
            file.flush()
            os.fsync(file.fileno())
        open_up(temporary)
        temporary.replace(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PdlabError(f"cannot write {path}: {reason}; free some space there, or {remedy}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def open_up(file: Path) -> None:
    """Give a file that was made private, as temporary files and safetensors' are, the mode of any new file."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)
