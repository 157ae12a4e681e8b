import pytest
import torch

from pdlab.errors import PdlabError
from pdlab.metrics import Manifold, precision_recall
from pdlab.metrics import manifold as module


def points(n, dim=6, seed=0, scale=1.0, at=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * scale + at


def brute(samples, real, k=3):
    """The definition, point by point, in float64."""

    def radius(of, i):
        return sorted(float((of[i] - other).norm()) for j, other in enumerate(of) if j != i)[k - 1]

    def share(of, on):
        radii = [radius(on, i) for i in range(len(on))]
        return sum(any(float((x - c).norm()) <= r for c, r in zip(on, radii, strict=True)) for x in of) / len(of)

    samples, real = samples.double(), real.double()
    return share(samples, real), share(real, samples)


@pytest.mark.parametrize(("m", "n", "at"), [(40, 40, 0.0), (37, 60, 0.8), (60, 25, 1.5)])
def test_is_the_definition(m, n, at, monkeypatch):
    samples, real = points(m, seed=1, at=at), points(n, seed=2)
    expected = brute(samples, real)
    assert precision_recall(samples, real) == pytest.approx(expected)
    assert all(0 < value < 1 for value in expected)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert precision_recall(samples, real) == pytest.approx(expected)


def test_the_manifolds_of_equal_and_of_distant_sets():
    real = points(300)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real.clone(), real + 100) == (0, 0)


def test_a_collapsed_generator_is_precise_and_one_too_wide_is_not():
    real = points(500, seed=1)
    precision, recall = precision_recall(points(500, seed=2, scale=0.1), real)
    assert precision > 0.99
    assert recall < 0.05
    precision, recall = precision_recall(points(500, seed=2, scale=3), real)
    assert precision < 0.2
    assert recall > 0.5


def test_features_far_from_the_origin_keep_their_distances():
    samples, real = points(60, seed=1, scale=1e-2), points(60, seed=2, scale=1e-2)
    at = 100 + torch.zeros(6, dtype=torch.float64)
    assert precision_recall(samples + at, real + at) == pytest.approx(precision_recall(samples, real), abs=0.02)


def test_too_few():
    with pytest.raises(PdlabError, match="at least 4, not 3"):
        Manifold.of(points(3))
