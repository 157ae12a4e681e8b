"""Kills while a run is mended, extended or watched: the same command again ends with the same bits."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from pdlab.training.checkpoint import load
from pdlab.training.objective import DiffusionObjective
from tests.hostile.test_kills import _warm, child, command, survives  # noqa: F401
from tests.hostile.test_mutations import OPTIONS
from tests.training.test_long import Poison

CONSTANT = ["--set", "teacher.anneal=false", "--device", "cpu", *OPTIONS]


def train(run: Path, *args: object, objective: type[DiffusionObjective] | None = None) -> Callable[[], object]:
    def work() -> None:
        with mock.patch("pdlab.training.teacher.DiffusionObjective", objective or DiffusionObjective):
            command("train", "digits", "--run", run, *CONSTANT, *args)()

    return work


def outcome(*names: str) -> Callable[[Path], object]:
    """What the checkpoints hold and say of what happened to them."""

    def result(place: Path) -> object:
        models = [load(place / "run" / name) for name in names]
        grids = [path.read_bytes() for path in sorted((place / "run").glob("*.png"))]
        return [(m.sha256, m.info["changes"], m.info["skipped"]) for m in models], grids

    return result


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run interrupted in its second of four updates."""

    class Stopping(DiffusionObjective):
        left = 2

        def __call__(self, *args):  # type: ignore[no-untyped-def]
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
            return super().__call__(*args)

    assert child(train(tmp_path / "stopped", "--updates", 4, objective=Stopping))[0] == 130
    return tmp_path / "stopped"


def test_changing(stopped: Path, tmp_path: Path) -> None:
    def make(place: Path) -> Callable[[], object]:
        if not (place / "run").exists():
            shutil.copytree(stopped, place / "run")
        return train(place / "run", "--updates", 4, "--lr", 1e-4, "--save-every", 0, "--change")

    survives(make, outcome("teacher"), tmp_path, 20)


def test_extending(tmp_path: Path) -> None:
    assert child(train(tmp_path / "short", "--updates", 3))[0] == 0

    def make(place: Path) -> Callable[[], object]:
        if not (place / "run").exists():
            shutil.copytree(tmp_path / "short", place / "run")
        more = ["--updates", 5, "--snapshot-every", 2, "--save-every", 0, "--change"]
        return train(place / "run", *more)

    survives(make, outcome("teacher", "teacher@3", "teacher@4"), tmp_path, 25)


def test_passing_over(tmp_path: Path) -> None:
    class Bad(Poison):
        def __init__(self, *_: object) -> None:
            super().__init__(3)

    def make(place: Path) -> Callable[[], object]:
        return train(place / "run", "--updates", 4, "--save-every", 0, "--skip-bad", 1, objective=Bad)

    survives(make, outcome("teacher"), tmp_path, 20)
