"""The student's target: the one x̃ that makes one student step land where the teacher's two steps land.

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
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import Prediction, from_x
from pdlab.diffusion.samplers import ddim_step
from pdlab.diffusion.schedule import per_example


class Target(NamedTuple):
    """What a student is taught at z_t, and the teacher's two predictions that made it; all `[B, …]`."""

    prediction: Prediction
    first: Prediction
    second: Prediction


def student_target(
    teacher: Denoiser,
    z: Tensor,
    i: Tensor,
    steps: int | Tensor,
    labels: Tensor | None = None,
    guidance: Tensor | float | None = None,
) -> Target:
    """The target of a student of `steps` steps at z_t, t = i/steps.

    Args:
        teacher: a denoiser for 2·`steps` steps (or an undistilled one).
        z: z_t `[B, …]`, float32 or better; the teacher's outputs are not clipped.
        i: `[B]` integers in 1 … steps.
        steps: the student's N; a tensor keeps compiled code from being specialised to it.

    Returns the target as x, eps and v (eps and v belong to x̃ at the same z_t), detached.
    """
    schedule = teacher.schedule
    with torch.no_grad():
        # One division each: t' − t'' and t − t' must not inherit the rounding of t.
        t, t_mid, t_end = (i.to(z.dtype) / steps, (i.to(z.dtype) - 0.5) / steps, (i.to(z.dtype) - 1) / steps)
        tb, midb, endb = per_example(t, z), per_example(t_mid, z), per_example(t_end, z)
        first = teacher(z, t, labels, guidance)
        z_mid = ddim_step(schedule, z, tb, midb, first)
        second = teacher(z_mid, t_mid, labels, guidance)
        # sigma(0) is e^{-10}, not 0, on the bounded schedule; the sampler's last step treats it as 0.
        sigma_end = torch.where(endb == 0, 0.0, schedule.sigma(endb))
        w_first = sigma_end * torch.sin(schedule.rotation(tb, midb))
        w_second = schedule.sigma(tb) * torch.sin(schedule.rotation(midb, endb))
        x = (w_first * first.x + w_second * second.x) / (w_first + w_second)
        return Target(from_x(z, schedule.alpha(tb), schedule.sigma(tb), x), first, second)
