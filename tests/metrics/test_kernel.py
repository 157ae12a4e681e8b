import numpy as np
import pytest
import torch

from pdlab.errors import PdlabError
from pdlab.metrics import kernel_distance, mmd2_unbiased, polynomial_kernel, rbf_kernel


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 5, generator=generator), torch.randn(31, 5, generator=generator) + 0.4


def double_loop(x, y, k):
    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize(
    ("kernel", "k"),
    [
        (polynomial_kernel, lambda a, b: (a @ b / len(a) + 1) ** 3),
        (rbf_kernel(0.7), lambda a, b: np.exp(-np.sum((a - b) ** 2) / (2 * 0.7**2))),
    ],
)
def test_mmd_is_the_double_loop(pair, kernel, k):
    x, y = pair
    expected = double_loop(x.double().numpy(), y.double().numpy(), k)
    assert mmd2_unbiased(x, y, kernel) == pytest.approx(expected, rel=1e-9)


def test_rbf_tells_planar_distributions_apart():
    generator = torch.Generator().manual_seed(0)
    x, same = torch.randn(2, 500, 2, generator=generator)
    ring = torch.nn.functional.normalize(torch.randn(500, 2, generator=generator)) * 2**0.5  # equal moments
    assert abs(mmd2_unbiased(x, same, rbf_kernel(1.0))) < 0.005
    assert mmd2_unbiased(x, ring, rbf_kernel(1.0)) > 0.02


def test_equal_distributions_are_around_zero():
    generator = torch.Generator().manual_seed(0)
    values = [mmd2_unbiased(*torch.randn(2, 50, 8, generator=generator)) for _ in range(100)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 100**0.5
    assert min(values) < 0 < max(values)


def test_subsets_cover_and_repeat(pair):
    x, y = pair
    value, spread = kernel_distance(x, y, subsets=200, subset_size=20)
    assert (value, spread) == kernel_distance(x, y, subsets=200, subset_size=20)
    assert value != kernel_distance(x, y, subsets=200, subset_size=20, seed=1)[0]
    assert value == pytest.approx(mmd2_unbiased(x, y), abs=4 * spread / 200**0.5)
    assert spread > 0


def test_equals_torch_fidelity(pair):
    pytest.importorskip("torchvision")
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = (p.double() for p in pair)
    theirs = kid.kid_features_to_metric(x, y, kid_subsets=7, kid_subset_size=25, rng_seed=3, verbose=False)
    value, spread = kernel_distance(x, y, subsets=7, subset_size=25, seed=3)
    assert value == pytest.approx(theirs[kid.KEY_METRIC_KID_MEAN], rel=1e-9)
    assert spread == pytest.approx(theirs[kid.KEY_METRIC_KID_STD], rel=1e-9)


def test_too_few_samples(pair):
    x, y = pair
    with pytest.raises(PdlabError, match="n = 31, need at least 1000"):
        kernel_distance(x, y)
    value, _ = kernel_distance(x, y, subsets=50, shrink_subsets=True)
    assert value == pytest.approx(mmd2_unbiased(x, y), abs=0.1)
    with pytest.raises(PdlabError, match="at least 2"):
        mmd2_unbiased(x[:1], y)
    with pytest.raises(PdlabError, match="cannot be compared"):
        mmd2_unbiased(x, y[:, 1:])
    with pytest.raises(PdlabError, match="at least 1 subset"):
        kernel_distance(x, y, subsets=0, subset_size=5)
