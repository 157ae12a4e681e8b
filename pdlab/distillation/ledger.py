"""The error ledger: whose error is it? For one noise, the student's error as a sum of vectors.

Halving from N steps gives students of N/2, N/4, …, K steps; the student of k steps learned from a teacher of 2k.
Let x_k be what the rung of k steps makes of one noise z (x_N: the undistilled teacher in N steps), exact_N what
the closed-form denoiser makes of it in N steps, and exact_∞ the end of the probability-flow ODE. Then

    x_K − exact_∞ = Σ_k (x_k − x_2k)  +  (x_N − exact_N)  +  (exact_N − exact_∞)
                      distillation          model             discretisation

All are vectors in the space of the data, `[B, …]`, one for each noise, so they add up with their directions:
errors of two rounds may cancel. Where no closed form exists (images) the last two terms are left out and the
total is x_K − x_N, the distance that distillation alone has travelled.

Lengths are the root mean square over the elements of an example, in units of the data: a length of 0.1 in
images of [−1, 1] is 12.75 grey levels a pixel, whatever the size of the image. For points in the plane it is
1/√2 of the Euclidean length.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import sample
from pdlab.errors import PdlabError

MODEL, DISCRETISATION = "model", "discretisation"


@dataclass(frozen=True)
class Ledger:
    """The terms `[B, …]` (float64) by name, in the order in which they lead from `start` to `end`.

    `start` is where the trail begins, exact_∞ (or x_N without the exact terms), `end` the last student's x_K.
    A round is named like "8 → 4".
    """

    start: Tensor
    end: Tensor
    terms: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The error that the terms explain, end − start: `[B, …]`."""
        return self.end - self.start

    @property
    def residual(self) -> float:
        """The largest element of |total − Σ terms|: 0 but for rounding."""
        return float((self.total - torch.stack(list(self.terms.values())).sum(0)).abs().max())

    @property
    def lengths(self) -> dict[str, Tensor]:
        """The length of every term, `[B]` each; for a round this is its drift."""
        return {name: length(term) for name, term in self.terms.items()}

    @property
    def slack(self) -> Tensor:
        """Σ ‖term‖ − ‖total‖ `[B]`: never negative (triangle inequality); what cancels when errors meet."""
        return torch.stack(list(self.lengths.values())).sum(0) - length(self.total)

    def trail(self) -> Tensor:
        """The points `[terms + 1, B, …]` from `start` to `end`, one term after the other."""
        steps = torch.stack([self.start, *self.terms.values()])
        return steps.cumsum(0)


def length(vectors: Tensor) -> Tensor:
    """Root mean square over the elements of each example: `[B, …]` -> `[B]`."""
    return vectors.flatten(1).square().mean(1).sqrt()


def ledger(
    samples: Mapping[int, Tensor], exact_steps: Tensor | None = None, exact_flow: Tensor | None = None
) -> Ledger:
    """The ledger of what every rung made of the same noise.

    Args:
        samples: x_k `[B, …]` by step count: the undistilled teacher's N (the largest) and every student's, each
            half of the one before. Give floats: grey levels are rounded by up to 1/255 of the range.
        exact_steps: exact_N, the closed-form denoiser in N steps from the same noise.
        exact_flow: exact_∞, the end of the ODE; given with `exact_steps` or not at all.

    Raises PdlabError if a rung is missing, shapes differ, or only one of the exact terms is given.
    """
    counts = sorted(samples, reverse=True)
    if len(counts) < 2 or any(a != 2 * b for a, b in itertools.pairwise(counts)):
        raise PdlabError(f"a ledger needs every rung of a ladder, each half of the one before; got steps {counts}")
    if (exact_steps is None) != (exact_flow is None):
        raise PdlabError("give both exact_steps and exact_flow, or neither")
    given = [*samples.values(), *(x for x in (exact_steps, exact_flow) if x is not None)]
    if len({x.shape for x in given}) > 1:
        raise PdlabError(f"samples of one noise have one shape; got {sorted({tuple(x.shape) for x in given})}")
    x = {k: samples[k].double() for k in counts}
    terms: dict[str, Tensor] = {}
    start = x[counts[0]]
    if exact_steps is not None and exact_flow is not None:
        start = exact_flow.double()
        terms[DISCRETISATION] = exact_steps.double() - start
        terms[MODEL] = x[counts[0]] - exact_steps.double()
    for teacher, student in itertools.pairwise(counts):
        terms[f"{teacher} → {student}"] = x[student] - x[teacher]
    return Ledger(start, x[counts[-1]], terms)


def measure_ledger(
    teacher: Denoiser,
    students: Sequence[Denoiser],
    noise: Tensor,
    exact: Denoiser | None = None,
    flow_steps: int = 512,
) -> Ledger:
    """Sample every rung from `noise` `[B, …]` (DDIM; images clipped as always) and keep the ledger.

    `teacher` is the undistilled one, read at twice the steps of the first of `students`. `exact` is the closed-form
    denoiser of the data: its flow is integrated by Heun's rule in `flow_steps` steps in float64, whose own error
    falls with the square of them (about 2e-5 of the data's scale at 512).
    """
    first = 2 * max(student.steps or 0 for student in students)
    samples = {first: sample(teacher, noise, first)}
    samples |= {student.steps or 0: sample(student, noise) for student in students}
    if exact is None:
        return ledger(samples)
    z = noise.double()
    return ledger(samples, sample(exact, z, first), sample(exact, z, flow_steps, "heun"))
