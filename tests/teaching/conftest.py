"""A class-conditional, guided ladder of digits, as small as its notebook needs."""

import dataclasses
from pathlib import Path

import pytest

from pdlab import data
from pdlab.data import ImageSource
from pdlab.training.machine import Machine
from pdlab.training.presets import override, preset
from pdlab.zoo.build import build
from pdlab.zoo.recipe import LadderRecipe

SETTINGS = {
    "network.num_classes": "10",
    "network.null_class": "true",
    "network.width": "64",
    "network.blocks": "1",
    "teacher.label_drop": "0.1",
    "teacher.updates": "200",
    "teacher.batch": "64",
    "guide.updates": "60",
    "guide.batch": "64",
    "distill.updates": "30",
    "distill.batch": "64",
    "first_steps": "8",
}
RECIPE = LadderRecipe(n=100, ddim=8, others=2, nus=(), nu_n=70, pool=16)
SHARES = ("frechet", "kernel", "agreement", "recall")


def build_with_classes(place: Path, guidance_max: float) -> Path:
    """A ladder of digits with classes; guided and measured at w = 0, 1 and 2 if `guidance_max` is not 0."""
    settings = override(preset("digits"), SETTINGS | {"guidance_max": str(guidance_max)})
    recipe = dataclasses.replace(RECIPE, guidances=(0.0, 1.0, 2.0), shown=1.0, kinds=SHARES)
    source, out = data.load("digits"), place / "ladder"
    assert isinstance(source, ImageSource)
    how = recipe if guidance_max else RECIPE
    machine = Machine("cpu", "fp32")
    build("with classes", settings, how, source, None, place / "run", out, machine, features="pixels", seconds=0.02)
    return out


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_with_classes(tmp_path_factory.mktemp("classes"), 2.0)
