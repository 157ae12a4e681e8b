"""Small models for tests: denoisers whose random weights have no zero among them, and pipelines of diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.networks.registry import build, conditioning


def denoiser_of(config: Any, output: str = "x", *, std: float = 0.1, seed: int = 0, **more: Any) -> Denoiser:
    """The denoiser of a network's `config`; `more` goes to it."""
    torch.manual_seed(seed)
    network = build(config, output)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std)
    return Denoiser(network, output, **conditioning(config), **more)


def unet(kind: str = "UNet2DModel", **settings: Any) -> nn.Module:
    """One of diffusers' U-Nets, for images of 8×8."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    plain = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return getattr(diffusers, kind)(**plain | settings)


def pipeline(place: Path, network: nn.Module, **schedule: Any) -> Path:
    """The folder `place` with a U-Net and a scheduler, as diffusers saves a pipeline."""
    diffusers = pytest.importorskip("diffusers")
    network.save_pretrained(place / "unet")  # type: ignore[operator]
    diffusers.DDIMScheduler(**schedule).save_pretrained(place / "scheduler")
    return place
