import numpy as np
import pytest
import torch

from pdlab.errors import PdlabError
from pdlab.metrics import FeatureStatistics, extractor, frechet_distance, frechet_spread

DIM = 12


def with_moments(mean, cov, n=50):
    """Statistics whose mean and covariance are exactly these."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T  # white
    values, vectors = np.linalg.eigh(cov)
    return FeatureStatistics.of(torch.from_numpy(x @ (vectors * np.sqrt(values)).T + mean))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def rotation(rng):
    return np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]


def test_commuting_covariances_have_a_closed_form(rng, rotation):
    a, b = rng.uniform(0.1, 4, DIM), rng.uniform(0.1, 4, DIM)
    means = rng.normal(size=(2, DIM))
    value = frechet_distance(
        with_moments(means[0], rotation * a @ rotation.T), with_moments(means[1], rotation * b @ rotation.T)
    )
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert value == pytest.approx(expected, rel=1e-9)


def test_a_shift_is_its_square(rng, rotation):
    cov, shift = rotation * rng.uniform(0.1, 4, DIM) @ rotation.T, rng.normal(size=DIM)
    value = frechet_distance(with_moments(np.zeros(DIM), cov), with_moments(shift, cov))
    assert value == pytest.approx(np.sum(shift**2), rel=1e-9)


def test_scaling_the_features_scales_the_square(rng):
    x, y = torch.from_numpy(rng.normal(size=(2, 60, DIM)))
    one = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    three = frechet_distance(FeatureStatistics.of(3 * x), FeatureStatistics.of(3 * y))
    assert three == pytest.approx(9 * one, rel=1e-9)


def test_real_images_against_themselves_are_at_zero(digits):
    # the corner pixels of the digits are constant: a singular covariance that is not for want of samples
    train = FeatureStatistics.of(extractor("pixels")(digits))
    half = FeatureStatistics.of(extractor("pixels")(digits[::2]))
    assert frechet_distance(train, train) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(train, half) > 0.01


@pytest.fixture
def pair(rng):
    """Two sets of correlated features whose covariances do not commute."""
    return [torch.from_numpy(rng.normal(size=(200, DIM)) @ rng.normal(size=(DIM, DIM)) + k) for k in range(2)]


def test_equals_the_direct_route(pair):
    x, y = (p.numpy() for p in pair)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b) - 2 * root
    statistics = [FeatureStatistics.of(p) for p in pair]
    assert frechet_distance(*statistics) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*statistics[::-1]) == pytest.approx(expected, rel=1e-9)


def test_equals_torch_fidelity(pair, digits):
    pytest.importorskip("torchvision")
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    pixels = extractor("pixels")(digits)
    for x, y in (pair, (pixels[:900], pixels[900:])):
        theirs = fid.fid_statistics_to_metric(
            fid.fid_features_to_statistics(x), fid.fid_features_to_statistics(y), verbose=False
        )[fid.KEY_METRIC_FID]
        assert frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y)) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("few", [0, 1])
def test_too_few_samples(rng, few):
    x = torch.from_numpy(rng.normal(size=(DIM + 1, DIM)))
    pair = [FeatureStatistics.of(x), FeatureStatistics.of(x)]
    frechet_distance(*pair)
    pair[few] = FeatureStatistics.of(x[:DIM])
    with pytest.raises(PdlabError, match=f"too few samples: n = {DIM}, need more than {DIM}"):
        frechet_distance(*pair)
    assert np.isfinite(frechet_distance(*pair, allow_singular=True))


def test_features_of_different_extractors(rng):
    x = torch.from_numpy(rng.normal(size=(30, DIM)))
    with pytest.raises(PdlabError, match="cannot be compared"):
        frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(x[:, 1:]))


def test_damaged_statistics_are_not_clamped_away(rng):
    good = FeatureStatistics.of(torch.from_numpy(rng.normal(size=(30, DIM))))
    bad = FeatureStatistics.of(torch.from_numpy(rng.normal(size=(30, DIM))))
    bad._scatter[0, 0] *= -1
    with pytest.raises(PdlabError, match="negative eigenvalues"):
        frechet_distance(bad, good)
    with pytest.raises(PdlabError, match="negative eigenvalues"):
        frechet_distance(good, bad)


def test_the_spread_is_that_of_other_draws():
    """Against the deviation of the distance over 60 independent draws."""
    generator = torch.Generator().manual_seed(0)
    reference = FeatureStatistics.of(torch.randn(5000, 6, generator=generator))
    draws = [torch.randn(400, 6, generator=generator) * 1.2 + 0.3 for _ in range(60)]
    distances = torch.tensor([frechet_distance(FeatureStatistics.of(f), reference) for f in draws])
    spreads = torch.tensor([frechet_spread(f, reference) for f in draws])
    assert float(spreads.square().mean().sqrt()) == pytest.approx(float(distances.std()), rel=0.25)


def test_the_spread_needs_a_sample_a_group():
    reference = FeatureStatistics.of(torch.randn(10, 2, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(PdlabError, match="3 do not make 5"):
        frechet_spread(torch.zeros(3, 2), reference)
