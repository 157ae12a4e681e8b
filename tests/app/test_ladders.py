"""What is shown: the zoo and the user's runs, nothing else; models within their bound."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pdlab import zoo
from pdlab.app.ladders import Recent, Shelf, ShownLadder
from pdlab.errors import PdlabError


def test_a_folder_of_runs_and_ladders(shelf: Shelf) -> None:
    assert sorted(shelf.ladders) == ["run", "shipped"]
    assert shelf.refused == []
    assert shelf.ladder("../../etc/passwd").name in shelf.ladders


def test_the_zoo_comes_first(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(built / "shipped", tmp_path / "run")
    monkeypatch.setattr(zoo, "HOME", tmp_path)
    assert list(Shelf(built / "run").ladders) == ["run", "run-2"]


def test_both_kinds_give_the_same(ladder: ShownLadder, run: ShownLadder) -> None:
    assert ladder.shape == run.shape == (1, 8, 8)
    assert ladder.steps == run.steps == [4, 2, 1]
    assert ladder.counts == run.counts == [8, 4, 2, 1]
    assert torch.equal(ladder.noise, run.noise)
    assert ladder.described() == run.described() == "digits, 8 × 8 pixels"
    assert ladder.rows
    assert run.rows == []
    assert run.samples == {}
    with pytest.raises(PdlabError, match="no student of 3 steps"):
        run.checkpoint(3)


def test_a_damaged_one_is_named_and_the_others_shown(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "HOME", tmp_path / "none")
    shutil.copytree(built / "shipped", tmp_path / "runs" / "good")
    shutil.copytree(
        built / "run", tmp_path / "runs" / "bad", ignore=shutil.ignore_patterns(".*", "packed", "progress")
    )
    (tmp_path / "runs" / "bad" / "teacher" / "model.json").write_text("{")
    shelf = Shelf(tmp_path / "runs")
    assert list(shelf.ladders) == ["good"]
    assert "bad" in shelf.refused[0]
    assert "again" in shelf.refused[0]


def test_a_damaged_model_is_an_error_with_its_remedy(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "HOME", tmp_path / "none")
    shutil.copytree(built / "shipped", tmp_path / "one")
    weights = tmp_path / "one" / "student-0004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    shelf = Shelf(tmp_path / "one")
    with pytest.raises(PdlabError, match="damaged"):
        shelf.model(shelf.ladder(), 4)


@pytest.mark.parametrize("content", [None, "file"])
def test_a_folder_without_runs_is_refused(content: str | None, tmp_path: Path) -> None:
    place = tmp_path / "x"
    if content:
        place.mkdir()
        (place / "a.json").write_text(json.dumps({}))
    with pytest.raises(PdlabError, match="--runs"):
        Shelf(place)


def test_models_are_loaded_once_and_let_go_of(shelf: Shelf, ladder: ShownLadder) -> None:
    assert shelf.model(ladder, 4) is shelf.model(ladder, 4)
    assert shelf.loaded == 1
    one = Shelf(shelf.runs, models=1)
    for steps in (None, 4, 2, 1):
        one.model(one.ladder("shipped"), steps)
        assert one.loaded == 1


def test_the_least_recent_goes_first() -> None:
    held: Recent[str] = Recent(3)
    for key in "abc":
        held.put(key, key, 1)
    assert held.get("a") == "a"
    held.put("d", "d", 1)
    assert [held.get(key) for key in "abcd"] == ["a", None, "c", "d"]
    assert held.size == 3
