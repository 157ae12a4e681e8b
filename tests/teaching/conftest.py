"""A class-conditional, guided ladder of digits, as small as its notebook needs."""

import json
from pathlib import Path

import numpy as np
import pytest

from pdlab import data, zoo
from pdlab.distillation.guided import GUIDED
from pdlab.distillation.rounds import distill
from pdlab.training.checkpoint import file_sha256, load
from pdlab.training.machine import Machine
from pdlab.training.presets import override, preset
from pdlab.training.run import Run
from pdlab.training.teacher import train

SETTINGS = {
    "network.num_classes": "10",
    "network.null_class": "true",
    "network.width": "64",
    "network.blocks": "1",
    "teacher.label_drop": "0.1",
    "teacher.updates": "200",
    "teacher.batch": "64",
    "guidance_max": "2",
    "guide.updates": "60",
    "guide.batch": "64",
    "distill.updates": "30",
    "distill.batch": "64",
    "first_steps": "8",
}


def write_ladder(place: Path, guidance_max: float) -> Path:
    """A class-conditional ladder of digits: a run, and as much of a manifest as the notebook reads."""
    settings = override(preset("digits"), SETTINGS | {"guidance_max": str(guidance_max)})
    digits, machine = data.load("digits"), Machine("cpu", "fp32")
    with Run(place) as run:
        teacher = train(settings, digits, run, machine)
        paths = [teacher, *distill(load(teacher), digits, settings, run, machine, first=8)]
    rungs = [
        {"name": path.name, "steps": load(path).denoiser.steps, "sha256": load(path).sha256}
        for path in paths
        if path.name != GUIDED
    ]
    with (place / zoo.NOISE).open("wb") as file:
        np.savez_compressed(file, noise=np.zeros((64, 1, 8, 8), np.float32))
    manifest = {
        "data": {"name": "digits", "shape": [1, 8, 8], "size": None},
        "first_steps": 8,
        "rungs": rungs,
        "files": {zoo.NOISE: {"sha256": file_sha256(place / zoo.NOISE)}},
    }
    (place / zoo.MANIFEST).write_text(json.dumps(manifest))
    return place


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ladder(tmp_path_factory.mktemp("classes"), 2.0)
