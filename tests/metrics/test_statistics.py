import numpy as np
import pytest
import torch

from pdlab.errors import PdlabError
from pdlab.metrics import FeatureStatistics


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(301, 7)) @ rng.normal(size=(7, 7)) + 3)


def same(statistics, features):
    assert statistics.n == len(features)
    np.testing.assert_allclose(statistics.mean, features.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.cov, np.cov(features.numpy(), rowvar=False), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 2, 64, 301])
def test_streaming_equals_the_whole(features, batch):
    statistics = FeatureStatistics()
    for part in features.split(batch):
        statistics.update(part)
    same(statistics, features)


def test_merging_equals_the_whole(features):
    a, b = FeatureStatistics.of(features[:40]), FeatureStatistics.of(features[40:], chunk=100)
    a.merge(b)
    a.merge(FeatureStatistics())
    same(a, features)
    empty = FeatureStatistics()
    empty.merge(a)
    empty.update(features[:1])  # must not reach into what it was merged from
    same(a, features)


def test_the_root_is_of_all_samples_so_far(features):
    statistics = FeatureStatistics.of(features[:40])
    for part in (features[40:90], features[90:]):
        torch.testing.assert_close(statistics.root @ statistics.root, statistics.cov)
        torch.testing.assert_close(statistics.root, statistics.root.T)
        statistics.update(part)
    torch.testing.assert_close(statistics.root @ statistics.root, FeatureStatistics.of(features).cov)


def test_a_mean_far_from_zero_costs_no_digits(features):
    far = FeatureStatistics()
    for part in (features + 1e8).split(10):
        far.update(part)
    np.testing.assert_allclose(far.cov, np.cov(features.numpy(), rowvar=False), rtol=1e-6, atol=1e-6)


def test_float32_features_are_gathered_in_float64(features):
    single = features.float()
    statistics = FeatureStatistics.of(single, chunk=3)
    np.testing.assert_allclose(statistics.cov, np.cov(single.double().numpy(), rowvar=False), rtol=1e-10)


def test_parts_make_the_same(features):
    statistics = FeatureStatistics.of(features)
    same(FeatureStatistics.from_parts(**statistics.parts()), features)


def test_bad_features_are_refused(features):
    with pytest.raises(PdlabError, match="NaN"):
        FeatureStatistics.of(torch.full((3, 2), torch.nan))
    with pytest.raises(PdlabError, match="7 and of 3"):
        FeatureStatistics.of(features).update(torch.zeros(4, 3))
    with pytest.raises(PdlabError, match="at least 2"):
        _ = FeatureStatistics.of(features[:1]).cov
