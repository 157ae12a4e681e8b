"""Runs of students with random weights: one with classes and guidance, one of plain grey images."""

import os
from pathlib import Path

import pytest

from pdlab.diffusion.schedule import CosineSchedule
from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLPConfig
from pdlab.training.checkpoint import save
from pdlab.web import runtime
from tests.adapters.test_graph import UNET
from tests.data.conftest import server
from tests.made import denoiser_of

__all__ = ["server"]  # a fixture


@pytest.fixture(scope="session")
def guided_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Students of 1 and 2 steps, of three classes."""
    place = tmp_path_factory.mktemp("web") / "guided-run"
    for steps in (1, 2):
        student = denoiser_of(UNET, schedule=CosineSchedule(-20, 7), steps=steps, seed=steps)
        save(place / f"student-{steps:04d}", student)
    return place


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of 2 steps of grey images, without classes, on the unbounded schedule."""
    place = tmp_path_factory.mktemp("web") / "plain-run"
    config, schedule = MLPConfig(shape=(1, 6, 4), width=16, blocks=1), CosineSchedule(float("-inf"), 20)
    save(place / "student-0002", denoiser_of(config, "v", std=0.3, schedule=schedule, steps=2))
    return place


@pytest.fixture(scope="session")
def fetched() -> dict[str, bytes]:
    """The files of onnxruntime-web, where they were fetched before the tests."""
    folder = runtime.place(Path(os.environ["PDLAB_FETCHED"]))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: python -c 'from pdlab.web.runtime import fetch; fetch()'")
    try:
        return runtime.cached(folder)
    except PdlabError as error:
        pytest.fail(str(error))
