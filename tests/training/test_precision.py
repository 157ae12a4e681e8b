"""What is left of the loss when the network is perfect: the rounding of what comes after it, and no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import OUTPUTS, Prediction
from pdlab.diffusion.schedule import CosineSchedule, diffuse, per_example
from pdlab.diffusion.weighting import WEIGHTINGS
from pdlab.networks import registry
from pdlab.networks.mlp import MLPConfig
from pdlab.networks.unet import UNet
from pdlab.training.machine import Machine
from pdlab.training.presets import PRESETS

SETTINGS = sorted({(p.logsnr_min, p.logsnr_max, p.weighting) for p in PRESETS.values()})
BF16 = Machine("cpu", "bf16")


@cache
def small(name: str, output: str) -> nn.Module:
    """A network of the preset's kind, patches and levels, but small."""
    config = PRESETS[name].network
    if isinstance(config, MLPConfig):
        return registry.build(replace(config, width=128, blocks=1, num_classes=0), output)
    levels = max(2, config.image_levels)
    made = replace(
        config,
        image_size=8,
        channels=24,
        multipliers=(1, 2, 2)[:levels],
        blocks=1,
        attention=(),
        heads=1,
        head_dim=None,
        embedding_channels=32,
        num_classes=0,
        null_class=False,
    )
    network = registry.build(made, output)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
    return network


@contextmanager
def answering(network: nn.Module, truth: Tensor) -> Iterator[None]:
    """Within the context the layers before the last hold `truth`, and the last one passes it on."""
    unet = isinstance(network, UNet)
    last = network.conv_out if unet else network.last
    nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    if unet:
        for port in network.inner:
            nn.init.zeros_(port.conv_out.weight)  # type: ignore[arg-type, union-attr]
            nn.init.zeros_(port.conv_out.bias)  # type: ignore[arg-type, union-attr]
        truth = nn.functional.pixel_unshuffle(truth, network.config.patch)
        nn.init.dirac_(last.weight)  # type: ignore[arg-type]
    else:
        truth = truth.flatten(1)
        nn.init.eye_(last.weight)  # type: ignore[arg-type]

    def replaced(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        features = torch.zeros_like(args[0])
        features[:, : truth.shape[1]] = truth
        return (features,)

    hook = last.register_forward_pre_hook(replaced)  # type: ignore[operator, union-attr]
    try:
        yield
    finally:
        hook.remove()


def floor(network: nn.Module, output: str, schedule: CosineSchedule, weighting: str, training: bool) -> Tensor:
    """The losses of 256 examples with a perfect network, in bf16, at times that crowd where rounding counts most.

    Near t = 0 an error of x is divided by sigma, near t = 1 one of eps by alpha.
    """
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(256, *network.config.shape, generator=generator) - 1  # type: ignore[arg-type]
    close = torch.logspace(-7, -0.31, 128)
    t, eps = torch.cat([close, 1 - close]), torch.randn(x.shape, generator=generator)
    alpha, sigma = per_example(schedule.alpha(t), x), per_example(schedule.sigma(t), x)
    target = Prediction(x, eps, alpha * eps - sigma * x)
    truth = {**target._asdict(), "both": torch.cat([x, eps], dim=1)}[output]
    denoiser = Denoiser(network, output, schedule)
    with answering(network, truth), torch.no_grad(), BF16.for_sampling(denoiser) as sampling:
        live = denoiser.around(BF16.for_training(network)) if training else sampling
        return WEIGHTINGS[weighting].loss(target, live(diffuse(schedule, x, t, eps), t))


@pytest.mark.parametrize("training", [True, False], ids=["training", "sampling"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ["digits", "cifar10-paper", "cifar10-cpu"])  # an MLP, a U-Net, patches and levels
def test_a_perfect_network_has_no_loss(name: str, output: str, training: bool) -> None:
    for low, high, weighting in SETTINGS:
        losses = floor(small(name, output), output, CosineSchedule(low, high), weighting, training)
        assert losses.max() < 1e-6, (low, high, weighting, losses)
