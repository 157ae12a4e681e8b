"""Runs of students with random weights: one with classes and guidance, one of plain grey images."""

import os
from pathlib import Path

import pytest
import torch

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.networks.registry import build, conditioning
from pdlab.training.checkpoint import save
from pdlab.web import runtime
from tests.adapters.test_graph import UNET
from tests.data.conftest import server

__all__ = ["server"]  # a fixture


@pytest.fixture(scope="session")
def guided_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Students of 1 and 2 steps, of three classes."""
    place = tmp_path_factory.mktemp("web") / "guided-run"
    for steps in (1, 2):
        torch.manual_seed(steps)
        network = build(UNET, "x")
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        denoiser = Denoiser(network, "x", CosineSchedule(-20, 7), steps=steps, **conditioning(UNET))
        save(place / f"student-{steps:04d}", denoiser)
    return place


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of 2 steps of grey images, without classes, on the unbounded schedule."""
    place = tmp_path_factory.mktemp("web") / "plain-run"
    torch.manual_seed(0)
    network = MLP(MLPConfig(shape=(1, 6, 4), width=16, blocks=1))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save(place / "student-0002", Denoiser(network, "v", CosineSchedule(float("-inf"), 20), steps=2))
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
