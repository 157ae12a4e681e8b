"""Flow matching (Lipman et al. 2023) and rectified flow: a velocity on the straight path from data to noise."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pdlab.adapters import as_module
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.errors import PdlabError


class Flow(nn.Module):
    """u(y, τ[, labels]) -> velocity, on the straight path between data and noise.

    `data_at` is the time at which the path is at the data: 0 (y = (1 − τ) x + τ eps, u = eps − x), or 1
    (y = τ x + (1 − τ) eps, u = x − eps). The network is told `time_scale` τ.
    """

    def __init__(self, network: nn.Module, data_at: int = 0, time_scale: float = 1.0) -> None:
        super().__init__()
        self.network, self.data_at, self.time_scale = network, data_at, time_scale

    def forward(self, z: Tensor, logsnr: Tensor, *labels: Tensor) -> Tensor:
        """x̂ `[B, …]` for pdlab's z `[B, …]` at `logsnr` `[B]`."""
        noise = torch.sigmoid(-logsnr / 2).to(z.dtype)  # the share of the path from the data
        ratio = torch.exp(-logsnr.abs() / 2).to(z.dtype)  # the smaller of alpha and sigma over the larger
        y = z * per_example(torch.sqrt(1 + ratio**2) / (1 + ratio), z)  # z / (alpha + sigma)
        tau = noise if self.data_at == 0 else torch.sigmoid(logsnr / 2).to(z.dtype)
        u = self.network(y, self.time_scale * tau, *labels)
        return y - per_example(noise, z) * (u if self.data_at == 0 else -u)


def from_flow(
    network: nn.Module | Callable[..., Tensor],
    *,
    data_at: int = 0,
    time_scale: float = 1.0,
    logsnr_min: float = -20.0,
    logsnr_max: float = 20.0,
    **more: Any,
) -> Denoiser:
    """The denoiser of a velocity u(y [B, …], τ [B][, labels]) of flow matching or rectified flow.

    See `Flow` for `data_at` and `time_scale`; `more` goes to `Denoiser`. Raises PdlabError for another `data_at`.
    """
    if data_at not in (0, 1):
        raise PdlabError(f"data_at is the time of the data, 0 or 1, not {data_at!r}")
    return Denoiser(
        Flow(as_module(network), data_at, time_scale), "x", CosineSchedule(logsnr_min, logsnr_max), **more
    )
