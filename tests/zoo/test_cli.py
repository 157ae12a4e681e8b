"""`pdlab zoo`, its build, and ladders as checkpoints of the other commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pdlab import zoo
from tests.command import refused
from tests.zoo.conftest import Ladder


@pytest.fixture
def shipped(ladder: Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.copytree(ladder.path, tmp_path / "home" / "tiny")
    monkeypatch.setattr(zoo, "HOME", tmp_path / "home")
    return "tiny"


def test_the_list(pdlab, shipped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = pdlab("zoo").out
    for part in ("tiny:teacher", "tiny:4", "tiny:1", "FD-pixels of 100 samples", "pdlab sample tiny:4"):
        assert part in out
    monkeypatch.setattr(zoo, "HOME", tmp_path)
    assert "pdlab quickstart" in pdlab("zoo").out


def test_every_rung_is_sampled_by_its_name(pdlab, shipped: str, tmp_path: Path) -> None:
    for rung in ("4", "2", "1"):
        result = pdlab("sample", f"{shipped}:{rung}", "--n", 64, "--out", tmp_path / "a.npz", "--precision", "fp32")
        assert result.code == 0, result.err
        images = np.load(tmp_path / "a.npz")["arr_0"]
        stored = zoo.samples(shipped)["distilled", int(rung)].permute(0, 2, 3, 1).numpy()
        assert np.array_equal(images, stored)
    assert pdlab("sample", f"{shipped}:teacher", "--steps", 2, "--out", tmp_path / "a.png").code == 0
    refused(pdlab("sample", f"{shipped}:3", "--out", tmp_path / "a.png"), "no student of 3 steps", "4, 2, 1")
    refused(pdlab("sample", "atlantis:3", "--out", tmp_path / "a.png"), "atlantis", "tiny")


def test_a_rung_is_evaluated_by_its_name(pdlab, shipped: str, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    result = pdlab("evaluate", f"{shipped}:2", "--n", 100, "--features", "pixels", "--out", report)
    assert result.code == 0, result.err
    value = json.loads(report.read_text())["rows"][0]["value"]
    committed = next(r for r in zoo.manifest(shipped)["rungs"] if r["steps"] == 2)["rows"][0]["value"]
    assert value == pytest.approx(committed, rel=1e-3)


@pytest.mark.slow
def test_a_ladder_is_built_by_one_command(pdlab, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    command = ["zoo", "build", "digits", "--run", tmp_path / "run", "--out", out, "--features", "pixels"]
    tiny = ["--n", 70, "--device", "cpu"]
    for setting in (
        "network.width=16",
        "network.blocks=1",
        "teacher.updates=4",
        "distill.updates=1",
        "first_steps=4",
    ):
        tiny += ["--set", setting]
    result = pdlab(*command, *tiny)
    assert result.code == 0, result.err
    assert "70 samples" in result.err
    assert [rung["steps"] for rung in zoo.manifest(str(out))["rungs"]] == [None, 2, 1]
    assert len(zoo.pool(str(out)).images) == 2048
    refused(pdlab(*command, "--n", 64), "65 samples or more")
    refused(pdlab("zoo", "build", "moons"), "unknown preset")
    refused(pdlab("zoo", "build", "toy"), "images only")
    refused(pdlab("zoo", "build", "digits", "--features", "inception"), "choose other --features")
    refused(pdlab("zoo", "build", "cifar10", "--data", tmp_path), "not found", "--download")
