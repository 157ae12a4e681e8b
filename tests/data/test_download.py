import gzip
import hashlib
import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pdlab import files
from pdlab.data.download import CHUNK, download, extract
from pdlab.errors import PdlabError
from tests.data.conftest import Server

CONTENT = bytes(range(256)) * 2000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def dest(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("pdlab.data.download.RETRIES", 0)
    server.content = CONTENT
    return tmp_path / "new folder" / "file.bin"


def fails(server: Server, dest: Path, sha256: str = SHA) -> str:
    """In one line, and nothing is left."""
    with pytest.raises(PdlabError) as caught:
        download(server.address, dest, sha256=sha256)
    message = str(caught.value)
    assert "\n" not in message
    assert not dest.exists()
    assert not dest.parent.is_dir() or os.listdir(dest.parent) == []
    return message


@pytest.mark.parametrize("sha256", [SHA, SHA.upper()])
def test_fetches_a_file(server: Server, dest: Path, sha256: str) -> None:
    assert download(server.address, dest, sha256=sha256) == dest
    assert dest.read_bytes() == CONTENT
    assert os.listdir(dest.parent) == [dest.name]
    dest.with_name("another").touch()
    assert dest.stat().st_mode == dest.with_name("another").stat().st_mode  # others may read it too


def test_what_lies_there_is_not_fetched_again(server: Server, dest: Path) -> None:
    for _ in range(2):
        download(server.address, dest, sha256=SHA)
    assert server.asked == 1


def test_a_file_with_another_checksum_is_replaced(server: Server, dest: Path) -> None:
    dest.parent.mkdir()
    dest.write_bytes(b"old")
    download(server.address, dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT


@pytest.mark.parametrize("length", [CHUNK // 2, 3 * CHUNK])
def test_no_more_is_taken_than_was_asked_for(server: Server, dest: Path, length: int) -> None:
    server.content = b"x" * length
    with pytest.raises(PdlabError, match="has more than 1,000 bytes: it is another file"):
        download(server.address, dest, sha256=hashlib.sha256(server.content).hexdigest(), most=1000)
    assert os.listdir(dest.parent) == []
    assert server.asked == 1  # another file stays another: it is not tried again


def test_two_do_not_fetch_one_file_at_a_time(server: Server, dest: Path) -> None:
    with files.alone(dest, "busy"), pytest.raises(PdlabError, match="another pdlab fetches"):
        download(server.address, dest, sha256=SHA)
    assert server.asked == 0
    assert download(server.address, dest, sha256=SHA) == dest
    assert os.listdir(dest.parent) == [dest.name]


def test_several_that_fetch_one_file_do_not_spoil_it(server: Server, dest: Path) -> None:
    def fetch(_: int) -> str:
        try:
            return str(download(server.address, dest, sha256=SHA))
        except PdlabError as error:
            return str(error)

    for _ in range(10):
        with ThreadPoolExecutor(4) as pool:
            ends = set(pool.map(fetch, range(4)))
        assert str(dest) in ends
        assert all(end == str(dest) or "another pdlab fetches" in end for end in ends), ends
        assert dest.read_bytes() == CONTENT
        assert os.listdir(dest.parent) == [dest.name]
        dest.unlink()


def test_the_lock_of_one_that_was_killed_at_its_end_goes(server: Server, dest: Path) -> None:
    download(server.address, dest, sha256=SHA)
    lock = dest.with_name(f".{dest.name}.lock")
    lock.touch()
    download(server.address, dest, sha256=SHA)
    assert os.listdir(dest.parent) == [dest.name]
    with files.alone(dest, "busy"):
        download(server.address, dest, sha256=SHA)
        assert lock.exists()  # it is another's


def test_a_lock_that_cannot_be_removed_stops_nothing(server: Server, dest: Path, monkeypatch) -> None:
    def forbid(*_: object, **__: object) -> None:
        raise PermissionError

    download(server.address, dest, sha256=SHA)
    dest.with_name(f".{dest.name}.lock").touch()
    monkeypatch.setattr(Path, "unlink", forbid)
    assert download(server.address, dest, sha256=SHA) == dest


def test_what_a_killed_one_left_is_swept_up(server: Server, dest: Path) -> None:
    left = dest.parent / ".pdlab-tmp-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "tmpabc").write_bytes(CONTENT[:1000])
    download(server.address, dest, sha256=SHA)
    assert os.listdir(dest.parent) == [dest.name]


def test_a_broken_transfer_is_tried_again(
    server: Server, dest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.broken = 1
    assert "cannot fetch" in fails(server, dest)
    monkeypatch.setattr("pdlab.data.download.RETRIES", 1)
    server.broken = 1
    download(server.address, dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT
    assert server.asked == 3
    assert "Downloading" not in capsys.readouterr().err  # nothing but the bar


def test_wrong_content_is_deleted(server: Server, dest: Path) -> None:
    server.content = b"something else"
    assert "sha256" in fails(server, dest)


def test_an_empty_answer_is_wrong_content(server: Server, dest: Path) -> None:
    server.content = b""
    assert "sha256" in fails(server, dest)


@pytest.mark.parametrize("status", [404, 503])
def test_an_http_error_leaves_nothing(server: Server, dest: Path, status: int) -> None:
    server.status = status
    assert f"answered {status}" in fails(server, dest)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/file", "no-address"])
def test_no_connection(server: Server, dest: Path, address: str) -> None:
    server.address = address
    message = fails(server, dest)
    assert "cannot fetch" in message
    assert str(dest) in message


def test_a_disk_that_takes_no_more(server: Server, dest: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # stands for a full disk
    try:
        assert "cannot write" in fails(server, dest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    download(server.address, dest, sha256=SHA)
    assert dest.read_bytes() == CONTENT


def test_a_place_that_cannot_be_written_to(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(PdlabError, match="cannot write"):
        download(server.address, tmp_path / "file" / "x.bin", sha256=SHA)
    assert server.asked == 0


# Archives ------------------------------------------------------------------------------------------------

MEMBERS = {"a": 100, "b": 100}


def member(name: str, content: bytes = b"content", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


GOOD = [member("d", b"", type=tarfile.DIRTYPE), member("d/a", b"first"), member("d/b", b"second", mode=0o4777)]


def archive(place: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    place.mkdir()
    path = place / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def refuses(path: Path) -> str:
    """The archive is refused in one line, and nothing but the archive is left there."""
    with pytest.raises(PdlabError) as caught:
        extract(path, path.parent / "d", MEMBERS)
    assert os.listdir(path.parent) == [path.name]
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_unpacks_the_expected_files_only_their_bytes(tmp_path: Path) -> None:
    path = archive(tmp_path / "here", *GOOD)
    folder = path.parent / "d"
    extract(path, folder, MEMBERS)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"a": b"first", "b": b"second"}
    assert folder.joinpath("b").stat().st_mode & 0o6000 == 0
    assert sorted(os.listdir(path.parent)) == ["archive.tar.gz", "d"]


HOSTILE = {
    "parent": member("d/../../evil"),
    "parent at once": member("../evil"),
    "absolute": member("/tmp/pdlab-evil"),
    "symlink": member("d/c", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "symlink under an expected name": member("d/a", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": member("d/b", b"", type=tarfile.LNKTYPE, linkname="d/a"),
    "device": member("d/a", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "fifo": member("d/a", b"", type=tarfile.FIFOTYPE),
    "another folder": member("e", b"", type=tarfile.DIRTYPE),
    "another file": member("d/c"),
    "deeper": member("d/a/b"),
    "line break": member("d/c\nd"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("first", [True, False])
def test_anything_else_is_refused(tmp_path: Path, kind: str, first: bool) -> None:
    evil = HOSTILE[kind]
    order = [evil, *GOOD] if first else [*GOOD, evil]
    assert "does not belong" in refuses(archive(tmp_path / "here", *order))
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/pdlab-evil").exists()


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    assert "does not belong" in refuses(archive(tmp_path / "here", *GOOD, member("d/a", b"again")))


def test_a_huge_member_is_refused(tmp_path: Path) -> None:
    assert "too large" in refuses(archive(tmp_path / "here", member("d/a", b"0" * 101), *GOOD))


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    assert "lacks b" in refuses(archive(tmp_path / "here", *GOOD[:2]))


@pytest.mark.parametrize("keep", [0, 5, 60, 110])
def test_a_truncated_archive(tmp_path: Path, keep: int) -> None:
    path = archive(tmp_path / "here", *GOOD)
    path.write_bytes(path.read_bytes()[:keep])
    assert "fetch it again" in refuses(path)


@pytest.mark.parametrize("entry", [0, 1, 3])  # blocks of 512 bytes: the folder, "a", its content, "b"
def test_an_archive_with_an_altered_header(tmp_path: Path, entry: int) -> None:
    path = archive(tmp_path / "here", *GOOD)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[512 * entry] ^= 1
    path.write_bytes(gzip.compress(content))
    assert "fetch it again" in refuses(path)


def test_an_earlier_folder_of_the_same_name_is_left_as_it_is(tmp_path: Path) -> None:
    path = archive(tmp_path / "here", *GOOD)
    for _ in range(2):
        extract(path, path.parent / "d", MEMBERS)
    assert sorted(os.listdir(path.parent)) == ["archive.tar.gz", "d"]
