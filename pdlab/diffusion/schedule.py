"""The cosine log-SNR schedule: what `alpha`, `sigma` and `logsnr` are at a time t.

    z_t = alpha x + sigma eps,   alpha² + sigma² = 1,   logsnr = log(alpha² / sigma²)
    logsnr(t) = −2 log tan(a t + b),   b = arctan(e^{−logsnr_max / 2}),   a = arctan(e^{−logsnr_min / 2}) − b

(Salimans & Ho 2022, section 2 and appendix). With ±20 the schedule is the paper's bounded one; with ±∞ it is
`alpha = cos(π t / 2)` and reaches alpha = 0 exactly at t = 1.

In terms of the angle phi = arctan(sigma / alpha) the schedule is a straight line, phi = a t + b, and this is how
it is computed: phi is accurate near t = 0, its complement psi = π/2 − phi near t = 1, and
`sigma = sin phi`, `alpha = sin psi` keep their relative precision in float32 over the whole range, where
`cos phi` or `sqrt(1 − sigma²)` lose every digit of a small alpha.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pdlab.errors import PdlabError


@dataclass(frozen=True)
class CosineSchedule:
    """Cosine schedule with log-SNR from `logsnr_max` (t = 0) down to `logsnr_min` (t = 1).

    Either bound may be infinite: `CosineSchedule(-math.inf, math.inf)` is alpha = cos(π t / 2).
    Raises PdlabError unless `logsnr_min` is below `logsnr_max`.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __post_init__(self) -> None:
        if not self.logsnr_min < self.logsnr_max:
            raise PdlabError(f"logsnr_min {self.logsnr_min} must be below logsnr_max {self.logsnr_max}")

    def check_output(self, output: str) -> None:
        """Raise PdlabError for output "eps" if alpha reaches 0: eps does not determine x there."""
        if output == "eps" and self.psi_end == 0:
            raise PdlabError(
                "output eps cannot be used with logsnr_min = -inf: at t = 1 alpha = 0, z is pure noise, and eps "
                "does not determine x; use output x, v or both, or a finite logsnr_min such as -20"
            )

    @property
    def phi_start(self) -> float:
        """phi at t = 0 (the paper's b), radians."""
        return math.atan(math.exp(-self.logsnr_max / 2))

    @property
    def psi_end(self) -> float:
        """psi = π/2 − phi at t = 1, radians."""
        return math.atan(math.exp(self.logsnr_min / 2))

    @property
    def phi_span(self) -> float:
        """phi(1) − phi(0) (the paper's a), radians."""
        return math.pi / 2 - self.phi_start - self.psi_end

    def phi(self, t: Tensor) -> Tensor:
        """The angle arctan(sigma / alpha) = a t + b, radians, at times `t` in [0, 1]; same shape."""
        return self.phi_start + self.phi_span * t

    def rotation(self, t: Tensor, s: Tensor) -> Tensor:
        """phi(t) − phi(s), radians, without the cancellation of subtracting two angles."""
        return self.phi_span * (t - s)

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data in z_t, in [0, 1]; same shape as `t`."""
        return torch.sin(self.psi_end + self.phi_span * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise in z_t, in [0, 1]; same shape as `t`."""
        return torch.sin(self.phi(t))

    def logsnr(self, t: Tensor) -> Tensor:
        """log(alpha² / sigma²) in [logsnr_min, logsnr_max]; same shape as `t`."""
        return 2 * torch.log(self.alpha(t) / self.sigma(t))

    def time(self, logsnr: Tensor) -> Tensor:
        """The time at which the schedule has this log-SNR: the inverse of `logsnr`."""
        return (torch.atan(torch.exp(-logsnr / 2)) - self.phi_start) / self.phi_span


def diffuse(schedule: CosineSchedule, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """z_t = alpha x + sigma eps for data and noise `[B, …]` at times `t`, a scalar or `[B]`."""
    return per_example(schedule.alpha(t), x) * x + per_example(schedule.sigma(t), x) * eps


def time_grid(steps: int) -> list[float]:
    """The sampler's times 1, (N−1)/N, …, 1/N, 0: `steps` + 1 of them (algorithm 2: t = i/N).

    Raises ValueError for `steps` below 1.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, not {steps}")
    return [i / steps for i in range(steps, -1, -1)]


def per_example(value: Tensor, like: Tensor) -> Tensor:
    """A scalar or `[B]` tensor reshaped to broadcast against `like` `[B, …]`."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)) if value.ndim else value
