"""The one way pdlab touches files: regular ones only, up to a size, written beside their place and renamed.

What is being written bears a name that no user gives, and is locked by its writer. After a kill the lock is gone:
whoever writes to the same folder next sweeps it up, and nothing else.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import filelock

from pdlab.errors import PdlabError, reason

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems: nothing is swept there
_TEMPORARY = re.compile(r"\.pdlab-tmp-[0-9a-f]{16}")
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def place(text: str | Path, what: str) -> Path:
    """`text` as a path, its ~ expanded; PdlabError, naming `what` gave it, where that is nobody's home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise PdlabError(f"{what}={text}: there is no such home folder; give the whole path") from None


def open_regular(path: Path) -> IO[bytes]:
    """`path` opened to read, at once: PdlabError for a folder, pipe, socket or device. OSError as `open` has it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # what opening a socket gives
            raise PdlabError(f"{path} is not a file but a socket") from None
        raise
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise PdlabError(f"{path} is not a file but {_kind(mode)}")


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "something else")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of up to `most` bytes; PdlabError if it has more."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most:
            content = file.read(most + 1)  # it may be growing
            if len(content) <= most:
                return content
            size = len(content)
    raise PdlabError(f"{path} has {size:,} bytes, more than the {most:,} that belong there")


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a regular file."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_place(path: Path, remedy: str) -> None:
    """Raise PdlabError, before any work, where the file `path` could not be written in the end."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _check_parent(path)
        _check_replaceable(path)
    except OSError as error:
        raise PdlabError(f"cannot write {path}: {reason(error)}; {remedy}") from None


def check_new_folder(path: Path, remedy: str) -> None:
    """The same for a folder that `atomic_folder` will make: nothing may stand there."""
    try:
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        _check_parent(path)
    except (OSError, ValueError) as error:
        raise PdlabError(f"cannot write {path}: {reason(error)}; {remedy}") from None


def _check_parent(path: Path) -> None:
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def atomic_file(path: Path, remedy: str = "choose another place") -> Iterator[IO[bytes]]:
    """A file to write `path` through: it takes its name when the block ends well, else it vanishes.

    Raises PdlabError, which ends in `remedy`, when the folder cannot be written to or the disk is full.
    """
    try:
        with _temporary(path.parent, _make_file) as temporary:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _check_replaceable(path)
            temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error, remedy) from error


def _check_replaceable(path: Path) -> None:
    """Raise OSError where `path` is a pipe, socket or device: a file that took its name would be its end.

    A rename would succeed: root could lose /dev/null to it. A link is replaced, not what it leads to.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise OSError(errno.EEXIST, f"it is not a file but {_kind(mode)}")


@contextmanager
def atomic_folder(path: Path, remedy: str = "choose another place") -> Iterator[Path]:
    """The same for a whole folder, which must not be there yet."""
    try:
        with _temporary(path.parent, os.mkdir) as temporary:
            yield temporary
            for file in temporary.rglob("*"):
                _open_up(file)
                _flush(file)
            _flush(temporary)
            temporary.rename(path)
            _flush(path.parent)
    except OSError as error:
        raise _cannot_write(path, error, remedy) from error


@contextmanager
def replaced_folder(path: Path, check: Callable[[], None], remedy: str = "choose another place") -> Iterator[Path]:
    """A new folder that becomes `path` when the block ends well; what was there before goes only then.

    `check` raises, at the end once more, where `path` is not to be replaced.
    """
    with atomic_folder(path, remedy) as temporary:
        yield temporary
        check()  # the block may have taken hours
        if path.exists():
            discard(_old(path))
            path.rename(_old(path))
    discard(_old(path))


def restore(path: Path) -> None:
    """Put back what a kill left between the two renames of `replaced_folder`."""
    if _old(path).is_dir() and not path.exists():
        _old(path).rename(path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in `folder` for what others write; it goes when the block ends, or, after a kill, by a sweep."""
    with _temporary(folder, os.mkdir) as temporary:
        yield temporary


def settle(made: Path, path: Path) -> None:
    """Give the file `made`, complete and on the same disk, the name `path` and the mode of anything new."""
    _open_up(made)
    _flush(made)
    made.replace(path)


@contextmanager
def alone(path: Path, busy: str, remedy: str = "choose another place") -> Iterator[None]:
    """No other process makes `path` meanwhile; PdlabError, saying `busy`, where one does."""
    lock = _lock_of(path)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(lock).acquire(timeout=0)
    except filelock.Timeout:
        raise PdlabError(busy) from None
    except OSError as error:
        raise _cannot_write(path, error, remedy) from error
    with held:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def tidy(path: Path) -> None:
    """Remove what a process has left that was killed when `path` was made, but not all else put away."""
    sweep(path.parent)
    if _lock_of(path).is_file():
        with contextlib.suppress(PdlabError, OSError), alone(path, "it is not left but held"):
            pass


def write(path: Path, content: bytes, remedy: str = "choose another place") -> None:
    """`content` as the file `path`, whole or not at all; PdlabError as `atomic_file`."""
    with atomic_file(path, remedy) as file:
        file.write(content)


def discard(path: Path) -> None:
    """Remove a file or folder of ours so that a kill leaves all of it or nothing under its name."""
    with contextlib.suppress(OSError):
        temporary = path.with_name(_name())
        path.rename(temporary)
        _remove(temporary)


def set_aside(path: Path, folder: Path) -> Path:
    """Move `path` into `folder`, under a name that is free there; returns where it lies now."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{path.name}{'' if k == 1 else f'-{k}'}" for k in range(1, 10_000))
    aside = next(folder / name for name in names if not os.path.lexists(folder / name))
    path.rename(aside)
    return aside


def sweep(folder: Path) -> None:
    """Remove what killed writers left in `folder`: names of ours that no living process holds."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if _TEMPORARY.fullmatch(entry.name) and not entry.is_symlink():
                left = Path(entry.path)
                with contextlib.suppress(OSError), _held(left):
                    _remove(left)


@contextmanager
def _temporary(folder: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new, locked file or folder in `folder`, made if need be; it is gone afterwards unless it was renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    while True:
        path = folder / _name()
        make(path)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_held(path))
            except (BlockingIOError, FileNotFoundError):
                continue  # a sweep came between the making and the lock, and takes it
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    _remove(path)
                    raise
            stack.callback(_remove, path)
            yield path
            return


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """`path` locked against sweeps; OSError if another holds it, or it is no longer there."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.stat(path)):
            raise FileNotFoundError(path)
        yield
    finally:
        os.close(handle)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _make_file(path: Path) -> None:
    path.touch(exist_ok=False)


def _name() -> str:
    return f".pdlab-tmp-{secrets.token_hex(8)}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _open_up(path: Path) -> None:
    """Give what was made private, as safetensors' files are, the mode of anything new."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError, remedy: str) -> PdlabError:
    return PdlabError(f"cannot write {path}: {reason(error)}; free some space there, or {remedy}")
