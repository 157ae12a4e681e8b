"""What ships: every ladder in the package is whole, small enough, draws what it stored, and is in the wheel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pdlab import zoo
from pdlab.data import to_uint8
from pdlab.diffusion.samplers import sample
from pdlab.files import digest_of
from pdlab.metrics.card import Row
from pdlab.zoo.page import page

ROOT = Path(__file__).resolve().parents[2]
ladders = pytest.mark.parametrize("name", zoo.names())


def test_a_ladder_ships() -> None:
    assert zoo.default() in zoo.names()


@ladders
def test_files_are_those_of_the_manifest_and_small(name: str) -> None:
    folder, files = zoo.folder(name), zoo.manifest(name)["files"]
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert there == {*files, "manifest.json", "README.md"}
    for file, entry in files.items():
        assert digest_of(folder / file) == entry["sha256"]
        assert entry["bytes"] == (folder / file).stat().st_size <= 16 << 20
    assert sum(entry["bytes"] for file, entry in files.items() if file.endswith("model.safetensors")) <= 64 << 20


@ladders
def test_rungs_load_and_are_measured(name: str) -> None:
    made = zoo.manifest(name)
    assert [rung["steps"] for rung in made["rungs"]][-4:] == [8, 4, 2, 1]
    known = {None}
    for rung in made["rungs"]:
        model = zoo.checkpoint(name, rung["steps"])
        assert model.denoiser.steps == rung["steps"]
        assert all(p.dtype == torch.float32 for p in model.denoiser.parameters())
        assert model.shape == tuple(made["data"]["shape"])
        assert rung["teacher"] in known or rung is made["rungs"][1]  # the longest may have been left out
        known.add(rung["sha256"])
        rows = [Row.from_dict(row) for row in rung["rows"]]
        assert {row.card.checkpoint for row in rows} == {rung["sha256"]}


@ladders
def test_stored_samples_are_drawn_again(name: str) -> None:
    """To one grey level in 1,000 values: other machines sum in another order."""
    z, drawn, labels = zoo.noise(name)[:16], zoo.samples(name), zoo.labels(name)
    how = {"labels": labels if labels is None else labels[:16], "guidance": zoo.manifest(name)["guidance"]["shown"]}
    for kind, steps in (("distilled", 1), ("distilled", 4), ("ddim", 8)):
        model = zoo.load(name, steps if kind == "distilled" else None)
        again = to_uint8(sample(model, z, steps, **how)).int()
        error = (again - drawn[kind, steps][:16].int()).abs()
        assert error.max() <= 2
        assert (error > 0).float().mean() < 1e-2
    assert len(zoo.pool(name).images) == 2048


@ladders
def test_the_page_and_the_picture_are_the_reports(name: str) -> None:
    assert (zoo.folder(name) / "README.md").read_text() == page(zoo.manifest(name), zoo.report(name))
    with Image.open(zoo.folder(name) / "samples.png") as picture:
        picture.verify()


@pytest.mark.slow
@pytest.mark.skipif(not zoo.names(), reason="no ladder ships")
def test_the_wheel_holds_the_ladders(tmp_path: Path) -> None:
    """Built, installed elsewhere and used there, offline."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "pdlab", source / "pdlab", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-index", "--no-deps"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("pdlab-*.whl")
    subprocess.run([*pip, "install", *offline, "--target", tmp_path / "site", wheel], check=True)
    code = (
        "import torch, pdlab\n"
        "import pdlab.app.html, pdlab.zoo.page  # which read their templates\n"
        "from pdlab.web.site import ASSETS, PAGE\n"
        "assert all((PAGE / name).is_file() for name in (*ASSETS, 'index.html.j2', 'LICENSE-onnxruntime'))\n"
        "from pdlab import data, zoo\n"
        "from pdlab.diffusion.samplers import sample\n"
        "name = zoo.default()\n"
        "labels = zoo.labels(name)\n"
        "labels = labels if labels is None else labels[:2]\n"
        "images = sample(zoo.load(name, steps=4), zoo.noise(name)[:2], labels=labels)\n"
        "print(pdlab.__file__, len(zoo.pool(name).images), tuple(images.shape), len(data.load('digits')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert " 2048 (2, 3, " in done.stdout
    assert done.stdout.rstrip().endswith("1797")
