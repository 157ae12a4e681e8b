"""The file layer: whole or not at all, regular files only, and only what is ours is swept away."""

import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pdlab import files
from pdlab.errors import PdlabError


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
def test_what_is_no_file_is_not_opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
        make = {"folder": os.mkdir, "pipe": os.mkfifo, "socket": bound.bind}
        make.get(kind, lambda path: os.symlink("/dev/zero", path))("x")
        with pytest.raises(PdlabError, match=f"x is not a file but a {kind}"):
            files.read_bytes(Path("x"), 10)


def test_no_more_is_read_than_belongs_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert files.read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(PdlabError, match="has 5 bytes, more than the 4 that belong there"):
        files.read_bytes(tmp_path / "x", 4)


def interrupted(path: Path, of: str) -> None:
    with getattr(files, f"atomic_{of}")(path) as opened:
        opened.write(b"new") if of == "file" else (opened / "a").write_text("new")
        raise KeyError


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    for name, of in (("x", "file"), ("y", "folder")):
        with pytest.raises(KeyError):
            interrupted(tmp_path / name, of)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_full_disk_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PdlabError, match=r"cannot write .*x: no space left on device; .* or go away"):
        files.write(tmp_path / "x", b"new", "go away")
    assert not list(tmp_path.iterdir())


def test_many_write_and_sweep_one_folder(tmp_path: Path) -> None:
    def work(k: int) -> None:
        files.write(tmp_path / f"{k % 7}", str(k % 7).encode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(300)))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {str(k): str(k) for k in range(7)}


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    left = tmp_path / ".pdlab-tmp-0123456789abcdef"
    left.touch()
    files.write(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert left.exists()  # it may be another's


@pytest.mark.parametrize("path", ["folder", "file/below", "n" * 300])
def test_a_place_is_checked_before_the_work(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(PdlabError, match="cannot write"):
        files.check_place(tmp_path / path, "choose another")


def test_what_is_set_aside_replaces_nothing(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / "x").write_text(str(k))
        files.set_aside(tmp_path / "x", tmp_path / "aside")
    there = {path.name: path.read_text() for path in (tmp_path / "aside").iterdir()}
    assert there == {"x": "0", "x-2": "1", "x-3": "2"}


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    """Root may rename a file over /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PdlabError, match="not a file but a pipe; choose another"):
        files.check_place(tmp_path / "pipe", "choose another")
    with pytest.raises(PdlabError, match="not a file but a pipe"):
        files.write(tmp_path / "pipe", b"x", "choose another")
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
