"""The solved target: one student step lands where the teacher's two land, everywhere, in float32."""

import math

import pytest
import torch
from torch import Tensor, nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import ddim_step, sample
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.distillation.target import student_target
from tests.diffusion.test_mixture import mixture

OUTPUTS = ("x", "eps", "v", "both")
BOUNDED, UNBOUNDED = CosineSchedule(), CosineSchedule(-math.inf, math.inf)
COUNTS = [1, 2, 3, 4, 5, 8, 16, 31, 64, 100, 256, 1000, 1024]


class Teacher(nn.Module):
    """A smooth nonlinear network of points `[B, 2]`, `double`d for outputs of both."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.copies = 2 if output == "both" else 1

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        level = torch.atan(torch.exp(-logsnr / 2))[:, None]
        raw = torch.sin(2 * z + level) + 0.5 * torch.cos(3 * level) * z.flip(1)
        return torch.cat([raw, 0.7 * raw.flip(1) + z], 1) if self.copies == 2 else raw


def two_steps(teacher: Denoiser, z: Tensor, i: Tensor, steps: int) -> Tensor:
    """The teacher's two DDIM steps, as the sampler would take them; the last returns x̂ itself."""
    for k in (0, 1):
        t, s = (2 * i - k) / (2 * steps), (2 * i - k - 1) / (2 * steps)
        p = teacher(z, t)
        t, s = per_example(t, z), per_example(s, z)
        z = torch.where(s == 0, p.x, ddim_step(teacher.schedule, z, t, s, p))
    return z


def grid(steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every i = 1 … N, and a z for each."""
    i = torch.arange(1, steps + 1, dtype=dtype)
    z = torch.randn(steps, 2, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    return i, z.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("schedule", [BOUNDED, UNBOUNDED], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_one_step_lands_on_two(output: str, schedule: CosineSchedule, dtype: torch.dtype, tolerance: float) -> None:
    if output == "eps" and schedule is UNBOUNDED:
        schedule = CosineSchedule(-20, math.inf)  # eps is refused at alpha = 0
    teacher = Denoiser(Teacher(output), output, schedule)
    for steps in COUNTS:
        i, z = grid(steps, dtype)
        t, s = (per_example(v, z) for v in (i / steps, (i - 1) / steps))
        target = student_target(teacher, z, i, steps).prediction
        one = torch.where(s == 0, target.x, ddim_step(schedule, z, t, s, target))
        two = two_steps(teacher, z, i, steps)
        error = (one - two).norm(dim=1) / two.norm(dim=1)
        assert error.max() <= tolerance, (steps, int(error.argmax()) + 1, float(error.max()))


@pytest.mark.parametrize("steps", [2, 4, 64, 1024])
def test_target_is_the_papers_fraction(steps: int) -> None:
    """Algorithm 2's formula word for word, in float64."""
    teacher = Denoiser(Teacher("v"), "v", BOUNDED)
    i, z = grid(steps, torch.float64)
    i, z = i[1:], z[1:]  # i = 1 is the last step, which returns x̂
    target = student_target(teacher, z, i, steps)
    t, mid, end = (per_example(v, z) for v in (i / steps, (i - 0.5) / steps, (i - 1) / steps))
    a, s = BOUNDED.alpha, BOUNDED.sigma
    x = teacher(z, i / steps).x
    z_mid = a(mid) * x + s(mid) / s(t) * (z - a(t) * x)
    x_mid = teacher(z_mid, (i - 0.5) / steps).x
    z_end = a(end) * x_mid + s(end) / s(mid) * (z_mid - a(mid) * x_mid)
    ratio = s(end) / s(t)
    expected = (z_end - ratio * z) / (a(end) - ratio * a(t))
    torch.testing.assert_close(target.prediction.x, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(a(t) * target.prediction.x + s(t) * target.prediction.eps, z)


def test_float32_target_keeps_its_digits_where_the_published_form_does_not() -> None:
    """At t = 1, N = 1024 the denominator of the fraction is 1.5e-3."""
    teacher = Denoiser(Teacher("x"), "x", BOUNDED)
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    i = torch.full((64,), 1024.0)
    single = student_target(teacher, z, i, 1024).prediction.x
    double = student_target(teacher, z.double(), i.double(), 1024).prediction.x
    assert (single - double).abs().max() < 2e-6


def test_the_last_step_takes_the_second_prediction_and_the_others_do_not() -> None:
    teacher = mixture().denoiser(BOUNDED)
    i, z = grid(4, torch.float64)
    target = student_target(teacher, z, i, 4)
    torch.testing.assert_close(target.prediction.x[0], target.teacher[1].x[0], rtol=1e-12, atol=0)
    assert ((target.prediction.x - target.teacher[1].x)[1:].norm(dim=1) > 1e-3).all()
    # and it lies between the two, nearer to the second
    first, second = target.teacher
    towards = (target.prediction.x - first.x).norm(dim=1) / (second.x - first.x).norm(dim=1)
    assert ((towards > 0.5) & (towards <= 1 + 1e-9)).all()


def test_a_swapped_midpoint_or_the_second_prediction_would_miss() -> None:
    """The landing test can fail: two mistakes seen in public code are far outside its tolerance."""
    teacher, steps = Denoiser(Teacher("v"), "v", BOUNDED), 8
    i, z = grid(steps, torch.float64)
    i, z = i[1:], z[1:]
    two = two_steps(teacher, z, i, steps)
    t, s, mid = (per_example(v, z) for v in (i / steps, (i - 1) / steps, (i - 0.5) / steps))
    from pdlab.diffusion.prediction import from_x

    second = student_target(teacher, z, i, steps).teacher[1].x
    landed = ddim_step(BOUNDED, z, t, s, from_x(z, BOUNDED.alpha(t), BOUNDED.sigma(t), second))
    assert ((landed - two).norm(dim=1) > 1e-3).all()
    z_end = ddim_step(BOUNDED, z, t, s, teacher(z, i / steps))  # t' and t'' swapped
    swapped = ddim_step(BOUNDED, z_end, s, mid, teacher(z_end, (i - 1) / steps + 1e-9))
    assert (((swapped - two).norm(dim=1)) > 1e-3).all()


def test_teacher_is_not_clipped_and_gets_no_gradient() -> None:
    class Far(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))

        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
            return self.scale * torch.ones_like(z)

    target = student_target(Denoiser(Far(), "x"), torch.randn(4, 2), torch.tensor([1.0, 2, 3, 4]), 4)
    torch.testing.assert_close(target.prediction.x, torch.full((4, 2), 3.0))
    assert not target.prediction.x.requires_grad


@pytest.mark.parametrize("schedule", [BOUNDED, UNBOUNDED])
@pytest.mark.parametrize("hops", [2, 3, 4, 8])
def test_a_step_of_many_hops_lands_where_the_teachers_steps_do(schedule: CosineSchedule, hops: int) -> None:
    """Against as many plain DDIM steps of the teacher, at every time of a grid of 4 steps, in float32 too."""
    teacher, steps = mixture().denoiser(schedule), 4
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        i = torch.arange(1, steps + 1, dtype=dtype)
        z = torch.randn(steps, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
        target = student_target(teacher, z, i, steps, hops=hops)
        assert len(target.teacher) == hops
        here = z
        for k in range(hops):
            t, s = ((i - j / hops) / steps for j in (k, k + 1))
            prediction = teacher(here, t)
            tb, sb = per_example(t, z), per_example(s, z)
            here = torch.where(sb == 0, prediction.x, ddim_step(schedule, here, tb, sb, prediction))
        t, s = per_example(i / steps, z), per_example((i - 1) / steps, z)
        landed = torch.where(s == 0, target.prediction.x, ddim_step(schedule, z, t, s, target.prediction))
        assert (landed - here).norm(dim=1).max() < tolerance * 10


def test_one_step_of_all_hops_teaches_what_the_sampler_draws() -> None:
    teacher = mixture().denoiser()
    z = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = student_target(teacher, z, torch.ones(8, dtype=torch.float64), 1, hops=8)
    torch.testing.assert_close(target.prediction.x, sample(teacher, z, 8))
