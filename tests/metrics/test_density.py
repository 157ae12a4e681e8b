"""Bits per dimension against closed forms: a Gaussian mixture, and points on a grid, of known probability."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.errors import PdlabError
from pdlab.metrics.card import Row
from pdlab.metrics.density import begin, by_bound, by_flow, check_density, level_cost

MEANS = torch.tensor([[0.8, -0.3, 0.1], [-0.5, 0.6, 0.4], [0.1, -0.7, -0.9]], dtype=torch.float64)
MIXTURE = GaussianMixture(MEANS, torch.tensor([0.2, 0.35, 0.1], dtype=torch.float64), torch.tensor([1.0, 2, 1]))
SCHEDULE = CosineSchedule(-20, 20)


def drawn(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = MIXTURE.sample(n, generator)
    return x.to(dtype), torch.randn(n, 3, generator=generator, dtype=torch.float64).to(dtype)


def exact(x: Tensor, eps: Tensor, schedule: CosineSchedule = SCHEDULE) -> Tensor:
    """log q(z_0|x) − log p(z_0) with the densities of torch.distributions, at log-SNR 13.3."""
    alpha2 = 1 / (1 + math.exp(-13.3))
    alpha, sigma = math.sqrt(alpha2), math.sqrt(1 - alpha2)
    z = alpha * x + sigma * eps
    spread = torch.sqrt(alpha2 * MIXTURE.stds**2 + sigma**2)[:, None].expand(3, 3)
    of = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)),
        torch.distributions.Independent(torch.distributions.Normal(alpha * MEANS, spread), 1),
    )
    return torch.distributions.Normal(alpha * x, sigma).log_prob(z).sum(1) - of.log_prob(z)


def bits(nats: Tensor) -> Tensor:
    return nats / (3 * math.log(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_flow_gives_the_density_of_the_mixture(dtype: torch.dtype) -> None:
    x, eps = drawn(32, dtype)
    found = by_flow(MIXTURE.denoiser(SCHEDULE), x, eps, trace="exact", tolerance=1e-6)
    assert bits(found.nats - exact(x.double(), eps.double())).abs().max() < 0.01
    assert found.nfe > 20


def test_hutchinson_s_trace_is_right_in_the_mean() -> None:
    x, eps = drawn(8)
    denoiser, truth = MIXTURE.denoiser(SCHEDULE), exact(x, eps)
    generator = torch.Generator().manual_seed(1)
    tries = [by_flow(denoiser, x, eps, generator=generator, tolerance=1e-4).nats for _ in range(40)]
    apart = bits(torch.stack(tries).mean(0) - truth)
    assert apart.abs().mean() < 3 * bits(torch.stack(tries).std(0) / math.sqrt(40)).mean() + 0.01


def test_the_bound_of_a_perfect_denoiser_is_tight() -> None:
    """In expectation over z_0, so both are averaged over many noises."""
    x, _ = drawn(12)
    generator = torch.Generator().manual_seed(2)
    many = x.repeat(2000, 1)
    found = by_bound(MIXTURE.denoiser(SCHEDULE), many, draws=100, generator=generator).nats
    eps = torch.randn(many.shape, generator=generator, dtype=torch.float64)
    apart = bits(found - exact(many, eps)).view(2000, 12).mean(0)
    assert abs(float(apart.mean())) < 0.01
    assert apart.abs().max() < 0.06, apart


def test_the_bound_of_a_worse_denoiser_is_above_it() -> None:
    x, _ = drawn(64)
    perfect = MIXTURE.denoiser(SCHEDULE)
    worse = Denoiser(lambdas(lambda z, logsnr: 0.9 * MIXTURE(z, logsnr)), "x", SCHEDULE, bounded=False)
    costs = [by_bound(d, x, draws=500, generator=torch.Generator().manual_seed(3)).nats for d in (perfect, worse)]
    assert float(bits(costs[1] - costs[0]).mean()) > 0.05


class lambdas(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.forward = function


@pytest.mark.parametrize("method", ["flow", "bound"])
def test_images_of_known_probability(method: str) -> None:
    """Four images of two pixels on the grid of 256 levels: −log P is known, and so is that of a level given z_0."""
    pixels = torch.tensor([[10, 200], [11, 200], [128, 3], [255, 0]])
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    grid = pixels.double() / 127.5 - 1
    denoiser = GaussianMixture(grid, torch.zeros(4, dtype=torch.float64), weights).denoiser(SCHEDULE)
    x = grid.repeat(200 if method == "flow" else 2000, 1)
    generator = torch.Generator().manual_seed(4)
    eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    if method == "flow":
        cost = by_flow(denoiser, x, eps, trace="exact", tolerance=1e-5).nats
    else:
        cost = by_bound(denoiser, x, draws=400, generator=generator).nats
    found = ((cost + level_cost(denoiser, x, eps)).view(-1, 4).mean(0)) / (2 * math.log(2))
    truth = -torch.log2(weights) / 2
    assert (found - truth).abs().max() < (0.02 if method == "flow" else 0.06), (found, truth)
    assert (found - truth).mean().abs() < (0.01 if method == "flow" else 0.02)


def test_noise_of_the_schedule_s_own_where_it_begins_with_more() -> None:
    denoiser = MIXTURE.denoiser(CosineSchedule(-20, 7))
    assert float(begin(denoiser)) == 0
    assert float(SCHEDULE.logsnr(begin(MIXTURE.denoiser(SCHEDULE)))) == pytest.approx(13.3)


def test_classes_are_told() -> None:
    mixture = GaussianMixture(MEANS, MIXTURE.stds, classes=torch.tensor([0, 1, 1]))
    x, eps = drawn(6)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    found = by_flow(mixture.denoiser(SCHEDULE), x, eps, labels, trace="exact", tolerance=1e-6).nats
    alone = GaussianMixture(MEANS[:1], MIXTURE.stds[:1])
    truth = by_flow(alone.denoiser(SCHEDULE), x, eps, trace="exact", tolerance=1e-6).nats
    assert (found - truth)[::2].abs().max() < 1e-3
    assert (found - truth)[1::2].abs().min() > 1e-2


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        (Denoiser(torch.nn.Identity(), "x", steps=4), "a student of 4 steps has no density"),
        (Denoiser(torch.nn.Identity(), "x", CosineSchedule(-20, math.inf)), "finite logsnr_max"),
        (Denoiser(torch.nn.Identity(), "x", num_classes=2, guidance_max=1), "told a guidance has no density"),
    ],
)
def test_what_has_no_density(denoiser: Denoiser, message: str) -> None:
    with pytest.raises(PdlabError, match=message):
        check_density(denoiser)


def test_a_teacher_of_digits_by_the_command_line(tmp_path: Path, pdlab) -> None:
    run = tmp_path / "run"
    assert pdlab("train", "digits", "--run", run, "--updates", 20).code == 0
    out = tmp_path / "density.json"
    done = pdlab("evaluate", run / "teacher", "--density", "--n", 12, "--out", out)
    assert done.code == 0, done.err
    rows = {row["metric"]: Row.from_dict(row) for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {"bits/dim-flow", "bits/dim-bound"}
    for row in rows.values():
        assert (row.kind, row.better, row.card.n, row.card.reference["name"]) == ("density", "lower", 12, "digits")
        assert 0 < row.spread < row.value
        assert f"{row.value:.3f} ± {row.spread:.3f} bits per dimension" in " ".join(done.out.split())
    refused = pdlab("evaluate", "cifar10:4", "--density", "--out", out)
    assert refused.code == 2
    too_many = pdlab("evaluate", run / "teacher", "--density", "--n", 10**6, "--out", out)
    assert (too_many.code, too_many.err.strip().count("\n")) == (2, 0)
    assert "take --n from 2" in too_many.err
