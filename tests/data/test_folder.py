import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pdlab import files
from pdlab.data import ImageSource, load
from pdlab.errors import PdlabError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def paint(path: Path, colour: str, size: tuple[int, int] = (12, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(path)
    return path


def images(root: Path, size: int = 4) -> ImageSource:
    source = load("folder", root=root, size=size)
    assert isinstance(source, ImageSource)
    return source


def colours(source: ImageSource) -> list[str]:
    by_value = {value: name for name, value in COLOURS.items()}
    return [by_value[tuple(image[:, 0, 0].tolist())] for image in source.images]


def one(root: Path, image: Image.Image, size: int, name: str = "only.png", **options: object) -> torch.Tensor:
    root.mkdir(exist_ok=True)
    image.save(root / name, **options)
    return images(root, size).images[0]


def refuses(root: Path, size: int | None = 4) -> str:
    with pytest.raises(PdlabError) as caught:
        load("folder", root=root, size=size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def test_every_image_below_in_the_order_of_its_path(root: Path) -> None:
    paint(root / "b.png", "green", (5, 30))
    paint(root / "a.PNG", "red")
    paint(root / "c" / "d" / "e.bmp", "blue", (1, 1))
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"no image")
    source = images(root, size=7)
    assert source.images.shape == (3, 3, 7, 7)
    assert colours(source) == ["red", "green", "blue"]
    assert (source.shape, source.labels, source.num_classes, source.name) == ((3, 7, 7), None, 0, "folder")


@pytest.mark.parametrize("upright", [True, False])
def test_the_central_square_is_kept(root: Path, upright: bool) -> None:
    pixels = np.zeros((20, 8, 3), np.uint8)
    pixels[6:14] = 200  # exactly the central square
    image = Image.fromarray(pixels if upright else np.ascontiguousarray(pixels.transpose(1, 0, 2)))
    assert (one(root, image, 4) == 200).all()


def test_shrinking_averages(root: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (one(root, Image.fromarray(stripes), 8) == 100).all()


def test_bilinear_is_antialiased_as_the_authors_resized_lsun(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    box = one(root, Image.fromarray(pixels), 16)
    source = load("folder", root=root, size=16, resize="bilinear")
    assert isinstance(source, ImageSource)
    planes = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).double()[None]
    expected = torch.nn.functional.interpolate(planes, (16, 16), mode="bilinear", antialias=True)[0]
    assert (source.images[0] - expected).abs().max() <= 1  # Pillow rounds between rows and columns
    assert (box - expected).abs().max() > 10


def test_an_unknown_resize_is_refused(root: Path) -> None:
    paint(root / "a.png", "red")
    with pytest.raises(PdlabError, match="choose one of box, bilinear"):
        load("folder", root=root, size=4, resize="nearest")


def test_an_image_of_the_size_asked_for_is_not_altered(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert torch.equal(one(root, Image.fromarray(pixels), 16), torch.from_numpy(pixels.transpose(2, 0, 1).copy()))


def test_grey_and_palette_images_become_rgb(root: Path) -> None:
    assert one(root, Image.new("L", (8, 8), 77), 4)[:, 0, 0].tolist() == [77, 77, 77]
    palette = Image.new("RGB", (8, 8), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert one(root, palette, 4)[:, 0, 0].tolist() == [10, 200, 30]


def test_a_camera_image_is_turned_upright(root: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    image = one(root, Image.fromarray(pixels), 8, exif=exif)
    assert image[0, :, 0].tolist() == [0] * 4 + [255] * 4


def test_subfolders_are_classes(root: Path) -> None:
    for name, colour in (("zebra/1", "red"), ("ant/2", "green"), ("ant/1", "blue"), ("mole/1", "red")):
        paint(root / f"{name}.png", colour)
    source = images(root)
    assert source.classes == ("ant", "mole", "zebra")
    assert source.labels.tolist() == [0, 0, 1, 2]
    assert source.num_classes == 3
    assert colours(source) == ["blue", "green", "red", "red"]


@pytest.mark.parametrize("more", ["top.png", "ant/deep/1.png"])
def test_mixed_depths_are_no_classes(root: Path, more: str) -> None:
    for name in ("zebra/1.png", "ant/1.png", more):
        paint(root / name, "red")
    assert images(root).labels is None


def test_one_subfolder_is_no_class(root: Path) -> None:
    paint(root / "all" / "1.png", "red")
    assert images(root).labels is None


def test_the_second_time_nothing_is_decoded(root: Path, private_cache: Path) -> None:
    file = paint(root / "a.png", "red")
    first = images(root)
    stat = file.stat()
    file.write_bytes(b"x" * stat.st_size)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert torch.equal(images(root).images, first.images)
    assert len(list(private_cache.rglob("*.pixels"))) == 1


def test_a_changed_folder_or_size_is_prepared_anew(root: Path) -> None:
    file = paint(root / "a.bmp", "red")
    size = file.stat().st_size
    assert colours(images(root)) == ["red"]
    paint(file, "blue")
    os.utime(file, ns=(0, 0))
    assert file.stat().st_size == size  # its time alone tells
    assert colours(images(root)) == ["blue"]
    paint(root / "b.png", "green")
    assert colours(images(root)) == ["blue", "green"]
    assert images(root, 5).shape == (3, 5, 5)


def test_a_damaged_cache_is_made_anew(root: Path, private_cache: Path) -> None:
    paint(root / "a.png", "green")
    first = images(root)
    (cached,) = private_cache.rglob("*.pixels")
    for damaged in (cached.read_bytes()[:-3], b"", b"garbage"):
        cached.write_bytes(damaged)
        assert torch.equal(images(root).images, first.images)


def test_a_flipped_byte_of_the_cache_is_noticed(root: Path, private_cache: Path) -> None:
    paint(root / "a.png", "green")
    first = images(root)
    (cached,) = private_cache.rglob("*.pixels")
    content = bytearray(cached.read_bytes())
    content[5] ^= 1
    cached.write_bytes(content)
    assert torch.equal(images(root).images, first.images)
    cached.unlink()
    os.mkfifo(cached)
    assert torch.equal(images(root).images, first.images)


def test_two_do_not_prepare_one_folder_at_a_time(root: Path, private_cache: Path, monkeypatch) -> None:
    paint(root / "a.png", "green")
    images(root)
    (cached,) = private_cache.rglob("*.pixels")
    cached.unlink()
    with files.alone(cached, "busy"):
        assert "another pdlab prepares the images" in refuses(root)
    assert images(root).shape == (3, 4, 4)
    assert [path.name for path in private_cache.rglob("*") if path.is_file()] == [cached.name]


def test_an_image_is_of_a_format_that_runs_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript called .png would start an interpreter of it."""
    root.mkdir()
    (root / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")

    def run(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    monkeypatch.setattr("subprocess.Popen", run)
    assert "cannot read" in refuses(root)


def test_an_image_of_hundreds_of_megapixels_is_not_decoded(root: Path) -> None:
    root.mkdir()
    Image.new("1", (9000, 9000)).save(root / "a.png")
    assert "9000 × 9000 pixels are more than 67,108,864" in refuses(root)


def test_a_size_that_does_not_fit_into_memory(root: Path, private_cache: Path) -> None:
    paint(root / "a.png", "green")
    assert "1 images of 10000000 × 10000000 pixels would need" in refuses(root, 10**7)
    assert not list(private_cache.rglob("*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_subfolder_that_cannot_be_read_is_named(root: Path) -> None:
    paint(root / "a" / "a.png", "green")
    (root / "a").chmod(0)
    assert str(root / "a") in refuses(root)
    (root / "a").chmod(0o700)


@pytest.mark.parametrize("damage", ["garbage", "truncated"])
def test_an_unreadable_image_is_named(root: Path, private_cache: Path, damage: str) -> None:
    paint(root / "a.png", "red")
    file = root / "b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)
    file.write_bytes(b"garbage" if damage == "garbage" else file.read_bytes()[:2000])
    message = refuses(root)
    assert str(file) in message
    assert "remove it" in message
    assert [path for path in private_cache.rglob("*") if path.is_file()] == []
    file.unlink()
    assert colours(images(root)) == ["red"]


def test_more_than_eight_bits_are_refused_not_clipped(root: Path) -> None:
    root.mkdir()
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(root / "deep.png")
    assert "8 bits" in refuses(root)


def test_folders_without_images(root: Path) -> None:
    assert "not a folder" in refuses(root)
    root.mkdir()
    assert "no image" in refuses(root)
    (root / "notes.txt").write_text("no image")
    assert "no image" in refuses(root)


def test_what_is_needed_is_asked_for(root: Path) -> None:
    paint(root / "a.png", "red")
    assert "size" in refuses(root, None)
    assert "at least 1" in refuses(root, 0)
    with pytest.raises(PdlabError, match="root"):
        load("folder", size=4)
    with pytest.raises(PdlabError, match='only the split "train"'):
        load("folder", "test", root=root, size=4)


def test_a_cache_that_cannot_be_written(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(root / "a.png", "red")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("PDLAB_CACHE", str(tmp_path / "file"))
    assert "PDLAB_CACHE" in refuses(root)
