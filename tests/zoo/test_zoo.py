"""The loader: names, rungs, and one clear line for what is missing or damaged."""

import shutil
from pathlib import Path

import pytest
import torch

from pdlab import data, zoo
from pdlab.errors import PdlabError
from tests.sealed import edit
from tests.zoo.conftest import Ladder


@pytest.fixture
def copy(ladder: Ladder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ladder.path, tmp_path / "copy"))


def test_ladders_and_rungs_are_found_by_name(ladder: Ladder) -> None:
    assert zoo.find(f"{ladder.name}:4").path == ladder.path / "student-0004"
    assert zoo.find(f"{ladder.name}:teacher").path == ladder.path / "teacher"
    for text, words in (
        ("atlantis:4", "no ladder 'atlantis'"),
        (f"{ladder.name}:3", "no student of 3 steps: there are 4, 2, 1, and the teacher"),
        (f"{ladder.name}:best", "number of steps or teacher"),
        (str(ladder.path), "is a run with several checkpoints"),
        ("runs/none", "there is no checkpoint runs/none"),
        ("a" * 5000, "cannot be the name of a checkpoint"),
        (zoo.default(), "is a ladder: name a model of it"),
    ):
        with pytest.raises(PdlabError, match=words):
            zoo.find(text)
    with pytest.raises(PdlabError, match="no student of 64 steps"):
        zoo.load(ladder.name, 64)


@pytest.mark.parametrize("file", ["report.json", "noise.npz", "samples.safetensors", "pool.png"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_file_is_named(copy: Path, file: str, damage: str) -> None:
    read = {
        "report.json": zoo.report,
        "noise.npz": zoo.noise,
        "samples.safetensors": zoo.samples,
        "pool.png": zoo.pool,
    }
    content = (copy / file).read_bytes()
    if damage == "gone":
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content[:-9] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PdlabError, match=f"{file} is missing or damaged"):
        read[file](str(copy))


def test_a_damaged_or_exchanged_model_is_named(copy: Path) -> None:
    weights = copy / "student-0004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(PdlabError, match="student-0004"):
        zoo.load(str(copy), 4)
    shutil.rmtree(copy / "student-0002")
    shutil.copytree(copy / "student-0001", copy / "student-0002")
    with pytest.raises(PdlabError, match="not the model of"):
        zoo.find(f"{copy}:2")
    (copy / "manifest.json").write_text("{")
    with pytest.raises(PdlabError, match=r"manifest\.json is damaged"):
        zoo.manifest(str(copy))


def test_no_rung_leaves_its_ladder(copy: Path) -> None:
    shutil.copytree(copy / "student-0002", copy.parent / "student-0002")
    edit(copy / "manifest.json", lambda made: made["rungs"][2].update(name="../student-0002"))
    with pytest.raises(PdlabError, match=r"manifest\.json: rungs\.2\.name string must match pattern"):
        zoo.find(f"{copy}:2")


def test_a_rung_whose_file_the_manifest_does_not_have_is_refused(copy: Path) -> None:
    edit(copy / "manifest.json", lambda made: made["files"].pop(made["rungs"][2]["file"]))
    with pytest.raises(PdlabError, match=r"manifest\.json: files has no student-\d+/model\.safetensors"):
        zoo.manifest_at(copy)


def test_the_pool_stands_in_only_for_data_that_are_absent(
    ladder: Ladder, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert zoo.images(ladder.name).name == "digits"
    edit(copy / "manifest.json", lambda made: made["data"].update(name="cifar10-16px"))
    monkeypatch.setenv("PDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PDLAB_DATA", raising=False)
    stand_in = zoo.images(str(copy))
    assert "samples of" in stand_in.name
    assert torch.equal(stand_in.images, zoo.pool(str(copy)).images)
    with pytest.raises(PdlabError, match="not found"):
        zoo.images(str(copy), root=tmp_path)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin").write_bytes(b"half a file")
    monkeypatch.setenv("PDLAB_DATA", str(tmp_path))
    with pytest.raises(PdlabError, match="data_batch_1"):
        zoo.images(str(copy))


def test_without_any_ladder_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "HOME", tmp_path)
    assert zoo.names() == []
    with pytest.raises(PdlabError, match="pdlab quickstart"):
        zoo.default()


def test_the_larger_ladder_is_the_default(ladder: Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "HOME", tmp_path)
    shutil.copytree(ladder.path, tmp_path / "a")
    assert zoo.default() == "a"
    shutil.copytree(ladder.path, tmp_path / "cifar10")
    assert zoo.names() == ["a", "cifar10"]
    assert zoo.default() == "cifar10"
    assert data.load("digits").digest == zoo.images("a").digest
