"""Samplers as generators: from noise at t = 1 to data at t = 0 on the grid t = i/N.

    for step in ddim(denoiser, noise, steps=8):
        step.t, step.z, step.prediction

`step.z` is the state at the time `step.t` that the step arrived at, `step.prediction` what the denoiser said at
its beginning. The last step returns x itself (z = x at t = 0), as the authors' sampler does. Noise is a tensor,
so two models can be fed the same; `sample` exhausts a sampler and returns the last z.

The deterministic ones integrate the probability-flow ODE, which in the angle phi = arctan(sigma/alpha) is
dz/dphi = v(z, t), free of any singularity. DDIM holds x and eps fixed over a step (first order), Heun's rule
averages v over its ends, DPM-Solver++(2M) extrapolates x from the step before (both second order).
"""

import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import Prediction, clip_x, from_x
from pdlab.diffusion.schedule import CosineSchedule, time_grid
from pdlab.errors import PdlabError


class Step(NamedTuple):
    """One step of a sampler: the time arrived at, the state there, and the prediction that led to it."""

    t: float
    z: Tensor
    prediction: Prediction


def ddim_step(schedule: CosineSchedule, z: Tensor, t: Tensor, s: Tensor, prediction: Prediction) -> Tensor:
    """DDIM from time t to s: z_s = alpha_s x + sigma_s eps (equation 8). `t`, `s` broadcast against `z`."""
    return schedule.alpha(s) * prediction.x + schedule.sigma(s) * prediction.eps


def ddim_step_angle(schedule: CosineSchedule, z: Tensor, t: Tensor, s: Tensor, prediction: Prediction) -> Tensor:
    """The same step as a rotation by delta = phi_t − phi_s: z_s = cos(delta) z − sin(delta) v (appendix D)."""
    delta = schedule.rotation(t, s)
    return torch.cos(delta) * z - torch.sin(delta) * prediction.v


def ancestral_step(
    schedule: CosineSchedule, z: Tensor, t: Tensor, s: Tensor, x: Tensor, noise: Tensor, nu: float
) -> Tensor:
    """One ancestral step t -> s with standard normal `noise` and variance interpolated by `nu` in [0, 1].

    z_s = r (alpha_s/alpha_t) z + (1 − r) alpha_s x + std noise with r = e^{logsnr_t − logsnr_s} and
    std² = lower^{1−nu} upper^{nu}, upper = (1 − r) sigma_t², lower = (1 − r) sigma_s² (section 2).
    r alpha_s/alpha_t is written alpha_t sigma_s² / (sigma_t² alpha_s), which stands at alpha_t = 0.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = (
        schedule.alpha(t),
        schedule.sigma(t),
        schedule.alpha(s),
        schedule.sigma(s),
    )
    one_minus_r = -torch.expm1(schedule.logsnr(t) - schedule.logsnr(s))
    mean = alpha_t * sigma_s**2 / (sigma_t**2 * alpha_s) * z + one_minus_r * alpha_s * x
    return mean + one_minus_r.sqrt() * sigma_s ** (1 - nu) * sigma_t**nu * noise


Sampler = Callable[..., Iterator[Step]]
SAMPLERS: dict[str, Sampler] = {}
_NFE: dict[Sampler, Callable[[int], int]] = {}
S = TypeVar("S", bound=Sampler)


def register_sampler(name: str, nfe: Callable[[int], int] | None = None) -> Callable[[S], S]:
    """Register the decorated generator under `name`: it then works wherever a sampler is named.

    It is called as `sampler(denoiser, noise, steps, *, clip, labels, guidance)` and yields one `Step` a step, the
    last with the samples as z. Parameters beyond these are options; one called `draw` is given `draw(z)`, fresh
    noise for z that depends on the seed and the number of each sample alone. `nfe(steps)` are its network
    evaluations (default: `steps`). PdlabError for a name that is taken by another.
    """

    def add(sampler: S) -> S:
        known = SAMPLERS.get(name)
        if known is not None and _where(known) != _where(sampler):
            raise PdlabError(f"there is a sampler {name!r} already: register yours under another name")
        SAMPLERS[name] = sampler
        if nfe is not None:
            _NFE[sampler] = nfe
        return sampler

    return add


def _where(sampler: Sampler) -> tuple[str, str]:
    return sampler.__module__, sampler.__qualname__


def find_sampler(sampler: str | Sampler) -> Sampler:
    """The sampler of this name, or itself. Raises PdlabError listing those there are."""
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise PdlabError(f"unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}")
        return SAMPLERS[sampler]
    return sampler


def sampler_name(sampler: str | Sampler) -> str:
    """What a card calls it: the registered name, or that of the function."""
    if isinstance(sampler, str):
        return sampler
    return next((name for name, known in SAMPLERS.items() if known is sampler), sampler.__qualname__)


def takes(sampler: str | Sampler, option: str) -> bool:
    """Whether a sampler has the option."""
    return option in inspect.signature(find_sampler(sampler)).parameters


def nfe(sampler: str | Sampler, steps: int, each: int = 1) -> int:
    """Network evaluations an image costs with this sampler; `each` prediction costs `Denoiser.evaluations`."""
    found = find_sampler(sampler)
    return each * (_NFE[found](steps) if found in _NFE else steps)


@register_sampler("ddim")
def ddim(
    denoiser: Denoiser,
    noise: Tensor,
    steps: int,
    *,
    clip: bool | None = None,
    labels: Tensor | None = None,
    guidance: Tensor | float | None = None,
) -> Iterator[Step]:
    """DDIM (Song et al. 2021): deterministic, first order; the sampler that distillation compresses.

    `noise` `[B, …]` is z at t = 1; `clip` limits x to [−1, 1] at each step (default: `denoiser.bounded`).
    NFE = `steps`.
    """
    z = noise
    for t, s in _pairs(steps):
        prediction = _predict(denoiser, z, t, clip, labels, guidance)
        z = prediction.x if s == 0 else ddim_step(denoiser.schedule, z, _time(z, t), _time(z, s), prediction)
        yield Step(s, z, prediction)


@register_sampler("ancestral")
def ancestral(
    denoiser: Denoiser,
    noise: Tensor,
    steps: int,
    *,
    nu: float = 0.0,
    generator: torch.Generator | None = None,
    draw: Callable[[Tensor], Tensor] | None = None,
    clip: bool | None = None,
    labels: Tensor | None = None,
    guidance: Tensor | float | None = None,
) -> Iterator[Step]:
    """The stochastic sampler (DDPM's, generalised): `nu` 0 takes the lower variance, 1 the upper. NFE = `steps`.

    `generator` lives on the noise's device; `draw(z)` gives the fresh noise of a step, shaped like z, in its place.
    No noise is added in the last step.
    """
    z = noise
    for t, s in _pairs(steps):
        prediction = _predict(denoiser, z, t, clip, labels, guidance)
        if s == 0:
            z = prediction.x
        else:
            if draw is None:
                fresh = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
            else:
                fresh = draw(z)
            z = ancestral_step(denoiser.schedule, z, _time(z, t), _time(z, s), prediction.x, fresh, nu)
        yield Step(s, z, prediction)


@register_sampler("heun", nfe=lambda steps: 2 * steps - 1)
def heun(
    denoiser: Denoiser,
    noise: Tensor,
    steps: int,
    *,
    clip: bool | None = None,
    labels: Tensor | None = None,
    guidance: Tensor | float | None = None,
) -> Iterator[Step]:
    """Heun's rule on dz/dphi = v: a DDIM step, then v averaged over both ends. Second order.

    NFE = 2 `steps` − 1: the last step returns x̂ and needs no corrector.
    """
    z = noise
    for t, s in _pairs(steps):
        prediction = _predict(denoiser, z, t, clip, labels, guidance)
        if s == 0:
            z = prediction.x
        else:
            time, next_time = _time(z, t), _time(z, s)
            predicted = ddim_step(denoiser.schedule, z, time, next_time, prediction)
            v = (prediction.v + _predict(denoiser, predicted, s, clip, labels, guidance).v) / 2
            z = z - denoiser.schedule.rotation(time, next_time) * v
        yield Step(s, z, prediction)


@register_sampler("dpm-solver++")
def dpm_solver(
    denoiser: Denoiser,
    noise: Tensor,
    steps: int,
    *,
    clip: bool | None = None,
    labels: Tensor | None = None,
    guidance: Tensor | float | None = None,
) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022): second order from the previous step's x̂. NFE = `steps`.

    x̂ is extrapolated to the middle of the step in half-log-SNR, D = x̂ + (x̂ − x̂_before) / (2 r) with
    r = h_before / h, h = (logsnr_s − logsnr_t)/2; the first and the last step are DDIM's.
    """
    z, before, h_before = noise, None, torch.tensor(math.inf)
    for t, s in _pairs(steps):
        prediction = _predict(denoiser, z, t, clip, labels, guidance)
        if s == 0:
            z = prediction.x
        else:
            time, next_time = _time(z, t), _time(z, s)
            h = (denoiser.schedule.logsnr(next_time) - denoiser.schedule.logsnr(time)) / 2
            x = prediction.x
            if before is not None:
                x = x + (x - before) * (h / (2 * h_before))
            z = _step_with_x(denoiser.schedule, z, time, next_time, x)
            before, h_before = prediction.x, h
        yield Step(s, z, prediction)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    noise: Tensor,
    steps: int | None = None,
    sampler: str | Sampler = "ddim",
    *,
    clip: bool | None = None,
    labels: Tensor | None = None,
    guidance: Tensor | float | None = None,
    **options: object,
) -> Tensor:
    """Samples `[B, …]` from `noise` `[B, …]`: runs a sampler, by name or itself, to its end.

    `steps` defaults to the number a distilled denoiser was made for; another number is allowed and warned of.
    `labels` `[B]` are the classes to draw and `guidance` (a number or `[B]`) how far beyond them: see `Denoiser`.
    `options` go to the sampler (`nu`, `generator`, `draw`). Raises PdlabError for an unknown sampler, when `steps`
    is missing for an undistilled denoiser, or for a guidance that this one cannot be given.
    """
    run = find_sampler(sampler)
    steps = denoiser.steps if steps is None else steps
    if steps is None:
        raise PdlabError("this denoiser is not distilled and has no step count of its own: say how many steps")
    if denoiser.steps not in (None, steps):
        warnings.warn(
            f"this denoiser was distilled for {denoiser.steps} steps on the grid t = i/{denoiser.steps}; "
            f"{steps} steps ask it at times it was not trained for",
            stacklevel=2,
        )
    denoiser.check_guidance(guidance)
    z = noise
    for step in run(denoiser, noise, steps, clip=clip, labels=labels, guidance=guidance, **options):
        z = step.z
    return z


def _pairs(steps: int) -> Iterator[tuple[float, float]]:
    grid = time_grid(steps)
    return itertools.pairwise(grid)


def _time(z: Tensor, t: float) -> Tensor:
    return torch.tensor(t, dtype=z.dtype, device=z.device)


def _predict(
    denoiser: Denoiser,
    z: Tensor,
    t: float,
    clip: bool | None,
    labels: Tensor | None,
    guidance: Tensor | float | None,
) -> Prediction:
    prediction = denoiser(z, t, labels, guidance)
    if not (denoiser.bounded if clip is None else clip):
        return prediction
    time = _time(z, t)
    return clip_x(z, denoiser.schedule.alpha(time), denoiser.schedule.sigma(time), prediction)


def _step_with_x(schedule: CosineSchedule, z: Tensor, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
    return ddim_step(schedule, z, t, s, from_x(z, schedule.alpha(t), schedule.sigma(t), x))
