"""alpha, sigma and logsnr against 50-digit references, and the schedule's own identities."""

import math

import mpmath
import pytest
import torch

from pdlab.diffusion.schedule import CosineSchedule, time_grid
from pdlab.errors import PdlabError

PAPER = CosineSchedule()
UNBOUNDED = CosineSchedule(-math.inf, math.inf)
TIMES = [0.0, 1e-6, 1 / 8192, 1 / 1024, 0.1, 0.25, 0.5, 0.75, 0.9, 1023 / 1024, 8191 / 8192, 1 - 2**-23, 1.0]


def reference(t: float, low: float, high: float) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """The paper's formula as it is written, in 50 digits: logsnr first, then alpha and sigma from it."""
    with mpmath.workdps(50):
        b = mpmath.atan(mpmath.exp(-mpmath.mpf(high) / 2))
        a = mpmath.atan(mpmath.exp(-mpmath.mpf(low) / 2)) - b
        logsnr = -2 * mpmath.log(mpmath.tan(a * mpmath.mpf(t) + b))
        alpha = mpmath.sqrt(1 / (1 + mpmath.exp(-logsnr)))
        return alpha, mpmath.sqrt(1 / (1 + mpmath.exp(logsnr))), logsnr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", TIMES)
def test_bounded_schedule_equals_the_papers_formula(t: float, dtype: torch.dtype) -> None:
    time = torch.tensor(t, dtype=dtype)
    alpha, sigma, logsnr = reference(float(time), -20, 20)
    tolerance = 4 * torch.finfo(dtype).eps
    assert abs(float(PAPER.alpha(time)) / float(alpha) - 1) < tolerance
    # phi = b + a t is rounded once more where b and a t are of one size: relative to t, hence 4 more ulp
    assert abs(float(PAPER.sigma(time)) / float(sigma) - 1) < 2 * tolerance
    assert abs(float(PAPER.logsnr(time)) - float(logsnr)) < 8 * tolerance


@pytest.mark.parametrize("t", TIMES[1:-1])
def test_unbounded_schedule_is_a_cosine(t: float) -> None:
    time = torch.tensor(t, dtype=torch.float32)
    with mpmath.workdps(50):
        angle = mpmath.pi / 2 * mpmath.mpf(float(time))
        assert abs(float(UNBOUNDED.alpha(time)) / float(mpmath.cos(angle)) - 1) < 1e-6
        assert abs(float(UNBOUNDED.sigma(time)) / float(mpmath.sin(angle)) - 1) < 1e-6


def test_ends() -> None:
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(PAPER.logsnr(ends), torch.tensor([20.0, -20.0]), rtol=1e-6, atol=0)
    assert UNBOUNDED.alpha(ends).tolist() == [1.0, 0.0]
    assert UNBOUNDED.sigma(ends).tolist() == [0.0, 1.0]
    assert UNBOUNDED.logsnr(ends).tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("schedule", [PAPER, UNBOUNDED, CosineSchedule(-math.inf, 12.0)])
def test_variance_preserving_monotone_and_invertible(schedule: CosineSchedule) -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))
    assert (schedule.logsnr(t).diff() < 0).all()
    torch.testing.assert_close(schedule.time(schedule.logsnr(t)), t)
    torch.testing.assert_close(schedule.phi(t), torch.atan(schedule.sigma(t) / schedule.alpha(t)))


def test_half_time_is_even_odds() -> None:
    assert abs(float(PAPER.logsnr(torch.tensor(0.5)))) < 1e-6


def test_time_grid() -> None:
    assert time_grid(1) == [1.0, 0.0]
    assert time_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    with pytest.raises(ValueError, match="at least one step"):
        time_grid(0)


def test_bounds_must_be_ordered() -> None:
    with pytest.raises(PdlabError, match="below"):
        CosineSchedule(20, -20)
