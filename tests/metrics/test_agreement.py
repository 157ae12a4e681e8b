import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pdlab.data import ImageSource
from pdlab.errors import PdlabError
from pdlab.metrics import agreement as module
from pdlab.metrics import extractor, fit_probe, real_agreement, reference_probe


@pytest.fixture(scope="module")
def labelled(digits):
    return ImageSource(
        digits, torch.from_numpy(load_digits().target).long(), tuple(map(str, range(10))), "digits", "train"
    )


def part(source, rows, split):
    return ImageSource(source.images[rows], source.labels[rows], source.classes, source.name, split)


def test_the_probe_is_regularised_softmax_regression(labelled):
    """The minimum is unique: scikit-learn finds the same, on features of any scale."""
    features = labelled.images.flatten(1).double() * torch.linspace(0.1, 100, 64)
    probe = fit_probe(features, labelled.labels, 10)
    scaled = StandardScaler().fit_transform(features.numpy())
    theirs = LogisticRegression(C=1 / (module.L2 * len(scaled)), tol=1e-6, max_iter=2000)
    theirs.fit(scaled, labelled.labels.numpy())
    ours = (features.float() @ probe.weight.T + probe.bias).softmax(1)
    assert np.abs(ours.numpy() - theirs.predict_proba(scaled)).max() < 0.02
    again = fit_probe(features, labelled.labels, 10)
    assert torch.equal(again.weight, probe.weight)


def test_agreement_is_the_share_seen_as_asked_for(labelled):
    pixels = extractor("pixels")
    probe = fit_probe(pixels(labelled.images), labelled.labels, 10)
    features, labels = pixels(labelled.images[:100]), labelled.labels[:100].clone()
    assert probe.agreement(features, labels)[0] > 0.95
    right = probe(features)
    right[:20] = (right[:20] + 1) % 10
    assert probe.agreement(features, right) == pytest.approx((0.8, math.sqrt(0.8 * 0.2 / 100)))


def test_what_real_images_reach(cache, labelled):
    rows = torch.arange(1797) % 3 == 0
    train, test = part(labelled, ~rows, "train"), part(labelled, rows, "test")
    pixels = extractor("pixels")
    real = real_agreement(train, pixels, test)
    assert (real["n"], "digits test" in real["how"]) == (599, True)
    probe = reference_probe(train, pixels)
    assert real["value"] == probe.agreement(pixels(test.images), test.labels)[0]
    assert 0.9 < real["value"] < 1
    without = real_agreement(train, pixels)
    assert (without["n"], "fitted to the others" in without["how"]) == (240, True)
    assert without["value"] == pytest.approx(real["value"], abs=0.05)


def test_the_probe_is_fitted_once(cache, labelled, monkeypatch):
    pixels = extractor("pixels")
    first = reference_probe(labelled, pixels)
    (kept,) = (cache / "features").glob("*.probe-*")
    monkeypatch.setattr(module, "ITERATIONS", 1)  # another probe is another entry
    assert not torch.equal(reference_probe(labelled, pixels).weight, first.weight)
    monkeypatch.undo()
    monkeypatch.setattr(module, "fit_probe", lambda *_: pytest.fail("fitted again"))
    monkeypatch.setattr("pdlab.metrics.reference.cache_dir", lambda: cache)
    assert torch.equal(reference_probe(labelled, pixels).weight, first.weight)
    (kept / "features.safetensors").write_bytes(b"damaged")
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        reference_probe(labelled, pixels)


def test_images_without_classes(cache, digits):
    with pytest.raises(PdlabError, match="digits has no classes"):
        reference_probe(ImageSource(digits, name="digits"), extractor("pixels"))
