import os
import shutil

import pytest
import torch

from pdlab.errors import PdlabError
from pdlab.metrics import (
    FeatureStatistics,
    extractor,
    frechet_distance,
    kernel_distance,
    nearest_distances,
    real_floor,
    reference_card,
    reference_features,
    reference_statistics,
)
from pdlab.metrics import reference as module
from pdlab.metrics.features import FeatureExtractor
from pdlab.tensors import write_folder


class Counting(FeatureExtractor):
    """The pixels of an image under another name, counting the images it was given."""

    name = label = "counting"
    batch = 100
    device = torch.device("cpu")

    def __init__(self, version=1):
        self.seen, self.version = 0, version

    def describe(self):
        return {"name": self.name, "version": self.version}

    def _features(self, images):
        self.seen += len(images)
        return images.flatten(1).float()


@pytest.fixture
def counting():
    return Counting()


@pytest.fixture
def train(digits, source_of):
    return source_of(digits[:600], "digits")


def test_features_come_from_the_cache(cache, counting, train):
    first = reference_features(train, counting)
    assert counting.seen == 600
    assert torch.equal(first, train.images.flatten(1).float())
    assert torch.equal(reference_features(train, counting), first)
    statistics = reference_statistics(train, counting)
    assert counting.seen == 600
    assert torch.equal(statistics.cov, FeatureStatistics.of(first).cov)


def test_the_cache_goes_by_content(cache, counting, train, digits, source_of):
    reference_features(train, counting)
    reference_features(source_of(digits[:600], "another name", "test"), counting)
    assert counting.seen == 600
    reference_features(source_of(digits[1:601], "digits"), counting)
    assert counting.seen == 1200
    other = Counting(version=2)
    reference_features(train, other)
    assert other.seen == 600


def harm_file(file, harm):
    data = bytearray(file.read_bytes())
    data[-7] ^= 4
    if harm == "8 TB":
        os.truncate(file, 8 << 40)
        return
    file.unlink()
    if harm == "pipe":
        os.mkfifo(file)
    elif harm != "gone":
        file.write_bytes({"flip": data, "cut": data[:-8], "empty": b""}[harm])


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "pipe", "8 TB", "gone"])
@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_a_damaged_cache_is_computed_anew(cache, counting, train, harm, kind):
    good = reference_features(train, counting), reference_statistics(train, counting)
    for folder in (cache / "features").iterdir():
        harm_file(folder / f"features.{kind}", harm)
    for _ in range(2):
        assert torch.equal(reference_statistics(train, counting).cov, good[1].cov)
        assert torch.equal(reference_features(train, counting), good[0])
        assert counting.seen == 1200  # once more, and kept again
    assert len(list((cache / "features").iterdir())) == 2


def a_file(folder, other):
    shutil.rmtree(folder)
    folder.write_text("a file")


def a_pipe(folder, other):
    shutil.rmtree(folder)
    os.mkfifo(folder)


def another_entry(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def other_tensors(folder, other):
    shutil.rmtree(folder)
    write_folder(folder, "features", {"elsewhere": torch.ones(600, 64)}, {"name": folder.name}, "")


@pytest.mark.parametrize("harm", [a_file, a_pipe, another_entry, other_tensors])
def test_what_was_not_kept_there_is_replaced(cache, counting, train, digits, source_of, harm):
    good = reference_features(train, counting)
    (folder,) = (cache / "features").iterdir()
    reference_features(source_of(digits[1:601], "digits"), counting)
    (other,) = set((cache / "features").iterdir()) - {folder}
    harm(folder, other)
    for _ in range(2):
        assert torch.equal(reference_features(train, counting), good)
        assert counting.seen == 1800


def test_two_processes_keep_the_same(cache, counting, train, monkeypatch, recwarn):
    """Another keeps it between this one's making room and its writing: no warning, and the entry is whole."""
    original = module.discard

    def meanwhile(path):
        monkeypatch.setattr(module, "discard", original)
        reference_features(train, Counting())

    monkeypatch.setattr(module, "discard", meanwhile)
    first = reference_features(train, counting)
    assert torch.equal(reference_features(train, counting), first)
    assert counting.seen == 600
    assert not recwarn
    assert len(list((cache / "features").iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_only_a_warning(cache, counting, train):
    cache.write_text("a file where the directory should be")
    with pytest.warns(UserWarning, match="not cached: cannot write"):
        features = reference_features(train, counting)
    assert len(features) == 600


def test_limit_draws_the_same_images_from_anywhere(cache, counting, train):
    few = reference_features(train, counting, limit=50)
    assert len(few) == 50
    assert torch.equal(few, reference_features(train, counting, limit=50))
    assert counting.seen == 50
    rows = (few[:, None] == train.images.flatten(1).float()).all(-1).int().argmax(1)
    assert len(rows.unique()) == 50
    assert rows.max() > 300
    assert reference_statistics(train, counting, limit=50).n == 50
    assert reference_card(train, 50)["size"] == 50
    assert reference_card(train) == {"name": "digits", "split": "train", "size": 600, "digest": train.digest}
    with pytest.raises(PdlabError, match="at least 1"):
        reference_features(train, counting, limit=0)


def test_pixels_stream(cache, train):
    seen = []
    statistics = reference_statistics(train, extractor("pixels"), progress=lambda done, of: seen.append((done, of)))
    whole = FeatureStatistics.of(reference_features(train, extractor("pixels")))
    torch.testing.assert_close(statistics.cov, whole.cov)
    assert seen == [(512, 600), (600, 600)]
    assert torch.equal(reference_statistics(train, extractor("pixels")).cov, statistics.cov)
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["pixels", "counting"])
def test_floor(cache, digits, source_of, train, name):
    features = Counting() if name == "counting" else extractor("pixels")
    held_out = source_of(digits[600:900], "digits", "test")
    reference = reference_statistics(train, features)

    floor = real_floor(train, features, 300, held_out)
    direct = frechet_distance(FeatureStatistics.of(features(held_out.images)), reference)
    assert floor["value"] == pytest.approx(direct, rel=1e-6)
    assert floor["n"] == 300
    assert "held-out" in floor["how"]
    assert "digits test" in floor["how"]

    drawn = real_floor(train, features, 301, held_out)
    assert "replacement" in drawn["how"]
    assert drawn["n"] == 301
    assert 0 < drawn["value"] < floor["value"]
    assert drawn == real_floor(train, features, 301)
    assert drawn["value"] != real_floor(train, features, 301, seed=1)["value"]
    assert real_floor(train, features, 2000)["value"] < drawn["value"]  # the floor is a matter of n

    with pytest.raises(PdlabError, match="too few samples"):
        real_floor(train, features, 60, held_out)


def test_kernel_floor(cache, digits, source_of, train):
    pixels = extractor("pixels")
    held_out = source_of(digits[600:900], "digits", "test")
    floor = real_floor(train, pixels, 300, held_out, distance="kernel", subsets=20, subset_size=200)
    value, spread = kernel_distance(
        pixels(held_out.images), pixels(train.images), subsets=20, subset_size=200, seed=0
    )
    assert floor["value"] == pytest.approx(value, abs=3 * spread)
    with pytest.raises(PdlabError, match="too few samples"):
        real_floor(train, pixels, 300, held_out, distance="kernel")


def test_nearest_distances_show_copies(digits):
    features = extractor("pixels")(digits)
    reference, new = features[:1000], features[1000:1100]
    copies = reference[torch.tensor([5, 900])]
    distances = nearest_distances(torch.cat([copies, new]), reference, chunk=7)
    expected = (new[:, None] - reference).square().sum(-1).min(1).values.sqrt()
    torch.testing.assert_close(distances[2:], expected)
    assert (distances[:2] == 0).all()
    assert distances[2:].min() > 0.5
