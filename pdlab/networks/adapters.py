"""Networks that were trained elsewhere, as denoisers: EDM's, flow matching's, and those of discrete betas.

Every Gaussian diffusion is z_t = alpha x + sigma eps up to a scale and another clock. What is the same in all of
them is the log-SNR, so an adapter is asked for (z, logsnr) as any network here is, finds the state y and the time
that its network knows them by, and turns the answer into x, eps or v:

    EDM (Karras et al. 2022)            y = x + s eps = z / alpha                      s = exp(−logsnr / 2)
    flow matching (Lipman et al. 2023)  y = (1 − τ) x + τ eps = z / (alpha + sigma)    τ = sigmoid(−logsnr / 2)
    discrete betas (Ho et al. 2020)     y = z                                          step k of their table

The adapted network is trained on like any other: its students are of the same kind, and `pdlab.load(path,
network=…)` takes `denoiser.network` of an adapter made in the same way.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.errors import PdlabError

#: What a network of discrete betas predicts, by diffusers' names, and as `Denoiser.output` has it.
PREDICTS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}


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
        both, per = s**2 + self.sigma_data**2, per_example(s, z)
        c_in, c_skip = per_example(both**-0.5, z), per_example(self.sigma_data**2 / both, z)
        raw = self.network(c_in * scale * z, torch.log(s) / 4, *labels)
        return c_skip * scale * z + per * self.sigma_data * c_in * raw


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
        table = self._angles[torch.device("cpu")]
        table = self._angles.setdefault(logsnr.device, table.to(logsnr.device))
        angle = torch.atan(torch.exp(-logsnr.double() / 2))
        after = torch.searchsorted(table, angle).clamp(1, len(table) - 1)
        low, high = table[after - 1], table[after]
        return after - 1 + ((angle - low) / (high - low)).clamp(0, 1)


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
    to `Denoiser`: num_classes, null_class, shape, bounded. Raises PdlabError unless 0 < sigma_min < sigma_max.
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise PdlabError(f"sigma_min {sigma_min:g} must be above 0 and below sigma_max {sigma_max:g}")
    schedule = CosineSchedule(-2 * math.log(sigma_max), -2 * math.log(sigma_min))
    return Denoiser(EDM(_module(network), sigma_data), "x", schedule, **more)


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
        Flow(_module(network), data_at, time_scale), "x", CosineSchedule(logsnr_min, logsnr_max), **more
    )


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
        more: for `Denoiser`: num_classes, null_class, shape, bounded.

    Raises PdlabError for a table that does not fall or leaves [0, 1], and for "epsilon" where it ends at 0.
    """
    if predicts not in PREDICTS:
        raise PdlabError(f"unknown prediction {predicts!r}: choose one of {', '.join(PREDICTS)}")
    table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).flatten().cpu()
    return Denoiser(Discrete(_module(network), table), PREDICTS[predicts], schedule_of(table), **more)


def schedule_of(alphas_cumprod: Tensor) -> CosineSchedule:
    """The schedule between the ends of a table `[K]` of alpha².

    Raises PdlabError for one that does not fall, or leaves [0, 1].
    """
    table = alphas_cumprod.double()
    if len(table) < 2 or not bool((table.diff() < 0).all()) or table[0] >= 1 or table[-1] < 0:
        raise PdlabError("alphas_cumprod must fall from below 1 to 0 or above, in 2 steps or more")
    logsnr = torch.logit(table)
    return CosineSchedule(float(logsnr[-1]), float(logsnr[0]))


class _Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        return self._function(*arguments)


def _module(network: nn.Module | Callable[..., Tensor]) -> nn.Module:
    if isinstance(network, nn.Module):
        return network
    if not callable(network):
        raise PdlabError(f"give a network or a function, not {type(network).__name__}")
    return _Call(network)
