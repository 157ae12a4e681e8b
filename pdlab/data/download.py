"""Fetching a file that is known by its checksum, and unpacking an archive whose content is known by name."""

import contextlib
import gzip
import http.client
import os
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from pdlab import __version__, console
from pdlab.errors import PdlabError, reason
from pdlab.files import alone, atomic_folder, digest_of, open_regular, unlock

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte


def download(
    url: str, dest: Path, *, sha256: str | None = None, md5: str | None = None, most: int = 1 << 30
) -> Path:
    """Fetch `url` to `dest`, once: a file that lies there with the right checksum is left as it is.

    The bytes arrive in `dest` + ".part", which a later call continues; it takes its name only when the one
    checksum that was given, `sha256` or else `md5`, is right. Never are more than `most` bytes taken. Returns
    `dest`.

    Raises:
        PdlabError: no connection, an HTTP error, a transfer that broke off, a wrong checksum, a full disk, another
            process that fetches the same file.
    """
    algorithm, expected = ("sha256", sha256) if sha256 else ("md5", md5)
    if not expected:
        raise ValueError("download needs a checksum: sha256 or md5")
    if dest.is_file() and digest_of(dest, algorithm) == expected.lower():
        unlock(dest)
        return dest
    part = dest.with_name(dest.name + ".part")
    try:
        with alone(dest, f"another pdlab fetches {dest}: wait until it is there, then run again"):
            _complete(url, part, dest, algorithm, expected.lower(), most)
    except OSError as error:
        raise PdlabError(
            f"cannot write {part}: {reason(error)}; put that right and run again, what has arrived is kept"
        ) from error
    return dest


def _complete(url: str, part: Path, dest: Path, algorithm: str, expected: str, most: int) -> None:
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(part, flags, 0o666), "ab") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PdlabError(f"{part} is not a file: move it away and run again")
            _fetch(url, file, dest, most)
            file.flush()
            os.fsync(file.fileno())
    finally:
        if part.is_file() and part.stat().st_size == 0:
            part.unlink()
    if not part.is_file() or digest_of(part, algorithm) != expected:
        part.unlink(missing_ok=True)
        raise PdlabError(
            f"{url} did not have the expected {algorithm} and was deleted: run again, and if it happens "
            "again the source has changed or something on the way alters it"
        )
    part.replace(dest)


def _fetch(url: str, file: IO[bytes], dest: Path, most: int) -> None:
    """Append to `file` what it lacks of `url`, or write it anew where the server cannot continue."""
    try:
        response = _open(url, file.tell())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or file.tell() == 0:
            raise PdlabError(f"{url} answered {error.code} {error.reason}: try later, {_by_hand(dest)}") from error
        if error.headers.get("Content-Range", "").strip() == f"bytes */{file.tell()}":
            return  # all of it had arrived already
        _restart(file)  # what lies there is longer than the file itself: not a part of it
        return _fetch(url, file, dest, most)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise PdlabError(f"cannot reach {url} ({_line(reason)}): check the connection, {_by_hand(dest)}") from error

    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            _restart(file)  # the server sends all of it, asked for a range or not
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
            raise PdlabError(f"{url} sent another range than was asked for: delete {file.name} and run again")
        length = response.headers.get("Content-Length", "")
        total = file.tell() + int(length) if length.isdecimal() and len(length) < 19 else None
        if total is not None and total > most:
            raise _too_long(url, f"{total:,}", most, dest)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console.errors(), transient=True) as progress:
            task = progress.add_task(dest.name, total=total, completed=file.tell())
            while chunk := _read(response, url):
                if file.tell() + len(chunk) > most:
                    _restart(file)
                    raise _too_long(url, "more", most, dest)
                file.write(chunk)
                progress.update(task, advance=len(chunk))
        if total is not None and file.tell() < total:
            raise _broken_off(url, f"{file.tell():,} of {total:,} bytes")


def _restart(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


def _open(url: str, start: int) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": f"pdlab/{__version__}"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _read(response: http.client.HTTPResponse, url: str) -> bytes:
    """The bytes that have come since the last call (read1 hands over what arrived before a connection breaks)."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _broken_off(url, _line(error)) from error


def _broken_off(url: str, reason: str) -> PdlabError:
    return PdlabError(f"the transfer of {url} broke off ({reason}): run again, it continues from there")


def _too_long(url: str, size: str, most: int, dest: Path) -> PdlabError:
    return PdlabError(f"{url} has {size} bytes instead of at most {most:,}: it is another file, {_by_hand(dest)}")


def _by_hand(dest: Path) -> str:
    return f"or fetch it by other means and put it at {dest}"


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
