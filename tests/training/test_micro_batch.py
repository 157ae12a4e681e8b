"""An update that goes through its batch in parts has the gradients of the whole."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pdlab.data import ImageSource
from pdlab.diffusion.denoiser import Denoiser
from pdlab.distillation.conversion import ConversionObjective
from pdlab.distillation.guided import GuidedObjective
from pdlab.distillation.rounds import RoundObjective
from pdlab.errors import PdlabError
from pdlab.networks.registry import build, conditioning
from pdlab.training import cost
from pdlab.training.loop import fit
from pdlab.training.machine import Machine
from pdlab.training.objective import DiffusionObjective, Objective
from pdlab.training.presets import Optimization
from tests.networks.test_unet import TINY

CONFIG = replace(TINY, num_classes=3, null_class=True)


def model(output: str = "v", guidance_max: float = 0.0) -> Denoiser:
    torch.manual_seed(0)
    config = replace(CONFIG, guidance_max=guidance_max)
    network = build(config, output)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Denoiser(network, output, **conditioning(config))


def source() -> ImageSource:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSource(images, torch.arange(40) % 3, ("a", "b", "c"))


OBJECTIVES: dict[str, tuple[Callable[[], Objective], float]] = {
    "teacher": (lambda: DiffusionObjective("truncated", label_drop=0.3), 0.0),
    "converted": (lambda: ConversionObjective(model("x"), "truncated"), 0.0),
    "guided": (lambda: GuidedObjective(model(), "snr+1"), 2.0),
    "round": (lambda: RoundObjective(model(guidance_max=2.0), 4, "truncated"), 2.0),
    "round, independent": (lambda: RoundObjective(model(), 4, "truncated", 4), 0.0),
}


def gradients(make: Callable[[], Objective], guidance_max: float, micro_batch: int) -> tuple[list[Tensor], float]:
    """Of the first update, as it leaves them; and its loss."""
    student = model(guidance_max=guidance_max)
    settings = Optimization(1, batch=20, lr=1e-4, clip=1e9, micro_batch=micro_batch)
    trained = fit(student, make(), source(), settings, Machine("cpu", "fp32"))
    return [p.grad for p in student.parameters() if p.grad is not None], trained.loss


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("micro_batch", [7, 1])
def test_parts_have_the_gradients_of_the_whole(name: str, micro_batch: int) -> None:
    whole, loss = gradients(*OBJECTIVES[name], 0)
    parts, again = gradients(*OBJECTIVES[name], micro_batch)
    assert loss == pytest.approx(again, rel=1e-6)
    scale = max(float(g.abs().max()) for g in whole)
    assert scale > 0
    for a, b in zip(whole, parts, strict=True):
        assert (a - b).abs().max() <= 1e-6 * scale


def test_parts_as_large_as_the_batch_are_the_batch() -> None:
    whole, loss = gradients(*OBJECTIVES["teacher"], 0)
    for micro_batch in (20, 64):
        again, same = gradients(*OBJECTIVES["teacher"], micro_batch)
        assert same == loss
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_memory_is_asked_for_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    size = cost.Size(flops=1, activations=1 << 30, weights=4)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 4 << 30})())
    large = Optimization(1, batch=64, lr=1e-4)
    with pytest.raises(PdlabError, match="give --micro-batch"):
        cost.check_memory(size, (3, 8, 8), large)
    cost.check_memory(size, (3, 8, 8), Optimization(1, batch=64, lr=1e-4, micro_batch=2))
