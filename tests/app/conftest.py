"""A shelf with a ladder in the zoo's format and a plain run, both of digits and trained for a second."""

from pathlib import Path

import pytest

from pdlab import zoo
from pdlab.app.compute import Show
from pdlab.app.ladders import Ladder, RunLadder, Shelf, ZooLadder
from tests.zoo.conftest import build_digits


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: the ladder `shipped`, and the run that it was built by."""
    place = tmp_path_factory.mktemp("app") / "runs"
    made = build_digits(place)
    made.path.rename(place / "shipped")
    return place


@pytest.fixture
def shelf(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shelf:
    monkeypatch.setattr(zoo, "HOME", tmp_path)  # whatever ships is not of these tests
    return Shelf(built)


@pytest.fixture
def ladder(shelf: Shelf) -> Ladder:
    found = shelf.ladder("shipped")
    assert isinstance(found, ZooLadder)
    return found


@pytest.fixture
def run(shelf: Shelf) -> Ladder:
    found = shelf.ladder("run")
    assert isinstance(found, RunLadder)
    return found


class Seen(list):
    """A `show` that remembers."""

    def __call__(self, frame: object) -> None:
        if frame is not None:
            self.append(frame)


@pytest.fixture
def show() -> Show:
    return Seen()
