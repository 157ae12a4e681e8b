"""Exercises of the notebooks, and checkers that say what kind of mistake an answer looks like.

How a notebook carries one, in one source for the learner and the tests:

- A cell tagged `exercise` holds the stub (it raises NotImplementedError) and, below it, `exercises.check(NAME, f)`.
  Until the stub is filled in the cell raises `NotYet` with a hint. It is also tagged `raises-exception`, so that
  "Run All" goes on after it.
- The cell after it, tagged `solution` and folded away (`jupyter.source_hidden`), defines the same function
  rightly and checks it.
- No other cell uses a name that these two define: the rest of a notebook takes the library's function, which the
  checker has compared the learner's with.

So the student's notebook is the file without its solutions: `tests/teaching/test_notebooks.py` runs it, and
lets nothing fail but the stubs, with their hint. nbmake runs the file as it is, in a kernel: there every solution
must pass.

A checker feeds random inputs to the learner's function and to a readable specification. If they differ, it looks
for a known mistake that gives the learner's numbers, and tells its hint.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import Prediction, from_x
from pdlab.diffusion.samplers import ddim_step
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.diffusion.weighting import WEIGHTINGS, mse
from pdlab.metrics.kernel import Kernel, mmd2_unbiased, polynomial_kernel

Answer = Callable[..., Any]
Loss = Callable[[Prediction, Prediction], Tensor]

_TRIALS = 5


class NotYet(AssertionError):
    """An exercise that is not solved; the message is a hint. Notebooks show it in one line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"✗ {self}"]


@dataclass(frozen=True)
class Exercise:
    """What is asked, a specification to compare with, and mistakes that are known by the numbers they give.

    `inputs(generator)` are the arguments of one random trial; `mistakes` maps a hint to a wrong function;
    `observe(answer, *trial)` is what is compared, if that is more than what the answer returns.
    """

    asked: str
    specification: Answer
    inputs: Callable[[torch.Generator], tuple[Any, ...]]
    mistakes: dict[str, Answer]
    observe: Answer = lambda answer, *trial: answer(*trial)


def check(name: str, answer: Answer) -> None:
    """Compare `answer` with the specification of the exercise `name` on random inputs; prints when it is right.

    Raises NotYet with a hint when it is not written yet, fails, or differs.
    """
    exercise = EXERCISES[name]
    generator = torch.Generator().manual_seed(0)
    trials = [exercise.inputs(generator) for _ in range(_TRIALS)]

    def seen(function: Answer) -> list[Tensor | None]:
        return [_values(exercise.observe(function, *trial)) for trial in trials]

    expected = seen(exercise.specification)
    try:
        given = seen(answer)
    except NotImplementedError:
        raise NotYet(f"{name} is not written yet: {exercise.asked}") from None
    except Exception as error:  # whatever a learner's code may raise is theirs to see, with where it came from
        raise NotYet(f"{name} raised {type(error).__name__}: {error}") from error
    if any(value is None for value in given):
        raise NotYet(f"{name} returned something that is not a number or tensor (a forgotten return?)")
    if all(_equal(a, b) for a, b in zip(given, expected, strict=True)):
        print(f"✓ {name}: equal to the specification on {_TRIALS} random inputs")
        return
    for hint, mistake in exercise.mistakes.items():
        if all(_equal(a, b) for a, b in zip(given, seen(mistake), strict=True)):
            raise NotYet(f"{name}: {hint}")
    raise NotYet(f"{name}: {_difference(given, expected)}")


def _values(result: Any) -> Tensor | None:
    """An answer (number, tensor, nested sequence of them) as one flat float64 tensor; None if it is neither."""
    if isinstance(result, Tensor):
        return result.detach().double().flatten()
    if isinstance(result, int | float):
        return torch.tensor([float(result)], dtype=torch.float64)
    if isinstance(result, Sequence) and not isinstance(result, str):
        parts = [_values(part) for part in result]
        found = [part for part in parts if part is not None]
        return torch.cat(found) if found and len(found) == len(parts) else None
    return None


def _equal(a: Tensor | None, b: Tensor | None, tolerance: float = 1e-5) -> bool:
    if a is None or b is None or a.shape != b.shape:
        return False
    return bool(torch.isfinite(a).all() and (a - b).abs().max() <= tolerance * (1 + b.abs().max()))


def _difference(given: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> str:
    for a, b in zip(given, expected, strict=True):
        assert a is not None
        assert b is not None
        if a.shape != b.shape:
            return f"it returned {a.numel()} numbers where {b.numel()} are asked for"
        if not bool(torch.isfinite(a).all()):
            return "it returned nan or infinity: is something divided by zero?"
        if not _equal(a, b):
            at = int((a - b).abs().argmax())
            return f"not equal yet: a value is {float(a[at]):.4g} and should be {float(b[at]):.4g}"
    raise AssertionError("the answers are equal")


# The exercises, in the order of the notebooks.

_SCHEDULE = CosineSchedule(-math.inf, math.inf)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _time(generator: torch.Generator, low: float = 0.2, high: float = 0.9) -> Tensor:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64)


def _from_v_inputs(generator: torch.Generator) -> tuple[Any, ...]:
    t = _time(generator)
    return _normal(generator, 4, 2), _SCHEDULE.alpha(t), _SCHEDULE.sigma(t), _normal(generator, 4, 2)


def _step_inputs(generator: torch.Generator) -> tuple[Any, ...]:
    t = _time(generator, 0.5, 0.9)
    s = t - _time(generator, 0.1, 0.3)
    z, x = _normal(generator, 4, 2), _normal(generator, 4, 2)
    return _SCHEDULE, z, t, s, from_x(z, _SCHEDULE.alpha(t), _SCHEDULE.sigma(t), x)


def _solve_inputs(generator: torch.Generator) -> tuple[Any, ...]:
    t = _time(generator, 0.5, 0.9)
    return _SCHEDULE, _normal(generator, 4, 2), t, _normal(generator, 4, 2), t - _time(generator, 0.1, 0.3)


def _solve(schedule: CosineSchedule, z: Tensor, t: Tensor, z_end: Tensor, t_end: Tensor) -> Tensor:
    ratio = schedule.sigma(t_end) / schedule.sigma(t)
    return (z_end - ratio * z) / (schedule.alpha(t_end) - ratio * schedule.alpha(t))


def _grid_inputs(generator: torch.Generator) -> tuple[Any, ...]:
    steps = 2 ** int(torch.randint(2, 8, (), generator=generator))
    return int(torch.randint(2, steps + 1, (), generator=generator)), steps


def _rungs_inputs(generator: torch.Generator) -> tuple[Any, ...]:
    return 2 ** int(torch.randint(3, 10, (), generator=generator)), 100


def _rungs(first: int, updates: int) -> list[tuple[int, int]]:
    plan, steps = [], first // 2
    while steps >= 1:
        plan.append((steps, 2 * updates if steps <= 2 else updates))
        steps //= 2
    return plan


def _mmd_inputs(generator: torch.Generator) -> tuple[Any, ...]:
    return _normal(generator, 12, 2), _normal(generator, 9, 2) + 1, polynomial_kernel


def _mmd_with(
    x: Tensor, y: Tensor, kernel: Kernel, *, diagonal: bool = False, cross: float = -2.0, divisor: int = 1
) -> float:
    """The estimate with something changed: the diagonal kept, the cross term's factor, n² for n (n − 1)."""
    total = cross * float(kernel(x, y).mean())
    for points in (x, y):
        k, n = kernel(points, points), len(points)
        pairs = k.sum() - (0 if diagonal else k.trace())
        total += float(pairs) / (n * (n - divisor))
    return total


def _cost_inputs(generator: torch.Generator) -> tuple[Any, ...]:
    return tuple(int(n) for n in torch.randint(10, 500, (2,), generator=generator))


def _guided_inputs(generator: torch.Generator) -> tuple[Any, ...]:
    # As many coordinates as examples: a weight that is put along the wrong axis is then no error of shapes.
    w = 4 * torch.rand(4, generator=generator, dtype=torch.float64)
    return _normal(generator, 4, 4), _normal(generator, 4, 4), w


def _guide(conditional: Any, unconditional: Any, w: Any) -> Any:
    return conditional + w * (conditional - unconditional)


class _Told(nn.Module):
    """Any network with three classes, a fourth label for none, and perhaps a guidance weight."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.mix, self.class_shift, self.w_shift = (
            nn.Parameter(_normal(generator, *shape)) for shape in ((2, 2), (4, 2), (2,))
        )

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor, guidance: Tensor | None = None) -> Tensor:
        told = 0 if guidance is None else guidance[:, None] * self.w_shift
        return torch.tanh(z @ self.mix + self.class_shift[labels] + told + logsnr[:, None] / 10)


def _stage_one_inputs(generator: torch.Generator) -> tuple[Any, ...]:
    teacher = Denoiser(_Told(generator), "x", num_classes=3, null_class=True, bounded=False)
    student = Denoiser(_Told(generator), "v", num_classes=3, guidance_max=4.0, bounded=False)
    t = 0.1 + 0.8 * torch.rand(8, generator=generator, dtype=torch.float64)
    w = 4 * torch.rand(8, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (8,), generator=generator)
    return teacher, student, WEIGHTINGS["truncated"].loss, _normal(generator, 8, 2), t, labels, w


def _stage_one_observed(answer: Answer, teacher: Denoiser, student: Denoiser, *rest: Any) -> Any:
    """The losses, and the gradients of both networks' weights: what flows back is a part of the answer."""
    losses = answer(teacher, student, *rest)
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        return losses
    weights = [*student.network.parameters(), *teacher.network.parameters()]
    if not losses.requires_grad:
        return losses, [torch.zeros_like(weight) for weight in weights]
    return losses, list(torch.autograd.grad(losses.sum(), weights, allow_unused=True, materialize_grads=True))


def _stage_one(
    teacher: Denoiser,
    student: Denoiser,
    loss: Loss,
    z: Tensor,
    t: Tensor,
    labels: Tensor,
    w: Tensor,
    *,
    teacher_w: Tensor | None = None,
    student_w: Tensor | None = None,
) -> Tensor:
    """Stage one's losses, or with other weights for one of the two."""
    with torch.no_grad():
        target = teacher(z, t, labels, w if teacher_w is None else teacher_w)
    return loss(target, student(z, t, labels, w if student_w is None else student_w))


def _not_detached(
    teacher: Denoiser, student: Denoiser, loss: Loss, z: Tensor, t: Tensor, labels: Tensor, w: Tensor
) -> Tensor:
    return loss(teacher(z, t, labels, w), student(z, t, labels, w))


def _student_guided(
    teacher: Denoiser, student: Denoiser, loss: Loss, z: Tensor, t: Tensor, labels: Tensor, w: Tensor
) -> Tensor:
    """Guidance put around the student: its answers with and without the class, against the plain teacher."""
    with torch.no_grad():
        target = teacher(z, t, labels)
    none = torch.full_like(labels, student.num_classes)
    pairs = zip(student(z, t, labels), student(z, t, none), strict=True)
    return loss(target, Prediction(*(_guide(a, b, w[:, None]) for a, b in pairs)))


def _unweighted(
    teacher: Denoiser, student: Denoiser, loss: Loss, z: Tensor, t: Tensor, labels: Tensor, w: Tensor
) -> Tensor:
    return _stage_one(teacher, student, lambda target, p: mse(target.x, p.x), z, t, labels, w)


def _student_frozen(*trial: Any) -> Tensor:
    with torch.no_grad():
        return _stage_one(*trial)


EXERCISES: dict[str, Exercise] = {
    "from_v": Exercise(
        "return (x, eps) from z = alpha x + sigma eps and v = alpha eps − sigma x",
        lambda z, alpha, sigma, v: (alpha * z - sigma * v, sigma * z + alpha * v),
        _from_v_inputs,
        {
            "v enters with the wrong sign: write z and v in x and eps, and see what is left": (
                lambda z, alpha, sigma, v: (alpha * z + sigma * v, sigma * z - alpha * v)
            ),
            "these are eps and x, in this order: return x first": (
                lambda z, alpha, sigma, v: (sigma * z + alpha * v, alpha * z - sigma * v)
            ),
            "alpha and sigma have changed places: at t = 0 (alpha = 1, sigma = 0) x must be z": (
                lambda z, alpha, sigma, v: (sigma * z - alpha * v, alpha * z + sigma * v)
            ),
            "x is right, but the sign of v in eps is that of x: eps = sigma z + …": (
                lambda z, alpha, sigma, v: (alpha * z - sigma * v, sigma * z - alpha * v)
            ),
            "z is not scaled: alpha² + sigma² = 1 puts alpha before z in x and sigma before z in eps": (
                lambda z, alpha, sigma, v: (z - sigma * v, z + alpha * v)
            ),
        },
    ),
    "ddim_step": Exercise(
        "return z_s from the prediction at time t: keep x and eps, take alpha and sigma of time s",
        ddim_step,
        _step_inputs,
        {
            "this is z_t again: alpha and sigma must be those of the time s that the step arrives at": (
                lambda schedule, z, t, s, p: schedule.alpha(t) * p.x + schedule.sigma(t) * p.eps
            ),
            "x and eps have changed places: alpha belongs to x, sigma to eps": (
                lambda schedule, z, t, s, p: schedule.alpha(s) * p.eps + schedule.sigma(s) * p.x
            ),
            "the noise is subtracted: z_s = alpha_s x + sigma_s eps, with a plus": (
                lambda schedule, z, t, s, p: schedule.alpha(s) * p.x - schedule.sigma(s) * p.eps
            ),
            "the ratio sigma_s / sigma_t is missing: z − alpha_t x is sigma_t eps, and sigma_s eps is asked for": (
                lambda schedule, z, t, s, p: schedule.alpha(s) * p.x + (z - schedule.alpha(t) * p.x)
            ),
            "sigma_s multiplies z instead of eps: z still holds the data, eps does not": (
                lambda schedule, z, t, s, p: schedule.alpha(s) * p.x + schedule.sigma(s) * z
            ),
            "v took the place of eps: z_s = alpha_s x + sigma_s eps": (
                lambda schedule, z, t, s, p: schedule.alpha(s) * p.x + schedule.sigma(s) * p.v
            ),
        },
    ),
    "truncated_weight": Exercise(
        "return w = max(alpha²/sigma², 1) from logsnr = log(alpha²/sigma²)",
        lambda logsnr: torch.exp(logsnr).clamp(min=1),
        lambda generator: (4 * _normal(generator, 16),),
        {
            "this is the minimum: the floor keeps the weight from falling BELOW 1": (
                lambda logsnr: torch.exp(logsnr).clamp(max=1)
            ),
            "this is max(alpha/sigma, 1): log-SNR is the log of alpha² / sigma², so no halving is needed": (
                lambda logsnr: torch.exp(logsnr / 2).clamp(min=1)
            ),
            "the sign of logsnr is turned: this grows towards noise, SNR grows towards data": (
                lambda logsnr: torch.exp(-logsnr).clamp(min=1)
            ),
            "the floor is put on the log-SNR, not on the SNR: compare exp(logsnr) with 1": (
                lambda logsnr: logsnr.clamp(min=1)
            ),
            "this is SNR + 1, the v-loss's weight: take the larger of the two, not their sum": (
                lambda logsnr: torch.exp(logsnr) + 1
            ),
            "the floor is missing: this is plain SNR, which forgets the noisiest times": torch.exp,
        },
    ),
    "solve_target": Exercise(
        "solve z_end = alpha_end x̃ + (sigma_end / sigma_t)(z − alpha_t x̃) for x̃",
        _solve,
        _solve_inputs,
        {
            "the denominator is missing: collect both terms with x̃ and divide by their factor": (
                lambda schedule, z, t, z_end, t_end: z_end - schedule.sigma(t_end) / schedule.sigma(t) * z
            ),
            "the ratio is upside down: it is sigma_end / sigma_t, below 1": (
                lambda schedule, z, t, z_end, t_end: (
                    (z_end - schedule.sigma(t) / schedule.sigma(t_end) * z)
                    / (schedule.alpha(t_end) - schedule.sigma(t) / schedule.sigma(t_end) * schedule.alpha(t))
                )
            ),
            "the ratio sigma_end / sigma_t is forgotten": (
                lambda schedule, z, t, z_end, t_end: (z_end - z) / (schedule.alpha(t_end) - schedule.alpha(t))
            ),
            "a sign: (sigma_end / sigma_t) alpha_t x̃, brought to the other side, is a minus in the denominator": (
                lambda schedule, z, t, z_end, t_end: (
                    (z_end - schedule.sigma(t_end) / schedule.sigma(t) * z)
                    / (schedule.alpha(t_end) + schedule.sigma(t_end) / schedule.sigma(t) * schedule.alpha(t))
                )
            ),
            "t and t_end have changed places": (
                lambda schedule, z, t, z_end, t_end: _solve(schedule, z, t_end, z_end, t)
            ),
        },
    ),
    "student_times": Exercise(
        "return (t, t_mid, t_end) of the student's step i of N: t = i/N, t_mid = t − 0.5/N, t_end = t − 1/N",
        lambda i, steps: (i / steps, (i - 0.5) / steps, (i - 1) / steps),
        _grid_inputs,
        {
            "the grid is off by one: i counts from 1, and i = N must give t = 1": (
                lambda i, steps: ((i - 1) / steps, (i - 1.5) / steps, (i - 2) / steps)
            ),
            "t_mid and t_end have changed places: time falls, t > t_mid > t_end": (
                lambda i, steps: (i / steps, (i - 1) / steps, (i - 0.5) / steps)
            ),
            "these are two steps of the STUDENT's: its teacher's steps are half as long": (
                lambda i, steps: (i / steps, (i - 1) / steps, (i - 2) / steps)
            ),
            "this is the grid of 2N: the student's step ends at t − 1/N, its middle is t − 0.5/N": (
                lambda i, steps: (i / steps, (i - 0.25) / steps, (i - 0.5) / steps)
            ),
            "time runs the wrong way: sampling goes from t = 1 down to 0": (
                lambda i, steps: (i / steps, (i + 0.5) / steps, (i + 1) / steps)
            ),
        },
    ),
    "rungs": Exercise(
        "return [(steps, updates), …] of every halving from `first` to 1, twice the updates for 2 and 1 steps",
        _rungs,
        _rungs_inputs,
        {
            "the first teacher is no student: the first round ends at first/2 steps": (
                lambda first, updates: [(first, updates), *_rungs(first, updates)]
            ),
            "the last round is missing: halve once more, to 1 step": lambda first, updates: _rungs(first, updates)[
                :-1
            ],
            "the halvings to 2 and to 1 step get twice the updates": (
                lambda first, updates: [(steps, updates) for steps, _ in _rungs(first, updates)]
            ),
            "this is one jump: each round halves the steps of the one before": lambda first, updates: [
                (1, 2 * updates)
            ],
            "the order is turned: the ladder goes down": lambda first, updates: _rungs(first, updates)[::-1],
        },
    ),
    "mmd2": Exercise(
        "return mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{i,j} k(x_i, y_j)",
        mmd2_unbiased,
        _mmd_inputs,
        {
            "the diagonal is in: k(x_i, x_i) compares a point with itself and makes the estimate too large": (
                lambda x, y, kernel: _mmd_with(x, y, kernel, diagonal=True, divisor=0)
            ),
            "the diagonal is left out of the sum but counted in the mean: there are n (n − 1) pairs": (
                lambda x, y, kernel: _mmd_with(x, y, kernel, divisor=0)
            ),
            "the factor 2 of the cross term is missing: equal distributions must give 0": (
                lambda x, y, kernel: _mmd_with(x, y, kernel, cross=-1.0)
            ),
            "the cross term is added: it measures likeness, so it lowers the distance": (
                lambda x, y, kernel: _mmd_with(x, y, kernel, cross=2.0)
            ),
            "a square root is taken: the SQUARED distance is unbiased (and may be negative), its root is not": (
                lambda x, y, kernel: mmd2_unbiased(x, y, kernel) ** 0.5
            ),
        },
    ),
    "round_cost": Exercise(
        "return (forward, backward): how often a network is evaluated, and propagated back through, in one round",
        lambda updates, batch: (3 * updates * batch, updates * batch),
        _cost_inputs,
        {
            "the teacher is forgotten: it runs twice for every example": (
                lambda updates, batch: (updates * batch, updates * batch)
            ),
            "two forward passes an example are too few: the teacher runs twice, and the student once": (
                lambda updates, batch: (2 * updates * batch, updates * batch)
            ),
            "the teacher is frozen: nothing is propagated back through it": (
                lambda updates, batch: (3 * updates * batch, 3 * updates * batch)
            ),
            "this is the cost of one example an update: multiply by the batch": (
                lambda updates, batch: (3 * updates, updates)
            ),
            "forward and backward have changed places": lambda updates, batch: (
                updates * batch,
                3 * updates * batch,
            ),
        },
    ),
    "guided_x": Exercise(
        "return (1 + w) x(z, class) − w x(z, no class), with a weight w of its own for each example",
        lambda conditional, unconditional, w: _guide(conditional, unconditional, w[:, None]),
        _guided_inputs,
        {
            "this is the convention of a guidance scale s = w + 1: at w = 0 it gives x(z, no class), "
            "and should give x(z, class)": lambda c, u, w: _guide(u, c, -w[:, None]),
            "class and no class have changed places: this leads away from the class": lambda c, u, w: _guide(
                u, c, w[:, None]
            ),
            "the sign of w is turned: w > 0 leads from no class to the class and beyond, for x as for eps": (
                lambda c, u, w: _guide(c, u, -w[:, None])
            ),
            "x(z, no class) is added: the factors 1 + w and −w must add up to 1": (
                lambda c, u, w: _guide(c, -u, w[:, None])
            ),
            "w lies along the wrong axis, one for each coordinate: w[:, None] makes it one for each example": (
                lambda c, u, w: _guide(c, u, w)
            ),
            "all examples are guided by the first one's w: keep a w for each": lambda c, u, w: _guide(c, u, w[0]),
            "all examples are guided by the mean w: keep a w for each": lambda c, u, w: _guide(c, u, w.mean()),
        },
    ),
    "stage_one": Exercise(
        "return loss(target, prediction) `[B]`: the teacher guided by w is the target, the student is told w",
        _stage_one,
        _stage_one_inputs,
        {
            "the target is not detached: the teacher is fixed, so ask it within torch.no_grad()": _not_detached,
            "nothing flows back into the student: only the teacher belongs within torch.no_grad()": _student_frozen,
            "the student is not told w: one answer cannot suit all weights": (
                lambda teacher, student, loss, z, t, labels, w: _stage_one(
                    teacher, student, loss, z, t, labels, w, student_w=torch.zeros_like(w)
                )
            ),
            "the teacher is not guided: its target is that of w = 0, and the student learns to ignore w": (
                lambda teacher, student, loss, z, t, labels, w: _stage_one(
                    teacher, student, loss, z, t, labels, w, teacher_w=torch.zeros_like(w)
                )
            ),
            "the student is guided instead of the teacher: guide the target, and let the student answer in one "
            "call": _student_guided,
            "the teacher is guided by w + 1, a guidance scale: give it w, as the student is": (
                lambda teacher, student, loss, z, t, labels, w: _stage_one(
                    teacher, student, loss, z, t, labels, w, teacher_w=w + 1
                )
            ),
            "all examples share the mean w: draw one for each, and give each its own": (
                lambda teacher, student, loss, z, t, labels, w: _stage_one(
                    teacher, student, loss, z, t, labels, w.mean().expand(len(w))
                )
            ),
            "the loss is not weighted: this is the plain x-MSE; use the `loss` that is given": _unweighted,
        },
        _stage_one_observed,
    ),
}
