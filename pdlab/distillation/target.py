"""The student's target: the one x̃ that makes one student step land where the teacher's steps land.

A student of N steps takes t = i/N to t'' = t − 1/N in one DDIM step. The teacher takes two, through
t' = t − 0.5/N:

    z_t'  = alpha' x̂₁ + (sigma'/sigma_t) (z_t − alpha_t x̂₁),    x̂₁ = x̂(z_t)
    z_t'' = alpha'' x̂₂ + (sigma''/sigma') (z_t' − alpha' x̂₂),   x̂₂ = x̂(z_t')

and x̃ solves "one DDIM step from z_t with x̃ lands on z_t''" (algorithm 2):

    x̃ = (z_t'' − (sigma''/sigma_t) z_t) / (alpha'' − (sigma''/sigma_t) alpha_t)

Put the two steps into the last line and z_t cancels: x̃ is an average of the teacher's two predictions,

    x̃ = (w₁ x̂₁ + w₂ x̂₂) / (w₁ + w₂),   w₁ = sigma'' sin(phi_t − phi'),   w₂ = sigma_t sin(phi' − phi'')

with phi = arctan(sigma/alpha). This is what is computed: it subtracts nothing, while the denominator of the
published form falls to 1.5e-3 at t = 1, N = 1024 and loses three digits. In the last step (t'' = 0) sigma'' = 0
and x̃ = x̂₂, which is also what the authors' code takes there.

A student step may replace any number K of teacher steps, t = t_0 > t_1 > … > t_K: a DDIM step changes z/sigma by
x̂ times the change of alpha/sigma = cot phi, so that x̃ is again an average,

    x̃ = Σ w_k x̂_k / Σ w_k,   w_k ∝ cot phi_{k+1} − cot phi_k = sin(phi_k − phi_{k+1}) / (sigma_k sigma_{k+1}).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import Prediction, from_x
from pdlab.diffusion.samplers import ddim_step
from pdlab.diffusion.schedule import per_example


class Target(NamedTuple):
    """What a student is taught at z_t, and the teacher's predictions that made it, one a step; all `[B, …]`."""

    prediction: Prediction
    teacher: tuple[Prediction, ...]


def student_target(
    teacher: Denoiser,
    z: Tensor,
    i: Tensor,
    steps: int,
    labels: Tensor | None = None,
    guidance: Tensor | float | None = None,
    *,
    hops: int = 2,
) -> Target:
    """The target of a student of `steps` steps at z_t, t = i/steps.

    Args:
        teacher: a denoiser for `hops`·`steps` steps (or an undistilled one).
        z: z_t `[B, …]`, float32 or better; the teacher's outputs are not clipped.
        i: `[B]` integers in 1 … steps.
        steps: the student's N.
        hops: the teacher's steps that one of the student replaces; the paper's 2.

    Returns the target as x, eps and v (eps and v belong to x̃ at the same z_t), detached.
    """
    return target_along(teacher, z, times_of(i.to(z.dtype), steps, hops), labels, guidance)


def times_of(i: Tensor, steps: int, hops: int = 2) -> list[Tensor]:
    """The `hops` + 1 times that a teacher visits, of i's shape and dtype, from i/`steps` to (i − 1)/`steps`."""
    # One division each: the differences of times must not inherit the rounding of t.
    return [(i - k / hops) / steps for k in range(hops + 1)]


def target_along(
    teacher: Denoiser,
    z: Tensor,
    times: Sequence[Tensor],
    labels: Tensor | None = None,
    guidance: Tensor | float | None = None,
) -> Target:
    """The target of one step from `times[0]` to `times[-1]`; `times` (each `[B]`, falling) are the teacher's."""
    schedule = teacher.schedule
    with torch.no_grad():
        along = [per_example(t, z) for t in times]
        # sigma(0) is e^{-10}, not 0, on the bounded schedule; the sampler's last step treats it as 0.
        sigma = [schedule.sigma(t) for t in along[:-1]]
        sigma.append(torch.where(along[-1] == 0, 0.0, schedule.sigma(along[-1])))
        predictions: list[Prediction] = []
        weights, here = [], z
        for k, t in enumerate(times[:-1]):
            if k:
                here = ddim_step(schedule, here, along[k - 1], along[k], predictions[-1])
            predictions.append(teacher(here, t, labels, guidance))
            # All weights times sigma_0 sigma_{K-1} sigma_K, so that nothing is divided by the sigma of t = 0.
            w = sigma[0] * torch.sin(schedule.rotation(along[k], along[k + 1]))
            weights.append(w if k == len(times) - 2 else w * sigma[-1] * sigma[-2] / (sigma[k] * sigma[k + 1]))
        x = torch.stack([w * p.x for w, p in zip(weights, predictions, strict=True)]).sum(0)
        x = x / torch.stack(weights).sum(0)
        target = from_x(z, schedule.alpha(along[0]), sigma[0], x)
        return Target(target, tuple(predictions))
