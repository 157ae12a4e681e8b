"""A grown network answers as the small one, enlarged: each way of growing, every weight awake."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pdlab.errors import PdlabError
from pdlab.networks.grow import grow
from pdlab.networks.unet import UNet, UNetConfig

SMALL = UNetConfig(
    image_size=8,
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention=(2,),
    heads=None,
    head_dim=4,
    embedding_channels=16,
    group_size=4,
    patch=2,
)
CONDITIONAL = replace(SMALL, num_classes=3, null_class=True)
OUTER = {"image_size": 16, "channels": 4, "multipliers": (1, 2, 4), "image_levels": 2, "time_channels": 8}
PATCH = {"image_size": 16, "patch": 4, "averaged": 1}
WIDER = {"channels": 12, "multipliers": (1, 2), "time_channels": 8}


def awake(config: UNetConfig, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    network = UNet(config).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def answers(small: UNet, z: torch.Tensor, logsnr: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """What the grown network of twice the side should give."""
    alpha2, sigma2 = torch.sigmoid(logsnr), torch.sigmoid(-logsnr)
    means = F.avg_pool2d(z, 2) / (alpha2 + sigma2 / 4).sqrt()[:, None, None, None]
    return F.interpolate(small(means, logsnr + 2 * math.log(2), labels), scale_factor=2)


def batch(side: int, labels: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    g = torch.Generator().manual_seed(5)
    z = torch.randn(4, 3, side, side, generator=g, dtype=torch.float64)
    return z, torch.tensor([-20.0, -1.0, 2.0, 7.0]).double(), torch.tensor([0, 1, 2, 3]) if labels else None


@pytest.mark.parametrize("change", [OUTER, PATCH], ids=["outer level", "larger patches"])
def test_twice_the_side_starts_as_the_small_network_enlarged(change):
    small = awake(CONDITIONAL)
    network = grow(small, UNet(replace(CONDITIONAL, **change)).double())
    z, logsnr, labels = batch(16, labels=True)
    torch.testing.assert_close(network(z, logsnr, labels), answers(small, z, logsnr, labels), rtol=1e-9, atol=1e-9)


def test_growing_twice_keeps_the_innermost_network():
    small = awake(SMALL)
    middle = grow(small, UNet(replace(SMALL, **OUTER)).double())
    twice = {"image_size": 32, "channels": 4, "multipliers": (1, 1, 2, 4), "image_levels": 3, "time_channels": 8}
    network = grow(middle, UNet(replace(SMALL, **twice)).double())
    z, logsnr, _ = batch(32)
    torch.testing.assert_close(network(z, logsnr), answers(middle, z, logsnr, None), rtol=1e-9, atol=1e-9)
    # A trained outer level is kept too: the middle network with every weight awake.
    other = awake(middle.config, seed=1)
    network = grow(other, UNet(replace(SMALL, **twice)).double())
    torch.testing.assert_close(network(z, logsnr), answers(other, z, logsnr, None), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("base", [{}, OUTER], ids=["one level of images", "two"])
def test_a_wider_network_answers_the_same(base):
    config = replace(CONDITIONAL, **base)
    small = awake(config)
    wider = replace(config, channels=config.channels * 2, time_channels=8)
    network = grow(small, UNet(wider).double())
    z, logsnr, labels = batch(config.image_size, labels=True)
    torch.testing.assert_close(network(z, logsnr, labels), small(z, logsnr, labels), rtol=1e-9, atol=1e-9)


def test_width_and_size_grow_together():
    small = awake(SMALL)
    config = replace(SMALL, image_size=16, channels=8, multipliers=(1, 2, 3), image_levels=2, time_channels=8)
    network = grow(small, UNet(config).double())
    z, logsnr, _ = batch(16)
    torch.testing.assert_close(network(z, logsnr), answers(small, z, logsnr, None), rtol=1e-9, atol=1e-9)


def test_classes_are_added_without_effect():
    small = awake(SMALL)
    network = grow(small, UNet(CONDITIONAL).double())
    z, logsnr, labels = batch(8, labels=True)
    torch.testing.assert_close(network(z, logsnr, labels), small(z, logsnr))


@pytest.mark.parametrize("change", [{}, OUTER, PATCH, WIDER], ids=["same", "outer level", "patches", "wider"])
def test_all_that_is_new_learns(change):
    """No new weight is cut off for good: after two updates of all, every weight has had a gradient."""
    torch.manual_seed(0)
    network = grow(awake(CONDITIONAL), UNet(replace(CONDITIONAL, **change)).double())
    z, logsnr, labels = batch(network.config.image_size, labels=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    moved = dict.fromkeys([name for name, _ in network.named_parameters()], False)
    for _ in range(3):
        optimizer.zero_grad()
        (network(z, logsnr, labels) - z).square().mean().backward()
        for name, p in network.named_parameters():
            moved[name] |= bool(p.grad.any())
        optimizer.step()
    assert [name for name, ok in moved.items() if not ok] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 32, "patch": 8}, "nor twice as large"),
        ({"blocks": 2}, "blocks is 2, not 1"),
        ({"image_size": 16, "patch": 4}, "averaged is 0, must be 1"),
        (OUTER | {"image_levels": 1}, "image_levels is 1, must be 2"),
        (OUTER | {"time_channels": None}, "time_channels is 4, must be 8"),
        ({"channels": 4, "time_channels": 8}, "are below"),
        ({"num_classes": 0, "null_class": False}, "num_classes is 0, not 3"),
        ({"null_class": False}, "null_class"),
        ({"embedding_channels": 32}, "embedding_channels"),
        ({"attention": (4, 2)}, "attention"),
        ({"channels": 10, "head_dim": 5, "time_channels": 8}, "head_dim"),
        ({"channels": 10, "head_dim": 5, "time_channels": 8, "group_size": 5}, "head_dim"),
    ],
)
def test_what_cannot_start_as_the_small_network_is_refused(change, message):
    with pytest.raises(PdlabError, match=message):
        grow(UNet(CONDITIONAL), UNet(replace(CONDITIONAL, **change)))


def test_norm_groups_must_keep_their_channels():
    with pytest.raises(PdlabError, match="norm groups of 4"):
        grow(UNet(CONDITIONAL), UNet(replace(CONDITIONAL, **WIDER, group_size=6)))
