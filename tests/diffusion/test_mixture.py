"""The closed-form denoiser against the score of the noisy density, and against brute-force averages."""

import math

import pytest
import torch

from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.schedule import CosineSchedule


def mixture(dtype: torch.dtype = torch.float64) -> GaussianMixture:
    means = torch.tensor([[1.0, 0.5], [-0.8, 0.2], [0.1, -1.0]], dtype=dtype)
    stds, weights = torch.tensor([0.2, 0.1, 0.3], dtype=dtype), torch.tensor([0.5, 0.2, 0.3], dtype=dtype)
    return GaussianMixture(means, stds, weights)


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_tweedie(t: float) -> None:
    """E[x|z] = (z + sigma² grad log p(z)) / alpha, with p written out and differentiated by autograd."""
    schedule, m = CosineSchedule(), mixture()
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    z = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    components = [
        torch.distributions.MultivariateNormal(alpha * mu, ((alpha * s) ** 2 + sigma**2) * torch.eye(2).double())
        for mu, s in zip(m.means, m.stds, strict=True)
    ]
    log_p = torch.logsumexp(torch.stack([c.log_prob(z) for c in components], 1) + m.log_weights, 1)
    (score,) = torch.autograd.grad(log_p.sum(), z)
    got = m.denoiser(schedule)(z.detach(), t)
    torch.testing.assert_close(got.x, (z + sigma**2 * score).detach() / alpha)
    torch.testing.assert_close(got.eps, -sigma * score)


def test_posterior_mean_by_monte_carlo() -> None:
    """Average x over many draws, weighted by how well each explains z."""
    m, schedule, t = mixture(), CosineSchedule(), torch.tensor(0.5, dtype=torch.float64)
    x = m.sample(400_000, torch.Generator().manual_seed(1)).double()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    z = torch.tensor([[0.3, 0.1], [-0.5, -0.5]], dtype=torch.float64)
    weight = torch.softmax(-((z[:, None] - alpha * x) ** 2).sum(-1) / (2 * sigma**2), dim=1)
    torch.testing.assert_close(m.denoiser(schedule)(z, 0.5).x, weight @ x, rtol=0, atol=0.01)


def test_pure_noise_gives_the_mean_and_no_noise_gives_z() -> None:
    m = mixture()
    z = torch.randn(4, 2, dtype=torch.float64)
    mean = m.log_weights.exp() @ m.means
    torch.testing.assert_close(m(z, torch.full((4,), -math.inf).double()), mean.expand(4, 2))
    torch.testing.assert_close(m(z, torch.full((4,), math.inf).double()), z)


def test_sample_moments() -> None:
    m = mixture(torch.float32)
    x = m.sample(100_000, torch.Generator().manual_seed(2))
    torch.testing.assert_close(x.mean(0), m.log_weights.exp() @ m.means, rtol=0, atol=0.01)
