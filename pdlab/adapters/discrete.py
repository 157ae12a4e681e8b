"""Discrete betas (Ho et al. 2020): a network that counts the steps of a table of alphas_cumprod."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdlab.adapters import as_module
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.errors import PdlabError

#: What a network of discrete betas predicts, by diffusers' names, and as `Denoiser.output` has it.
PREDICTS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}


class Discrete(nn.Module):
    """A network of (y, k[, labels]), k = 0, 1, … counting the steps of a table of alphas_cumprod.

    Between two steps k is a fraction, linear in the angle arctan(sigma / alpha), in which the schedule is smooth
    and an end without any signal is finite; networks that embed k by sines take fractions as they are.
    """

    def __init__(self, network: nn.Module, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.network = network
        kept = alphas_cumprod.detach().double().cpu()
        # No buffer: the table comes with the network, and is there even while that has no memory.
        self._angles = {torch.device("cpu"): torch.atan2((1 - kept).sqrt(), kept.sqrt())}

    def forward(self, z: Tensor, logsnr: Tensor, *labels: Tensor) -> Tensor:
        """What the network predicts, `[B, …]`, for z `[B, …]` at `logsnr` `[B]`."""
        answer: Tensor = self.network(z, self.step(logsnr).to(z.dtype), *labels)
        return answer

    def step(self, logsnr: Tensor) -> Tensor:
        """The step, float64 with a fraction, at which the table has this log-SNR; its ends beyond them."""
        if (table := self._angles.get(logsnr.device)) is None:  # copied once
            table = self._angles[logsnr.device] = self._angles[torch.device("cpu")].to(logsnr.device)
        angle = torch.atan(torch.exp(-logsnr.double() / 2))
        after = torch.searchsorted(table, angle).clamp(1, len(table) - 1)
        low, high = table[after - 1], table[after]
        return after - 1 + ((angle - low) / (high - low)).clamp(0, 1)


def from_discrete(
    network: nn.Module | Callable[..., Tensor],
    alphas_cumprod: Tensor | Sequence[float],
    predicts: str = "epsilon",
    **more: Any,
) -> Denoiser:
    """The denoiser of a network (z [B, …], k [B][, labels]) of discrete betas; k, a float, counts from 0.

    Args:
        network: what it answers is said by `predicts`: "epsilon", "sample" or "v_prediction".
        alphas_cumprod: `[K]`, alpha² at every step, falling from nearly 1; its last may be 0 (zero terminal SNR).
        more: for `Denoiser`: num_classes, null_class, condition, shape, bounded.

    Raises PdlabError for a table that does not fall or leaves [0, 1], and for "epsilon" where it ends at 0.
    """
    if predicts not in PREDICTS:
        raise PdlabError(f"unknown prediction {predicts!r}: choose one of {', '.join(PREDICTS)}")
    table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).flatten().cpu()
    return Denoiser(Discrete(as_module(network), table), PREDICTS[predicts], schedule_of(table), **more)


def schedule_of(alphas_cumprod: Tensor) -> CosineSchedule:
    """The schedule between the ends of a table `[K]` of alpha².

    Raises PdlabError for one that does not fall, or leaves [0, 1].
    """
    table = alphas_cumprod.double()
    if len(table) < 2 or not bool((table.diff() < 0).all()) or table[0] >= 1 or table[-1] < 0:
        raise PdlabError("alphas_cumprod must fall from below 1 to 0 or above, in 2 steps or more")
    logsnr = torch.logit(table)
    return CosineSchedule(float(logsnr[-1]), float(logsnr[0]))
