from pathlib import Path

import pytest
import torch

import pdlab.data
from pdlab.data import ImageSource, cache_dir, load, names, to_float, to_uint8
from pdlab.errors import PdlabError


def numbered(n: int = 6) -> ImageSource:
    """Image i has the pixel values 10 i + 0, 1, 2, ..., and the label i."""
    pixels = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 2, 3)
    images = pixels + 10 * torch.arange(n, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return ImageSource(images, torch.arange(n), tuple("abcdefghij"[:n]), name="numbered")


def seeded(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def test_every_stored_value_survives_the_way_to_float_and_back() -> None:
    stored = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = to_float(stored)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), stored)


def test_to_uint8_clamps_and_rounds_to_nearest() -> None:
    x = torch.tensor([-7.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255]
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]  # 191.25


def test_conversions_leave_their_argument_alone() -> None:
    x = torch.tensor([-2.0, 0.3])
    to_uint8(x)
    to_float(x)
    assert torch.equal(x, torch.tensor([-2.0, 0.3]))


def test_draw_gives_images_with_their_own_labels() -> None:
    source = numbered()
    x, labels = source.draw(64, seeded())
    assert x.shape == (64, 1, 2, 3)
    assert x.dtype == torch.float32
    assert labels is not None
    assert labels.dtype == torch.int64
    assert torch.equal(to_uint8(x), source.images[labels])


def test_draw_is_uniform_with_replacement() -> None:
    _, labels = numbered().draw(6000, seeded())
    assert labels is not None
    counts = torch.bincount(labels, minlength=6)
    assert ((counts - 1000).abs() < 150).all()  # 5 standard deviations


def test_draw_depends_on_the_generator_alone() -> None:
    torch.manual_seed(1)
    first, _ = numbered().draw(50, seeded(3), flip=True)
    torch.manual_seed(2)
    again, _ = numbered().draw(50, seeded(3), flip=True)
    other, _ = numbered().draw(50, seeded(4), flip=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_flip_mirrors_half_of_the_images_left_to_right() -> None:
    source = numbered()
    x, labels = source.draw(2000, seeded(), flip=True)
    plain = to_float(source.images[labels])
    kept = (x == plain).flatten(1).all(1)
    mirrored = (x == plain.flip(-1)).flatten(1).all(1)
    assert torch.equal(kept, ~mirrored)
    assert 0.45 < mirrored.float().mean() < 0.55


def test_unlabelled_images_have_no_labels() -> None:
    source = ImageSource(numbered().images)
    assert source.draw(3, seeded())[1] is None
    assert source.num_classes == 0


def test_attributes_follow_the_tensors() -> None:
    source = numbered(4)
    assert (source.shape, source.num_classes, source.bounded, len(source)) == ((1, 2, 3), 4, True, 4)


def test_digest_is_of_the_content() -> None:
    source = numbered()
    assert source.digest == numbered().digest
    assert source.to("cpu").digest == source.digest
    changed = source.images.clone()
    changed[5, 0, 1, 2] += 1
    others = [
        ImageSource(changed, source.labels),
        ImageSource(source.images.reshape(6, 1, 3, 2), source.labels),
        ImageSource(source.images, source.labels.flip(0)),
        ImageSource(source.images),
    ]
    assert len({source.digest, *(other.digest for other in others)}) == 5


def test_to_keeps_what_the_source_is() -> None:
    moved = numbered().to("meta")
    assert moved.images.device.type == "meta"
    assert moved.labels.device.type == "meta"
    assert (moved.name, moved.split, moved.classes) == ("numbered", "train", tuple("abcdef"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_draws_happen_on_the_gpu() -> None:
    for source in (numbered(), load("moons")):
        x, _ = source.to("cuda").draw(8, seeded(device="cuda"), flip=True)
        assert x.device.type == "cuda"


def test_images_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ImageSource(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="labels"):
        ImageSource(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(PdlabError) as caught:
        load("cifar11")
    assert all(name in str(caught.value) for name in names())


def test_unknown_split_is_refused() -> None:
    with pytest.raises(PdlabError, match="train or test"):
        load("moons", "validation")


def test_unreadable_data_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/secret")

    monkeypatch.setattr(pdlab.data.cifar10, "load", refuse)
    with pytest.raises(PdlabError, match="/data/secret: permission denied"):
        load("cifar10", root="/data")


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    reference = load_digits()
    source = load("digits")
    assert source.images.shape == (1797, 1, 8, 8)
    assert (source.shape, source.num_classes) == ((1, 8, 8), 10)
    assert source.images.unique().tolist() == [
        0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255
    ]  # fmt: skip
    assert torch.equal((source.images[:, 0] / 255 * 16).round().double(), torch.from_numpy(reference.images))
    assert source.labels.tolist() == reference.target.tolist()


def test_digits_have_no_test_split() -> None:
    with pytest.raises(PdlabError, match='only the split "train"'):
        load("digits", "test")


@pytest.mark.parametrize("name", ["PDLAB_CACHE", "PDLAB_DATA"])
def test_nobodys_home_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "~nosuch/x")
    with pytest.raises(PdlabError, match=f"{name}=~nosuch/x: there is no such home folder"):
        load("cifar10")


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PDLAB_CACHE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: Path("~/.cache/pdlab"))
    with pytest.raises(PdlabError, match="no home folder for a cache: set PDLAB_CACHE"):
        cache_dir()


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDLAB_CACHE", "/some/where")
    assert str(pdlab.data.cache_dir()) == "/some/where"
    monkeypatch.delenv("PDLAB_CACHE")
    assert pdlab.data.cache_dir().name == "pdlab"
