"""The quickstart in miniature: everything it promises to write, and that it goes on where it was."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pdlab.errors import PdlabError
from pdlab.quickstart import quickstart
from pdlab.training.checkpoint import load
from pdlab.training.log import Log
from pdlab.training.presets import override, preset

TINY = {
    "network.width": "64",
    "network.blocks": "1",
    "teacher.updates": "300",
    "distill.updates": "60",
    "distill.batch": "64",
    "first_steps": "8",
}


def test_quickstart_in_miniature(tmp_path: Path) -> None:
    settings = override(preset("digits"), TINY)
    report = quickstart(tmp_path, 3, settings=settings, n=300, log=Log(tmp_path, quiet=True))
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["teacher_steps"] == 8
    rows = {(row["model"], row["steps"]): row for row in report["rows"]}
    assert set(rows) == {*(("teacher", n) for n in (8, 4, 2, 1)), *(("distilled", n) for n in (4, 2, 1))}
    assert {row["metric"] for row in rows.values()} == {"FD-pixels"}
    for n in (2, 1):
        assert rows["distilled", n]["value"] < rows["teacher", n]["value"]
    card = rows["distilled", 2]["card"]
    assert (card["n"], card["steps"], card["nfe"], card["seed"], card["ema"]) == (300, 2, 2, 3, True)
    assert rows["teacher", 8]["card"]["ema"] is True
    assert card["checkpoint"] == load(tmp_path / "student-0002").sha256
    cost = report["cost"]
    assert cost["teacher"]["images"] == 300 * 128
    assert cost["distillation"]["images"] == (60 + 120 + 120) * 64
    assert cost["distillation"]["forward_evaluations"] == 3 * cost["distillation"]["images"]
    for name in ("samples.png", "curve.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200

    hashes = {p: load(p).sha256 for p in (tmp_path / "teacher", tmp_path / "student-0001")}
    again = quickstart(tmp_path, 3, settings=settings, n=300, log=Log(tmp_path, quiet=True))
    assert {p: load(p).sha256 for p in hashes} == hashes
    assert [row["value"] for row in again["rows"]] == [row["value"] for row in report["rows"]]


def test_the_rounds_of_another_teacher_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "distill.json").write_text("{}")
    with pytest.raises(PdlabError, match="the rounds of another teacher"):
        quickstart(tmp_path, 0)
    assert not (tmp_path / "train.json").exists()
