import hashlib
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits, load_sample_image

from pdlab.metrics import reference


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Small tensors on busy cores lose far more to threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits():
    """All 1797 handwritten digits, uint8 [N, 1, 8, 8]."""
    images = load_digits().images * (255 / 16)
    return torch.from_numpy(images).round().to(torch.uint8)[:, None]


@pytest.fixture(scope="session")
def photos():
    """24 crops of a photograph, uint8 [24, 3, 32, 32]."""
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    crops = photo.unfold(1, 32, 64).unfold(2, 32, 64).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return crops[:24].contiguous()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory in place of the user's."""
    monkeypatch.setattr(reference, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def source_of():
    """Makes an image source from a uint8 tensor."""

    def source(images, name="made-up", split="train"):
        digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
        return SimpleNamespace(images=images, digest=digest, name=name, split=split)

    return source
