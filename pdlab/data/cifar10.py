"""CIFAR-10 (Krizhevsky 2009), from either of its official layouts: 50,000 + 10,000 images 3 x 32 x 32, 10 classes.

Both layouts hold the same rows of 3072 bytes (red, green, blue plane) in the same order and give equal tensors.
The batches' own checksums are not asked for, so that re-ordered or re-packed copies serve too; their structure is.
"""

import dataclasses
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from pdlab.data.cache import cache_dir
from pdlab.data.download import download, extract
from pdlab.data.pickled import BatchUnpickler, PickledArray
from pdlab.data.source import ImageSource
from pdlab.errors import PdlabError
from pdlab.files import digest_of, place, read_bytes

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
PER_BATCH = 10_000
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
URL = "https://www.cs.toronto.edu/~kriz/"

Rows = tuple[np.ndarray, np.ndarray]  # pixels uint8 [N, 3072] and labels int64 [N] of one batch file


def load(split: str = "train", root: Path | None = None, fetch: bool = False) -> ImageSource:
    """The 50,000 training or 10,000 test images with their labels.

    Looked for in `root` alone if it is given, else in $PDLAB_DATA, then in the cache: a layout's folder or
    the folder that holds one (as torchvision leaves it), or an official archive, which is checked and unpacked
    where it lies. With `fetch`, what is found nowhere is downloaded to `root` or the cache.

    Raises:
        PdlabError: not found, or a file that is not what it should be (it is named).
    """
    places = _places(root)
    found = next((hit for place in places if (hit := _find(place))), None)
    if found is None and fetch:
        layout = LAYOUTS[0]  # the binary one: no pickle
        archive = download(
            URL + layout.archive, places[-1] / layout.archive, sha256=layout.sha256, most=layout.archived
        )
        found = _unpacked(layout, archive)
    if found is None:
        raise PdlabError(
            f"CIFAR-10 not found in {' or '.join(map(str, places))}: give the folder that holds "
            "cifar-10-batches-py or -bin with --data DIR (or $PDLAB_DATA), or fetch it (162 MiB) with --download"
        )
    layout, folder = found
    batches = [_batch(layout, folder / (name + layout.suffix)) for name in BATCHES[split]]
    images = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, *SHAPE)
    labels = np.concatenate([labels for _, labels in batches])
    return ImageSource(torch.from_numpy(images), torch.from_numpy(labels), CLASSES, "cifar10", split)


def halved(source: ImageSource) -> ImageSource:
    """The same images at half the side, 16 pixels: the mean of every 2×2, rounded to nearest (half to even)."""
    images = torch.cat(
        [F.avg_pool2d(part.float(), 2).round().to(torch.uint8) for part in source.images.split(5000)]
    )
    return dataclasses.replace(source, images=images, name=f"{source.name}-16px")


def _places(root: Path | None) -> list[Path]:
    if root is not None:
        return [root]
    given = os.environ.get("PDLAB_DATA")
    return ([place(given, "PDLAB_DATA")] if given else []) + [cache_dir() / "cifar10"]


def _find(place: Path) -> "tuple[Layout, Path] | None":
    """The layout that lies at `place`, and its folder; an archive is the last resort."""
    for layout in LAYOUTS:
        for folder in (place, place / layout.folder):
            if any((folder / (name + layout.suffix)).is_file() for names in BATCHES.values() for name in names):
                return layout, folder
    for layout in LAYOUTS:
        if (place / layout.archive).is_file():
            return _unpacked(layout, place / layout.archive)
    return None


def _unpacked(layout: "Layout", archive: Path) -> "tuple[Layout, Path]":
    if digest_of(archive) != layout.sha256:
        raise PdlabError(
            f"{archive} is not the official archive ({archive.stat().st_size:,} bytes, wrong sha256; cut off or "
            "altered): delete it and fetch it again, for example with --download"
        )
    folder = archive.parent / layout.folder
    batches = {name + layout.suffix: layout.largest for names in BATCHES.values() for name in names}
    extract(archive, folder, batches | {layout.meta: 1 << 20, "readme.html": 1 << 20})
    return layout, folder


def _batch(layout: "Layout", file: Path) -> Rows:
    """One batch file, its size and its values checked."""
    try:
        pixels, labels = layout.read(read_bytes(file, layout.largest))
        if labels.shape != (PER_BATCH,) or labels.min() < 0 or labels.max() >= len(CLASSES):
            raise ValueError(f"its labels are not {PER_BATCH:,} numbers from 0 to {len(CLASSES) - 1}")
    except OSError as error:
        raise PdlabError(f"cannot read {file}: {error.strerror}; is CIFAR-10 there as a whole?") from error
    except ValueError as error:
        raise PdlabError(f"{file} is not a batch of CIFAR-10 ({error}): fetch the data set again") from error
    return pixels, labels


def _read_binary(content: bytes) -> Rows:
    """10,000 records of one label byte and 3072 pixel bytes."""
    expected = PER_BATCH * (1 + PIXELS)
    if len(content) != expected:
        raise ValueError(f"it has {len(content):,} bytes instead of {expected:,}")
    records = np.frombuffer(content, np.uint8).reshape(PER_BATCH, 1 + PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _read_pickled(content: bytes) -> Rows:
    """A pickled dictionary with `data`, uint8 [10000, 3072], and `labels`, a list of int."""
    shape = (PER_BATCH, PIXELS)
    try:
        found = BatchUnpickler(io.BytesIO(content), shape).load()
        if not isinstance(found, dict):
            raise ValueError("it holds no dictionary")
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
        data, labels = batch["data"], batch["labels"]
    except KeyError as error:
        raise ValueError(f"it holds no {error}") from error
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    if not isinstance(data, PickledArray) or data.shape != shape:
        raise ValueError(f"its data is not an array of {PER_BATCH:,} x {PIXELS} bytes")
    if not isinstance(labels, list) or any(type(n) is not int or not 0 <= n < len(CLASSES) for n in labels):
        raise ValueError(f"its labels are not a list of numbers from 0 to {len(CLASSES) - 1}")
    pixels = np.frombuffer(data.content, np.uint8).reshape(data.shape, order=data.order)
    return pixels, np.array(labels, dtype=np.int64)


@dataclass(frozen=True)
class Layout:
    """One of the official forms of the data set: names, and how to read one of its files."""

    folder: str
    suffix: str
    meta: str
    archive: str
    sha256: str
    archived: int  # bytes of the archive; a bound for what is fetched
    largest: int  # bytes of a batch file; a bound for what is read or unpacked
    read: Callable[[bytes], Rows]


LAYOUTS = (
    Layout(
        folder="cifar-10-batches-bin",
        suffix=".bin",
        meta="batches.meta.txt",
        archive="cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        archived=170_052_171,
        largest=PER_BATCH * (1 + PIXELS),
        read=_read_binary,
    ),
    Layout(
        folder="cifar-10-batches-py",
        suffix="",
        meta="batches.meta",
        archive="cifar-10-python.tar.gz",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        archived=170_498_071,
        largest=64 << 20,  # names and labels beside the pixels; up to twice as long in the text protocols
        read=_read_pickled,
    ),
)
