"""A ladder of digits, trained for a second: everything of the zoo but the quality."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pdlab import data
from pdlab.data import ImageSource
from pdlab.training.log import Log
from pdlab.training.machine import Machine
from pdlab.training.presets import Preset, override, preset
from pdlab.zoo.build import build
from pdlab.zoo.recipe import LadderRecipe

SETTINGS = override(
    preset("digits"),
    {
        "network.width": "32",
        "network.blocks": "1",
        "teacher.updates": "30",
        "distill.updates": "5",
        "first_steps": "8",
    },
)
SMALL = override(
    SETTINGS,
    {"network.width": "8", "network.embedding_channels": "8", "teacher.updates": "2", "distill.updates": "1"},
)
RECIPE = LadderRecipe(n=100, ddim=16, others=4, nus=(0.0, 1.0), nu_n=70, pool=64)


@dataclass
class Ladder:
    """Where a ladder was built, and what the builder returned."""

    run: Path
    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.path)


def build_digits(
    place: Path,
    log: Log | None = None,
    seed: int = 0,
    run: str = "run",
    out: str = "ladder",
    settings: Preset = SETTINGS,
    recipe: LadderRecipe = RECIPE,
) -> Ladder:
    """Build (or go on building) the ladder of digits below `place`."""
    source = data.load("digits")
    assert isinstance(source, ImageSource)
    machine = Machine("cpu", "fp32")
    made = build(
        "tiny",
        settings,
        recipe,
        source,
        None,
        place / run,
        place / out,
        machine,
        features="pixels",
        seed=seed,
        log=log,
        seconds=0.02,
    )
    return Ladder(place / run, place / out, made)


@pytest.fixture(scope="session")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return build_digits(tmp_path_factory.mktemp("zoo"))
