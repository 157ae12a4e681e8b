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


def of_classes() -> GaussianMixture:
    m = mixture()
    return GaussianMixture(m.means, m.stds, m.log_weights.exp(), torch.tensor([1, 0, 1]))


@pytest.mark.parametrize("t", [0.0, 0.4])
def test_log_classes_are_the_joint_density(t: float) -> None:
    """Every component written out; the classes add up to the whole."""
    m, schedule, time = of_classes(), CosineSchedule(-math.inf, math.inf), torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    z = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joint = [
        torch.distributions.MultivariateNormal(alpha * mu, ((alpha * s) ** 2 + sigma**2) * torch.eye(2).double())
        .log_prob(z)
        .exp()
        * weight
        for mu, s, weight in zip(m.means, m.stds, m.log_weights.exp(), strict=True)
    ]
    got = m.log_classes(z, schedule.logsnr(time).expand(16)).exp()
    torch.testing.assert_close(got, torch.stack([joint[1], joint[0] + joint[2], sum(joint)], 1))


def test_guidance_follows_the_gradient_of_the_class() -> None:
    """x(z, c) − x(z, no class) = sigma²/alpha · grad log p(c | z), by autograd."""
    m, schedule = of_classes(), CosineSchedule()
    z = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    t, labels = torch.tensor(0.4, dtype=torch.float64), torch.arange(16) % 2
    logs = m.log_classes(z, schedule.logsnr(t).expand(16))
    (gradient,) = torch.autograd.grad((logs[torch.arange(16), labels] - logs[:, -1]).sum(), z)
    denoiser = m.denoiser(schedule)
    difference = denoiser(z, t, labels).x - denoiser(z, t).x
    torch.testing.assert_close(difference, schedule.sigma(t) ** 2 / schedule.alpha(t) * gradient)


def test_draws_come_with_their_class() -> None:
    m = of_classes()
    x, labels = m.labelled(4000, torch.Generator().manual_seed(0))
    assert torch.equal(x, m.sample(4000, torch.Generator().manual_seed(0)))
    assert labels is not None
    assert abs(float(labels.double().mean()) - 0.8) < 0.02
    near = (x[:, None] - m.means).norm(dim=-1).argmin(1)
    assert float((torch.tensor([1, 0, 1])[near] == labels).double().mean()) > 0.97
    assert mixture().labelled(3)[1] is None
