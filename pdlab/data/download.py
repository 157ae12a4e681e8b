"""Fetching a file that is known by its checksum, and unpacking an archive whose content is known by name."""

import contextlib
import gzip
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from pdlab import console
from pdlab.errors import PdlabError, reason
from pdlab.files import alone, atomic_folder, digest_of, open_regular, scratch, settle, tidy

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
RETRIES = 3  # after 1, 2 and 3 seconds


def download(url: str, dest: Path, *, sha256: str, most: int = 1 << 30) -> Path:
    """Fetch `url` to `dest`, once: a file that lies there with the right SHA-256 is left as it is.

    The bytes take this name only when they are all there and right; what breaks off, or is another file, is tried
    again. Never are more than `most` bytes taken, which had better be the file's own number. Returns `dest`.

    Raises:
        PdlabError: no connection, an HTTP error, a transfer that broke off, a wrong checksum, a full disk, another
            process that fetches the same file.
    """
    if dest.is_file() and digest_of(dest) == sha256.lower():
        tidy(dest)
        return dest
    try:
        with (
            alone(dest, f"another pdlab fetches {dest}: wait until it is there, then run again"),
            scratch(dest.parent) as folder,
        ):
            settle(_fetched(url, folder / dest.name, sha256.lower(), most, dest), dest)
    except OSError as error:
        raise PdlabError(f"cannot write {dest}: {reason(error)}; put that right and run again") from error
    return dest


def _fetched(url: str, part: Path, sha256: str, most: int, dest: Path) -> Path:
    """The file `part`, which pooch fetches, checks and, after a failure, fetches again."""
    import pooch  # both slow to import, and only needed here
    import requests

    pooch.get_logger().setLevel("ERROR")  # it would announce every file
    by_hand = f"or fetch it by other means and put it at {dest}"
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    known = pooch.create(
        part.parent, "", registry={part.name: sha256}, urls={part.name: url}, retry_if_failed=RETRIES
    )
    with Progress(*columns, console=console.errors(), transient=True) as progress:
        task = progress.add_task(part.name, total=most)

        def fetch(url: str, path: str, known: Any) -> None:
            progress.reset(task)
            with open(path, "wb") as file:
                bounded = _Bounded(file, most, lambda n: progress.advance(task, n))
                pooch.HTTPDownloader(chunk_size=CHUNK, timeout=TIMEOUT)(url, bounded, known)

        try:
            return Path(known.fetch(part.name, downloader=fetch))
        except _TooLong:
            raise PdlabError(f"{url} has more than {most:,} bytes: it is another file, {by_hand}") from None
        except requests.HTTPError as error:
            answer = str(error).partition(" for url")[0]
            raise PdlabError(f"{url} answered {answer}: try later, {by_hand}") from error
        except requests.RequestException as error:
            raise PdlabError(f"cannot fetch {url} ({_line(error)}): check the connection, {by_hand}") from error
        except ValueError as error:  # pooch's, of another checksum
            raise PdlabError(
                f"{url} did not have the expected sha256 and was deleted: run again, and if it happens again the "
                "source has changed or something on the way alters it"
            ) from error


class _TooLong(Exception):
    """More bytes come than the file has."""


class _Bounded:
    """A file that takes up to `most` bytes, and tells how many it took."""

    def __init__(self, file: IO[bytes], most: int, took: Callable[[int], None]) -> None:
        self._file, self._left, self._took = file, most, took

    def write(self, content: bytes) -> None:
        self._left -= len(content)
        if self._left < 0:
            raise _TooLong
        self._file.write(content)
        self._took(len(content))

    def flush(self) -> None:
        self._file.flush()


def _line(reason: object) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__


def extract(archive: Path, folder: Path, members: Mapping[str, int]) -> None:
    """Unpack a tar archive into `folder`, which appears whole or not at all.

    `members` gives the files that it must hold, by their name below `folder.name` in the archive, and the
    size in bytes that each may have at most. Anything else than these regular files and the folder itself
    (a link, a device, an absolute path, "..", one file more) refuses the archive. Only bytes are taken from
    it, written under the names of `members`: no path, link, owner or mode of the archive reaches the disk.

    Raises:
        PdlabError: a damaged or unexpected archive, or a place that cannot be written to.
    """
    with (
        contextlib.suppress(_There),
        atomic_folder(folder, "unpack it elsewhere and give that folder with --data") as inside,
    ):
        _unpack(archive, inside, folder.name, members)
        if folder.is_dir():  # another process was faster: its files are the same
            raise _There


class _There(Exception):
    """The folder to be made is there already."""


def _unpack(archive: Path, inside: Path, called: str, members: Mapping[str, int]) -> None:
    missing = dict(members)
    try:
        with open_regular(archive) as content, tarfile.open(fileobj=content) as tar:
            for member in tar:
                if member.isdir() and member.name.rstrip("/") == called:
                    continue
                folder, _, name = member.name.partition("/")
                if not member.isreg() or folder != called or name not in missing:
                    raise PdlabError(f"{archive} holds {member.name!r}, which does not belong there: not unpacked")
                if member.size > missing.pop(name):
                    raise PdlabError(f"{archive}: {member.name} is far too large: not unpacked")
                source = tar.extractfile(member)
                assert source is not None  # a regular file always has content
                with (inside / name).open("wb") as target:
                    shutil.copyfileobj(source, target, CHUNK)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, MemoryError) as error:
        raise PdlabError(f"{archive} is damaged ({_line(error)}): delete it and fetch it again") from error
    if missing:
        raise PdlabError(f"{archive} lacks {', '.join(missing)}: delete it and fetch it again")
