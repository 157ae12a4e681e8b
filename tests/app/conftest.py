"""A shelf with a ladder in the zoo's format and a plain run, both of digits and trained for a second."""

from pathlib import Path

import pytest

from pdlab import zoo
from pdlab.app.compute import Show
from pdlab.app.ladders import RunLadder, Shelf, ShownLadder, ZooLadder
from pdlab.zoo.recipe import LadderRecipe
from tests.distillation.test_guided import settings as guided_settings
from tests.zoo.conftest import build_digits


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: the ladder `shipped`, and the run that it was built by."""
    place = tmp_path_factory.mktemp("app") / "runs"
    made = build_digits(place)
    made.path.rename(place / "shipped")
    return place


@pytest.fixture(scope="session")
def built_guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with classes and guidance: the ladder `guided`, and the run that it was built by."""
    place = tmp_path_factory.mktemp("app-guided") / "runs"
    recipe = LadderRecipe(
        n=100,
        ddim=8,
        others=8,
        nus=(),
        pool=64,
        guidances=(0.0, 1.0),
        shown=1.0,
        kinds=("frechet", "kernel", "agreement", "precision", "recall"),
    )
    made = build_digits(place, settings=guided_settings(), recipe=recipe)
    made.path.rename(place / "guided")
    return place


@pytest.fixture
def shelf(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shelf:
    monkeypatch.setattr(zoo, "HOME", tmp_path)  # whatever ships is not of these tests
    return Shelf(built)


@pytest.fixture
def ladder(shelf: Shelf) -> ShownLadder:
    found = shelf.ladder("shipped")
    assert isinstance(found, ZooLadder)
    return found


@pytest.fixture
def run(shelf: Shelf) -> ShownLadder:
    found = shelf.ladder("run")
    assert isinstance(found, RunLadder)
    return found


@pytest.fixture
def guided_shelf(built_guided: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shelf:
    monkeypatch.setattr(zoo, "HOME", tmp_path)
    return Shelf(built_guided)


@pytest.fixture
def guided(guided_shelf: Shelf) -> ShownLadder:
    """A ladder of the zoo's format: a teacher of 4 steps, students of 2 and 1 that take guidance up to 2."""
    return guided_shelf.ladder("guided")


@pytest.fixture
def guided_run(guided_shelf: Shelf) -> ShownLadder:
    """The run, which keeps stage one."""
    return guided_shelf.ladder("run")


class Seen(list):
    """A `show` that remembers."""

    def __call__(self, frame: object) -> None:
        if frame is not None:
            self.append(frame)


@pytest.fixture
def show() -> Show:
    return Seen()
