import torch

from pdlab.metrics import sample_size_bias


def features(n: int, dim: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_frechet_bias_is_that_of_theory_and_the_kernel_distance_has_none() -> None:
    # Two sets of n standard normals: the means are 2 d/n apart (squared); with covariances 1 + E the rest is
    # tr (E₁ - E₂)²/4 to first order, and E tr E² = d(d + 1)/n.
    n, dim = 400, 20
    found = [next(iter(sample_size_bias(features(2 * n, dim, seed), (n,)))) for seed in range(40)]
    mean = sum(point.frechet for point in found) / len(found)
    expected = 2 * dim / n + 2 * dim * (dim + 1) / (4 * n)
    assert abs(mean - expected) < 0.05 * expected
    kernel = torch.tensor([point.kernel for point in found])
    assert kernel.mean().abs() < 4 * kernel.std() / len(found) ** 0.5


def test_a_longer_set_adds_points_and_changes_none() -> None:
    every = features(256)
    short, long = list(sample_size_bias(every[:128])), list(sample_size_bias(every))
    assert [point.n for point in long] == [32, 64, 128]
    assert long[:2] == short
    assert [point.dim for point in long] == [20, 20, 20]


def test_too_few_samples_give_no_point() -> None:
    assert list(sample_size_bias(features(62))) == []
