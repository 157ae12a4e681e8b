"""A run folder: damage is moved aside, what cannot be read now is kept, and nothing of the user's is touched."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pdlab import data, files
from pdlab.errors import PdlabError
from pdlab.training.log import Log
from pdlab.training.loop import Stopped, Trained, Upkeep, fit
from pdlab.training.machine import Machine
from pdlab.training.run import Run
from tests import sealed
from tests.training.test_loop import TINY, StopAfter, equal, fresh, run_fit


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run with states after 4 and 8 updates."""
    with Run(tmp_path / "r") as run:
        for _ in range(2):
            with pytest.raises(Stopped):
                fit(
                    fresh(),
                    StopAfter(4),
                    data.load("digits"),
                    TINY.teacher,
                    Machine("cpu", "fp32"),
                    run=run,
                    log=Log(run.path, quiet=True),
                )
    return tmp_path / "r"


def resume(path: Path) -> Trained:
    with Run(path) as run, Log(path, quiet=True) as log:
        return run_fit(TINY.teacher, run=run, log=log)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: (state / "state.safetensors").unlink(),
        lambda state: (state / "state.json").write_text("[" * 200_000),
        lambda state: (state / "state.json").write_bytes(b"\xff"),
        lambda state: replace(state / "state.json", '"updates": 8', '"updates": 29'),
        lambda state: replace(state / "state.json", '"updates": 8', '"updates": -8'),
        lambda state: replace(state / "state.json", '"seconds"', '"second"'),
    ],
)
def test_a_damaged_state_is_moved_aside(damage: Callable[[Path], None], stopped: Path) -> None:
    state = stopped / "progress" / "teacher-00000008"
    damage(state)
    before = content(state)
    assert equal(resume(stopped).weights, run_fit(TINY.teacher).weights)
    assert content(stopped / "damaged" / "teacher-00000008") == before


def deny(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(path: Path) -> None:
        raise OSError(code, os.strerror(code), str(path)) if "state" in path.name else AssertionError

    monkeypatch.setattr("pdlab.files.open_regular", refuse)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_state_that_cannot_be_read_now_is_kept(code: int, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(stopped)
    deny(monkeypatch, code)
    with pytest.raises(PdlabError, match=r"cannot be read: .*nothing was changed"):
        resume(stopped)
    monkeypatch.undo()
    assert content(stopped) == before
    assert equal(resume(stopped).weights, run_fit(TINY.teacher).weights)


def test_a_state_of_a_newer_format_is_kept(stopped: Path) -> None:
    for file in stopped.glob("progress/*/state.json"):
        replace(file, '"format": 2', '"format": 3')
    before = content(stopped)
    with pytest.raises(PdlabError, match=r"is of format 3.* reads format 2: use the version that wrote it"):
        resume(stopped)
    assert content(stopped) == before


@pytest.mark.parametrize(("updates", "words"), [(29, "that of update 29"), (31, "that of update 31")])
def test_a_states_name_and_content_agree(updates: int, words: str, stopped: Path) -> None:
    with Run(stopped) as run:
        sealed.edit(stopped / "progress/teacher-00000008/state.json", lambda state: state.update(updates=updates))
        assert words in run.load_state("teacher")[2][0]


def test_a_state_that_is_far_too_large_is_not_read(stopped: Path) -> None:
    sparse(stopped / "progress" / "teacher-00000008" / "state.safetensors", {"weights/first.weight": 8 << 40})
    assert equal(resume(stopped).weights, run_fit(TINY.teacher).weights)
    assert (stopped / "damaged" / "teacher-00000008").exists()


def test_a_state_of_other_weights_is_refused_and_kept(stopped: Path) -> None:
    state = stopped / "progress" / "teacher-00000008"
    sparse(state / "state.safetensors", {"weights/first.weight": 8})
    digest = files.digest_of(state / "state.safetensors")
    sealed.edit(state / "state.json", lambda header: header.update(sha256=digest))
    with pytest.raises(PdlabError, match="does not hold the tensors"):
        resume(stopped)
    assert len(list(stopped.glob("progress/*"))) == 2


def sparse(file: Path, tensors: dict[str, int]) -> None:
    """A safetensors file that is said to hold so many bytes, and takes no room."""
    header, end = {}, 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)


@pytest.mark.parametrize(
    ("damage", "readable"),
    [
        (lambda log: log.write_bytes(b"\xff\xfe\n" + log.read_bytes()), True),
        (lambda log: log.write_bytes(b"[1]\n" + log.read_bytes()), True),
        (lambda log: log.write_bytes(b"[" * 200_000 + b"\n" + log.read_bytes()), True),
        (lambda log: os.truncate(log, 8 << 40), True),
        (lambda log: (log.unlink(), log.mkdir()), False),
        (lambda log: (log.unlink(), os.mkfifo(log)), False),
    ],
)
def test_a_damaged_log_stops_nothing(damage: Callable[[Path], None], readable: bool, stopped: Path) -> None:
    before = (stopped / "log.jsonl").read_text().splitlines()
    damage(stopped / "log.jsonl")
    assert equal(resume(stopped).weights, run_fit(TINY.teacher).weights)
    assert (stopped / "damaged" / "log.jsonl").exists()
    lines = (stopped / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["update"] == 30
    assert (lines[: len(before)] == before) == readable


def test_a_log_on_a_full_disk_is_one_line(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(PdlabError, match=r"cannot write .*log.jsonl: no space left on device"):
        Log(stopped, quiet=True).write("teacher", 1, {})


def test_a_run_that_is_moved_meanwhile(tmp_path: Path) -> None:
    with Run(tmp_path / "r") as run:
        (tmp_path / "r").rename(tmp_path / "elsewhere")
        with pytest.raises(PdlabError, match="was moved or removed meanwhile"):
            run_fit(TINY.teacher, run=run, upkeep=Upkeep(save_every=0))
    assert not (tmp_path / "r" / "progress").exists()


def test_nothing_of_the_users_is_swept_away(tmp_path: Path) -> None:
    own, foreign = tmp_path / ".pdlab-tmp-0123456789abcdef", [".photos.tmp", ".pdlab-tmp-thesis", "a.tmp"]
    for name in [own.name, *foreign]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with Run(tmp_path), files.atomic_folder(tmp_path / "new") as new:
        files.sweep(tmp_path)
        assert new.exists()  # what is being written is not swept either
    assert not own.exists()
    assert all((tmp_path / name / "file").exists() for name in foreign)


def test_a_run_that_does_not_begin_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PdlabError), Run(tmp_path / "r"):
        raise PdlabError
    assert not (tmp_path / "r").exists()
    (tmp_path / "r").mkdir()
    with Run(tmp_path / "r"):
        pass
    assert (tmp_path / "r").exists()  # not ours


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
