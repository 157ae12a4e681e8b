"""x, eps, v and both are one prediction; eps at alpha = 0 is refused."""

import math

import pytest
import torch
from torch import Tensor, nn

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import OUTPUTS, Prediction, clip_x, from_both, from_eps, from_v, from_x
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.errors import PdlabError

SCHEDULE = CosineSchedule()


def truth(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Prediction]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 3, 4, 4, generator=generator, dtype=dtype) * 2 - 1
    eps = torch.randn(16, 3, 4, 4, generator=generator, dtype=dtype)
    t = torch.linspace(0.02, 0.98, 16, dtype=dtype)
    alpha, sigma = per_example(SCHEDULE.alpha(t), x), per_example(SCHEDULE.sigma(t), x)
    return alpha * x + sigma * eps, alpha, sigma, Prediction(x, eps, alpha * eps - sigma * x)


def raw_of(output: str, p: Prediction) -> Tensor:
    return torch.cat([p.x, p.eps], 1) if output == "both" else getattr(p, output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_output_gives_all_three(output: str, dtype: torch.dtype) -> None:
    z, alpha, sigma, expected = truth(dtype)
    got = OUTPUTS[output](z, alpha, sigma, raw_of(output, expected))
    tolerance = 1e-12 if dtype is torch.float64 else 1e-4  # 1/alpha, 1/sigma reach 32 on these times
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_v_is_the_derivative_of_z_along_the_angle() -> None:
    _, alpha, sigma, p = truth()
    phi, h = torch.atan2(sigma, alpha), 1e-6
    z = lambda angle: torch.cos(angle) * p.x + torch.sin(angle) * p.eps  # noqa: E731
    torch.testing.assert_close((z(phi + h) - z(phi - h)) / (2 * h), p.v, rtol=1e-8, atol=1e-8)


def test_both_is_the_papers_reconciliation() -> None:
    z, alpha, sigma, p = truth()
    noise = torch.randn(2, *p.x.shape, generator=torch.Generator().manual_seed(1), dtype=p.x.dtype)
    x, eps = p.x + 0.1 * noise[0], p.eps + 0.1 * noise[1]
    expected = sigma**2 * x + alpha * (z - sigma * eps)
    torch.testing.assert_close(from_both(z, alpha, sigma, torch.cat([x, eps], 1)).x, expected)


@pytest.mark.parametrize(("output", "factor"), [("x", 1.0), ("eps", "sigma/alpha"), ("v", "sigma")])
def test_an_output_error_becomes_this_error_of_x(output: str, factor: float | str) -> None:
    z, alpha, sigma, p = truth()
    wrong = OUTPUTS[output](z, alpha, sigma, getattr(p, output) + 1e-3)
    by = {"sigma/alpha": sigma / alpha, "sigma": sigma}.get(str(factor), torch.ones_like(sigma))
    torch.testing.assert_close((wrong.x - p.x).abs(), (1e-3 * by).expand_as(p.x), rtol=1e-8, atol=1e-12)


def test_outputs_at_pure_noise() -> None:
    """At alpha = 0: z = eps, v = -x; x and v still mean something, eps does not determine x."""
    z = torch.randn(4, 2)
    zero, one = torch.zeros(()), torch.ones(())
    x = torch.rand(4, 2)
    torch.testing.assert_close(from_x(z, zero, one, x), Prediction(x, z, -x))
    torch.testing.assert_close(from_v(z, zero, one, -x), Prediction(x, z, -x))
    with pytest.raises(PdlabError, match=r"alpha = 0.*use output x, v or both"):
        from_eps(z, zero, one, z)


def test_an_eps_denoiser_is_refused_on_a_schedule_that_reaches_pure_noise() -> None:
    with pytest.raises(PdlabError, match="logsnr_min"):
        Denoiser(nn.Identity(), "eps", CosineSchedule(-math.inf, 20))
    Denoiser(nn.Identity(), "v", CosineSchedule(-math.inf, 20))
    with pytest.raises(PdlabError, match="x, eps, v, both"):
        Denoiser(nn.Identity(), "epsilon")


def test_clip_recomputes_eps_and_v() -> None:
    z, alpha, sigma, p = truth()
    clipped = clip_x(z, alpha, sigma, from_x(z, alpha, sigma, 2 * p.x))
    assert clipped.x.abs().max() <= 1
    torch.testing.assert_close(alpha * clipped.x + sigma * clipped.eps, z)
    torch.testing.assert_close(alpha * clipped.eps - sigma * clipped.x, clipped.v)


class Seen(nn.Module):
    """Remembers what it was given and answers in its weights' precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen = z.dtype, logsnr
        return z * self.weight


def test_a_denoiser_converts_in_the_precision_of_z() -> None:
    network = Seen().to(torch.bfloat16)
    z = torch.randn(3, 2)
    p = Denoiser(network, "v")(z, 0.5)
    assert network.seen[0] is torch.bfloat16
    assert {a.dtype for a in p} == {torch.float32}
    torch.testing.assert_close(network.seen[1], torch.zeros(3), atol=1e-6, rtol=0)
