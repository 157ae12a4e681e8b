"""Samplers as graphs: they draw what ours draws, for any number of noises, and nothing else is written."""

import dataclasses
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pdlab.adapters import graph
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import sample
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.networks.unet import UNetConfig
from pdlab.training.checkpoint import load, save
from tests.command import refused
from tests.made import denoiser_of

UNET = UNetConfig(
    image_size=8,
    channels=8,
    multipliers=(1, 1, 2),
    blocks=1,
    attention=(2,),
    heads=None,
    head_dim=8,
    embedding_channels=16,
    group_size=4,
    patch=2,
    image_levels=1,
    num_classes=3,
    guidance_max=2.0,
)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two steps with classes and guidance; its weights are random, and none is zero."""
    denoiser = denoiser_of(UNET, schedule=CosineSchedule(-20, 7), steps=2)
    save(place := tmp_path_factory.mktemp("export") / "student", denoiser)
    return place


def drawn(path: Path, noise: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
    with torch.no_grad():
        return sample(load(path).denoiser, noise, labels=labels, guidance=guidance)


def inputs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 3, 8, 8, generator=g), torch.arange(n) % 3, 2 * torch.rand(n, generator=g)


@pytest.mark.slow
def test_onnx_draws_what_the_student_draws(student: Path, tmp_path: Path, pdlab) -> None:
    runtime = pytest.importorskip("onnxruntime")
    out = tmp_path / "student.onnx"
    said = pdlab("export", "onnx", student, out)
    assert said.code == 0, said.err
    assert "2 steps in one graph" in said.out + said.err
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type) for i in session.get_inputs()] == [
        ("noise", "tensor(float)"),
        ("label", "tensor(int64)"),
        ("guidance", "tensor(float)"),
    ]
    for n in (1, 4):
        given = inputs(n)
        found = session.run(
            ["image"], dict(zip(("noise", "label", "guidance"), map(Tensor.numpy, given), strict=True))
        )
        assert (torch.from_numpy(found[0]) - drawn(student, *given)).abs().max() < 1e-4


def test_torch_export_draws_what_the_student_draws(student: Path, tmp_path: Path, pdlab) -> None:
    out = tmp_path / "student.pt2"
    assert pdlab("export", "torch", student, out).code == 0
    program = torch.export.load(out).module()
    for n in (1, 4):
        given = inputs(n)
        assert (program(*given) - drawn(student, *given)).abs().max() < 1e-5


def test_an_unconditional_teacher_takes_noise_alone(tmp_path: Path, pdlab) -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(MLP(MLPConfig(shape=(1, 4, 4), width=8, blocks=1)), "v", shape=(1, 4, 4))
    save(tmp_path / "teacher", denoiser)
    out = tmp_path / "a.pt2"
    refused(pdlab("export", "torch", tmp_path / "teacher", out), "no step count of its own")
    assert not out.exists()
    assert graph.export_torch(denoiser, out, 3) <= graph.TOLERANCE
    noise = torch.randn(5, 1, 4, 4)
    with torch.no_grad():
        assert (torch.export.load(out).module()(noise) - sample(denoiser, noise, 3)).abs().max() < 1e-5


def test_a_guided_teacher_s_graph_takes_any_number_of_noises(tmp_path: Path) -> None:
    """Two evaluations a step, in one call of twice the batch, which no graph may fix."""
    config = dataclasses.replace(UNET, guidance_max=0.0, null_class=True)
    teacher = denoiser_of(config, schedule=CosineSchedule(-20, 7)).eval()
    assert graph.export_torch(teacher, tmp_path / "a.pt2", 2) <= graph.TOLERANCE
    program = torch.export.load(tmp_path / "a.pt2").module()
    for n in (1, 7):
        noise, labels, guidance = inputs(n)
        with torch.no_grad():
            expected = sample(teacher, noise, 2, labels=labels, guidance=guidance)
        assert (program(noise, labels, guidance) - expected).abs().max() < 1e-5


def test_a_graph_that_draws_something_else_is_not_written(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(content: io.BytesIO):
        class Program:
            def module(self):
                return lambda noise, *rest: noise

        return Program()

    monkeypatch.setattr(torch.export, "load", wrong)
    with pytest.raises(PdlabError, match=r"other images, up to .* apart: nothing was written"):
        graph.export_torch(load(student).denoiser, tmp_path / "a.pt2", 2)
    assert not (tmp_path / "a.pt2").exists()


def test_what_cannot_be_exported_is_said_in_a_line(
    student: Path, tmp_path: Path, pdlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(pdlab("export", "torch", student, tmp_path), "cannot write")
    refused(pdlab("export", "torch", tmp_path, tmp_path / "a.pt2"), "is not a checkpoint")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    refused(pdlab("export", "onnx", student, tmp_path / "a.onnx"), "pip install 'pdlab[export]'")
    eps = Denoiser(MLP(MLPConfig(shape=(1, 4, 4), width=8, blocks=1)), "eps", shape=(1, 4, 4), steps=1)
    with pytest.raises(PdlabError, match="an eps network"):
        graph.GraphSampler(eps, 1)
    assert not list(tmp_path.glob("*.*"))
