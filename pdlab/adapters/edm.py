"""EDM (Karras et al. 2022): D(y, s) with y = x + s eps."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pdlab.adapters import as_module
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.errors import PdlabError


class EDM(nn.Module):
    """D(y, s[, labels]) -> x̂, or with `sigma_data` the raw network F that EDM's preconditioning is put around.

    D = c_skip y + c_out F(c_in y, ln(s) / 4)       (Karras et al. 2022, table 1)
    """

    def __init__(self, network: nn.Module, sigma_data: float | None = None) -> None:
        super().__init__()
        self.network, self.sigma_data = network, sigma_data

    def forward(self, z: Tensor, logsnr: Tensor, *labels: Tensor) -> Tensor:
        """x̂ `[B, …]` for pdlab's z `[B, …]` at `logsnr` `[B]`."""
        s = torch.exp(-logsnr / 2).to(z.dtype)
        scale = per_example(torch.sqrt(1 + s**2), z)  # 1 / alpha
        if self.sigma_data is None:
            found: Tensor = self.network(scale * z, s, *labels)
            return found
        both, noise = s**2 + self.sigma_data**2, per_example(s, z)
        c_in, c_skip = per_example(both**-0.5, z), per_example(self.sigma_data**2 / both, z)
        raw = self.network(c_in * scale * z, torch.log(s) / 4, *labels)
        return c_skip * scale * z + noise * self.sigma_data * c_in * raw


def from_edm(
    network: nn.Module | Callable[..., Tensor],
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float | None = None,
    **more: Any,
) -> Denoiser:
    """The denoiser of an EDM network D(y [B, …], s [B][, labels]) -> x̂ [B, …] for noise of standard deviation s.

    With `sigma_data` (EDM's 0.5) `network` is the raw one inside the preconditioning, told ln(s) / 4. `more` goes
    to `Denoiser`: num_classes, null_class, condition, shape, bounded. Raises PdlabError unless 0 < sigma_min <
    sigma_max.
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise PdlabError(f"sigma_min {sigma_min:g} must be above 0 and below sigma_max {sigma_max:g}")
    schedule = CosineSchedule(-2 * math.log(sigma_max), -2 * math.log(sigma_min))
    return Denoiser(EDM(as_module(network), sigma_data), "x", schedule, **more)
