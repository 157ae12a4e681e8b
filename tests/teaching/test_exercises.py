"""Wrong answers, written as learners write them: each is told its own hint, and the right one passes."""

import re

import pytest
import torch
from torch import Tensor

from pdlab.diffusion.prediction import from_v, from_x
from pdlab.diffusion.samplers import ddim_step_angle
from pdlab.diffusion.weighting import WEIGHTINGS
from pdlab.distillation.rounds import ladder, round_settings
from pdlab.teaching.exercises import EXERCISES, Answer, NotYet, check
from pdlab.training.cost import Cost
from pdlab.training.presets import Optimization

# The right answers, by another way than the specification's wherever there is one.


def right_from_v(z, alpha, sigma, v):
    p = from_v(z, alpha, sigma, v)
    return p.x, p.eps


def right_solve(schedule, z, t, z_end, t_end):
    """The 2×2 system for (x, eps) at both ends, instead of the published quotient."""
    rows = [[schedule.alpha(t), schedule.sigma(t)], [schedule.alpha(t_end), schedule.sigma(t_end)]]
    matrix = torch.stack([torch.stack(row) for row in rows])
    both = torch.linalg.solve(matrix, torch.stack([z.flatten(), z_end.flatten()]))
    return both[0].reshape(z.shape)


def right_rungs(first, updates):
    settings = Optimization(updates, 1, 1e-3)
    return [(n, round_settings(settings, n).updates) for n in ladder(first)]


def right_mmd(x, y, kernel):
    def within(p):
        pairs = [(i, j) for i in range(len(p)) for j in range(len(p)) if i != j]
        return sum(float(kernel(p[i : i + 1], p[j : j + 1])) for i, j in pairs) / len(pairs)

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


def right_cost(updates, batch):
    cost = Cost.of(Optimization(updates, batch, 1e-3), 1, 2, 0.0)
    return cost.forward_evaluations, cost.backward_evaluations


def right_stage_one(teacher, student, loss, z, t, labels, w):
    """Two evaluations written out, instead of the denoiser's one of twice the batch."""
    schedule = teacher.schedule
    none = torch.full_like(labels, teacher.num_classes)
    with torch.no_grad():
        x = (1 + w[:, None]) * teacher(z, t, labels).x - w[:, None] * teacher(z, t, none).x
    target = from_x(z, schedule.alpha(t)[:, None], schedule.sigma(t)[:, None], x)
    return loss(target, student(z, t, labels, w))


RIGHT: dict[str, Answer] = {
    "from_v": right_from_v,
    "ddim_step": ddim_step_angle,
    "truncated_weight": WEIGHTINGS["truncated"].weight,
    "solve_target": right_solve,
    "student_times": lambda i, N: (1 - (N - i) / N, (2 * i - 1) / (2 * N), 1 - (N - i + 1) / N),
    "rungs": right_rungs,
    "mmd2": right_mmd,
    "round_cost": right_cost,
    "guided_x": lambda c, u, w: u + torch.einsum("b,bd->bd", 1 + w, c - u),
    "stage_one": right_stage_one,
}


def ratio_forgotten(schedule, z, t, s, p):
    return schedule.alpha(s) * p.x + 1.0 * (z - schedule.alpha(t) * p.x)


def upside_down(schedule, z, t, z_end, t_end):
    r = schedule.sigma(t) / schedule.sigma(t_end)
    return (z_end - r * z) / (schedule.alpha(t_end) - r * schedule.alpha(t))


def plus_below(schedule, z, t, z_end, t_end):
    r = schedule.sigma(t_end) / schedule.sigma(t)
    return (z_end - r * z) / (schedule.alpha(t_end) + r * schedule.alpha(t))


def biased(x, y, kernel):
    return kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()


def off_diagonal(points: Tensor, kernel, divisor: int) -> Tensor:
    k = kernel(points, points)
    return (k - torch.diag(k.diag())).sum() / (len(points) * (len(points) - divisor))


def all_updates_equal(first, updates):
    return [(n, updates) for n in ladder(first)]


def stage_one(teacher, student, loss, z, t, labels, teachers_w, students_w):
    with torch.no_grad():
        target = teacher(z, t, labels, teachers_w)
    return loss(target, student(z, t, labels, students_w))


def student_guided_instead(teacher, student, loss, z, t, labels, w):
    with torch.no_grad():
        target = teacher(z, t, labels)
    c, u = student(z, t, labels), student(z, t, torch.full_like(labels, 3))
    x = (1 + w[:, None]) * c.x - w[:, None] * u.x
    alpha, sigma = student.schedule.alpha(t)[:, None], student.schedule.sigma(t)[:, None]
    return loss(target, from_x(z, alpha, sigma, x))


def mean_of(w):
    return torch.full_like(w, float(w.mean()))


def nothing_learns(*trial):
    with torch.no_grad():
        return right_stage_one(*trial)


def plain_mse(teacher, student, loss, z, t, labels, w):
    with torch.no_grad():
        target = teacher(z, t, labels, w)
    return ((target.x - student(z, t, labels, w).x) ** 2).mean(1)


# (exercise, a part of the hint that it must be told, the wrong answer)
WRONG: list[tuple[str, str, Answer]] = [
    ("from_v", "wrong sign", lambda z, a, s, v: (a * z + s * v, s * z - a * v)),
    ("from_v", "return x first", lambda z, a, s, v: (s * z + a * v, a * z - s * v)),
    ("from_v", "changed places: at t = 0", lambda z, a, s, v: (s * z - a * v, a * z + s * v)),
    ("from_v", "x is right, but", lambda z, a, s, v: (a * z - s * v, s * z - a * v)),
    ("from_v", "not scaled", lambda z, a, s, v: (z - s * v, z + a * v)),
    ("ddim_step", "z_t again", lambda schedule, z, t, s, p: z),
    ("ddim_step", "x and eps have changed", lambda sc, z, t, s, p: sc.alpha(s) * p.eps + sc.sigma(s) * p.x),
    ("ddim_step", "subtracted", lambda sc, z, t, s, p: sc.alpha(s) * p.x - sc.sigma(s) * p.eps),
    ("ddim_step", "ratio sigma_s / sigma_t is missing", ratio_forgotten),
    ("ddim_step", "multiplies z", lambda sc, z, t, s, p: sc.alpha(s) * p.x + sc.sigma(s) * z),
    ("ddim_step", "v took the place", lambda sc, z, t, s, p: sc.alpha(s) * p.x + sc.sigma(s) * p.v),
    ("truncated_weight", "minimum", lambda logsnr: torch.minimum(logsnr.exp(), torch.ones_like(logsnr))),
    ("truncated_weight", "no halving", lambda logsnr: torch.exp(0.5 * logsnr).clamp_min(1)),
    ("truncated_weight", "sign of logsnr", lambda logsnr: torch.maximum((-logsnr).exp(), torch.ones_like(logsnr))),
    ("truncated_weight", "on the log-SNR", lambda logsnr: torch.maximum(logsnr, torch.ones_like(logsnr))),
    ("truncated_weight", "SNR + 1", lambda logsnr: 1 + logsnr.exp()),
    ("truncated_weight", "floor is missing", lambda logsnr: logsnr.exp()),
    ("solve_target", "denominator is missing", lambda sc, z, t, e, u: e - sc.sigma(u) / sc.sigma(t) * z),
    ("solve_target", "upside down", upside_down),
    ("solve_target", "is forgotten", lambda sc, z, t, e, u: (e - z) / (sc.alpha(u) - sc.alpha(t))),
    ("solve_target", "a minus in the denominator", plus_below),
    ("solve_target", "t and t_end", lambda sc, z, t, e, u: right_solve(sc, z, u, e, t)),
    ("student_times", "off by one", lambda i, N: ((i - 1) / N, (i - 1) / N - 0.5 / N, (i - 2) / N)),
    ("student_times", "changed places", lambda i, N: (i / N, i / N - 1 / N, i / N - 0.5 / N)),
    ("student_times", "two steps of the STUDENT's", lambda i, N: (i / N, i / N - 1 / N, i / N - 2 / N)),
    ("student_times", "grid of 2N", lambda i, N: (i / N, i / N - 0.25 / N, i / N - 0.5 / N)),
    ("student_times", "wrong way", lambda i, N: (i / N, i / N + 0.5 / N, i / N + 1 / N)),
    ("rungs", "no student", lambda first, u: [(first, u), *right_rungs(first, u)]),
    ("rungs", "last round is missing", lambda first, u: [r for r in right_rungs(first, u) if r[0] > 1]),
    ("rungs", "twice the updates", all_updates_equal),
    ("rungs", "one jump", lambda first, u: [(1, 2 * u)]),
    ("rungs", "goes down", lambda first, u: sorted(right_rungs(first, u))),
    ("mmd2", "diagonal is in", biased),
    (
        "mmd2",
        "counted in the mean",
        lambda x, y, k: off_diagonal(x, k, 0) + off_diagonal(y, k, 0) - 2 * k(x, y).mean(),
    ),
    ("mmd2", "factor 2", lambda x, y, k: off_diagonal(x, k, 1) + off_diagonal(y, k, 1) - k(x, y).mean()),
    ("mmd2", "is added", lambda x, y, k: off_diagonal(x, k, 1) + off_diagonal(y, k, 1) + 2 * k(x, y).mean()),
    ("mmd2", "square root", lambda x, y, k: torch.tensor(right_mmd(x, y, k)).sqrt()),
    ("round_cost", "forgotten", lambda updates, batch: (updates * batch, updates * batch)),
    ("round_cost", "too few", lambda updates, batch: (2 * updates * batch, updates * batch)),
    ("round_cost", "frozen", lambda updates, batch: (3 * updates * batch, 3 * updates * batch)),
    ("round_cost", "by the batch", lambda updates, batch: (3 * updates, updates)),
    ("round_cost", "changed places", lambda updates, batch: (updates * batch, 3 * updates * batch)),
    ("guided_x", "s = w + 1", lambda c, u, w: u + w[:, None] * (c - u)),
    ("guided_x", "changed places", lambda c, u, w: (1 + w[:, None]) * u - w[:, None] * c),
    ("guided_x", "sign of w", lambda c, u, w: (1 - w[:, None]) * c + w[:, None] * u),
    ("guided_x", "is added", lambda c, u, w: (1 + w[:, None]) * c + w[:, None] * u),
    ("guided_x", "wrong axis", lambda c, u, w: (1 + w) * c - w * u),
    ("guided_x", "first one's w", lambda c, u, w: (1 + float(w[0])) * c - float(w[0]) * u),
    ("guided_x", "the mean w", lambda c, u, w: (1 + w.mean()) * c - w.mean() * u),
    ("stage_one", "not detached", lambda te, st, loss, z, t, y, w: loss(te(z, t, y, w), st(z, t, y, w))),
    ("stage_one", "nothing flows back", nothing_learns),
    ("stage_one", "not told w", lambda te, st, loss, z, t, y, w: stage_one(te, st, loss, z, t, y, w, None)),
    ("stage_one", "not guided", lambda te, st, loss, z, t, y, w: stage_one(te, st, loss, z, t, y, None, w)),
    ("stage_one", "instead of the teacher", student_guided_instead),
    ("stage_one", "w + 1", lambda te, st, loss, z, t, y, w: stage_one(te, st, loss, z, t, y, 1 + w, w)),
    (
        "stage_one",
        "mean w",
        lambda te, st, loss, z, t, y, w: right_stage_one(te, st, loss, z, t, y, 0 * w + w.mean()),
    ),
    ("stage_one", "not weighted", plain_mse),
]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(name, RIGHT[name])
    assert capsys.readouterr().out.startswith(f"✓ {name}")


@pytest.mark.parametrize(("name", "hint", "answer"), WRONG, ids=[f"{name}: {hint}" for name, hint, _ in WRONG])
def test_every_planted_mistake_gets_its_own_hint(name: str, hint: str, answer: Answer) -> None:
    with pytest.raises(NotYet, match=re.escape(hint)) as caught:
        check(name, answer)
    others = [h for n, h, _ in WRONG if n == name and h != hint]
    assert not any(other in str(caught.value) for other in others)


@pytest.mark.parametrize("name", EXERCISES)
def test_every_mistake_that_is_known_is_planted(name: str) -> None:
    hints = [hint for n, hint, _ in WRONG if n == name]
    assert len(hints) >= 4
    assert len(hints) == len(EXERCISES[name].mistakes)
    for known in EXERCISES[name].mistakes:
        assert sum(hint in known for hint in hints) == 1, known


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_says_what_is_asked(name: str) -> None:
    def stub(*args: object) -> None:
        raise NotImplementedError

    with pytest.raises(NotYet, match=r"is not written yet: (return|solve)"):
        check(name, stub)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda z, a, s, v: None, "forgotten return"),
        (lambda z, a, s, v: "x", "forgotten return"),
        (lambda z, a, s, v: (z, None), "forgotten return"),
        (lambda z, a, s, v: z, "returned 8 numbers where 16"),
        (lambda z, a, s, v: (z / 0, z), "divided by zero"),
        (lambda z, a, s, v: (z, z), "not equal yet"),
        (lambda z, a, s, v: z @ z, "raised RuntimeError"),
    ],
)
def test_other_mistakes_are_explained_too(answer: Answer, hint: str) -> None:
    with pytest.raises(NotYet, match=re.escape(hint)):
        check("from_v", answer)


def test_the_hint_is_one_line_in_a_notebook() -> None:
    assert NotYet("a hint")._render_traceback_() == ["✗ a hint"]


def test_answers_of_lower_precision_pass() -> None:
    def in_float32(z: Tensor, alpha: Tensor, sigma: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return right_from_v(z.float(), alpha.float(), sigma.float(), v.float())

    check("from_v", in_float32)


def test_stage_ones_losses_without_a_gradient_of_their_own_are_read_too() -> None:
    """A number or a list is no tensor of losses, and says so."""
    for answer, hint in ((lambda *trial: 1.0, "numbers where"), (lambda *trial: None, "forgotten return")):
        with pytest.raises(NotYet, match=hint):
            check("stage_one", answer)
