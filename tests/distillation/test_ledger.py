"""The ledger against closed forms: one Gaussian, whose flow and whose DDIM steps are known by hand."""

import math

import pytest
import torch
from torch import Tensor

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.samplers import sample
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.distillation.ledger import ledger, length, measure_ledger
from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLP, MLPConfig
from tests.diffusion.test_mixture import mixture

UNBOUNDED = CosineSchedule(-math.inf, math.inf)


def noise(n: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)


def network(seed: int, steps: int | None) -> Denoiser:
    """An untrained network that says something: its last layer does not begin at zero."""
    torch.manual_seed(seed)
    mlp = MLP(MLPConfig((2,), width=16, blocks=1, embedding_channels=8))
    torch.nn.init.normal_(mlp.last.weight, std=0.1)
    return Denoiser(mlp, "v", UNBOUNDED, bounded=False, steps=steps)


def test_terms_add_up_with_all_of_them() -> None:
    teacher, students = network(0, None), [network(k, k) for k in (8, 4, 2, 1)]
    book = measure_ledger(teacher, students, noise(), mixture().denoiser(UNBOUNDED))
    assert list(book.terms) == ["discretisation", "model", "16 → 8", "8 → 4", "4 → 2", "2 → 1"]
    assert book.residual <= 1e-6
    # The total, from samples drawn apart from the ledger's.
    flow = sample(mixture().denoiser(UNBOUNDED), noise().double(), 512, "heun")
    torch.testing.assert_close(book.total, sample(students[-1], noise()).double() - flow)
    torch.testing.assert_close(
        book.terms["4 → 2"], (sample(students[2], noise()) - sample(students[1], noise())).double()
    )
    torch.testing.assert_close(book.trail()[0], flow)
    torch.testing.assert_close(book.trail()[-1], book.end)


def test_residual_sees_a_missing_term() -> None:
    book = measure_ledger(network(0, None), [network(2, 2), network(1, 1)], noise())
    del book.terms["4 → 2"]
    assert book.residual > 1e-3


def test_one_gaussian_by_hand() -> None:
    """For N(mu, s² I) every step is linear about alpha mu, so both exact terms have a closed form.

    On the flow (z − alpha mu) / sqrt(alpha² s² + sigma²) stays the same: exact_∞ = mu + s z. A DDIM step t -> s
    multiplies z − alpha mu by (alpha_s alpha_t s² + sigma_s sigma_t) / (alpha_t² s² + sigma_t²).
    """
    mu, std, steps = torch.tensor([0.7, -0.3], dtype=torch.float64), 0.5, 8
    gaussian = GaussianMixture(mu[None], torch.tensor([std], dtype=torch.float64)).denoiser(UNBOUNDED)
    z = noise(dtype=torch.float64)
    factor = 1.0
    for i in range(steps, 0, -1):
        a, b = math.pi / 2 * i / steps, math.pi / 2 * (i - 1) / steps
        numerator = math.cos(b) * math.cos(a) * std**2 + math.sin(b) * math.sin(a)
        factor *= numerator / ((math.cos(a) * std) ** 2 + math.sin(a) ** 2)
    student = network(1, steps // 2)
    book = measure_ledger(gaussian, [student], z.float(), gaussian)
    z = z.float().double()
    torch.testing.assert_close(book.start, mu + std * z, rtol=0, atol=5e-5)
    torch.testing.assert_close(book.terms["discretisation"], (factor - std) * z, rtol=0, atol=5e-5)
    # The teacher is the closed form itself, so the model has no error but float32's.
    assert book.lengths["model"].max() < 1e-5


def test_triangle_inequality_and_cancelling() -> None:
    book = measure_ledger(network(0, None), [network(2, 2), network(1, 1)], noise())
    assert book.slack.min() >= -1e-12
    back_and_forth = {4: torch.zeros(1, 2), 2: torch.ones(1, 2), 1: torch.zeros(1, 2)}
    book = ledger(back_and_forth)
    torch.testing.assert_close(book.slack, torch.tensor([2.0], dtype=torch.float64))
    assert float(length(book.total)) == 0


def test_images_have_no_exact_terms() -> None:
    samples = {k: torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(k)) for k in (8, 4, 2)}
    book = ledger(samples)
    assert list(book.terms) == ["8 → 4", "4 → 2"]
    torch.testing.assert_close(book.total, samples[2].double() - samples[8].double())
    assert book.residual <= 1e-6
    by_hand = (samples[4] - samples[8]).double().pow(2).sum((1, 2, 3)).sqrt() / 4  # 16 elements
    torch.testing.assert_close(book.lengths["8 → 4"], by_hand)


@pytest.mark.parametrize("counts", [(8,), (8, 2), (6, 4, 2)])
def test_a_missing_rung_is_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(PdlabError, match="every rung"):
        ledger({k: torch.zeros(1, 2) for k in counts})


def test_half_of_the_exact_terms_and_mixed_shapes_are_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(PdlabError, match="both"):
        ledger({2: x, 1: x}, exact_steps=x)
    with pytest.raises(PdlabError, match="one shape"):
        ledger({2: x, 1: torch.zeros(2, 2)})
