"""CIFAR-10 (Krizhevsky 2009), from either of its official layouts: 50,000 + 10,000 images 3 x 32 x 32, 10 classes.

Both layouts hold the same rows of 3072 bytes (red, green, blue plane) in the same order and give equal tensors.
The batches' own checksums are not asked for, so that re-ordered or re-packed copies serve too; their structure is.
"""

import dataclasses
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pdlab.data.cache import cache_dir
from pdlab.data.download import checksum, download, extract
from pdlab.data.source import ImageSource
from pdlab.errors import PdlabError

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
        archive = download(URL + layout.archive, places[-1] / layout.archive, sha256=layout.sha256)
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
    return ([Path(given).expanduser()] if given else []) + [cache_dir() / "cifar10"]


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
    if checksum(archive, "sha256") != layout.sha256:
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
        if file.stat().st_size > layout.largest:
            raise ValueError(f"it has {file.stat().st_size:,} bytes, too many for one batch")
        pixels, labels = layout.read(file)
        if labels.shape != (PER_BATCH,) or labels.min() < 0 or labels.max() >= len(CLASSES):
            raise ValueError(f"its labels are not {PER_BATCH:,} numbers from 0 to {len(CLASSES) - 1}")
    except OSError as error:
        raise PdlabError(f"cannot read {file}: {error.strerror}; is CIFAR-10 there as a whole?") from error
    except ValueError as error:
        raise PdlabError(f"{file} is not a batch of CIFAR-10 ({error}): fetch the data set again") from error
    return pixels, labels


def _read_binary(file: Path) -> Rows:
    """10,000 records of one label byte and 3072 pixel bytes."""
    expected = PER_BATCH * (1 + PIXELS)
    content = np.fromfile(file, dtype=np.uint8)
    if content.size != expected:
        raise ValueError(f"it has {content.size:,} bytes instead of {expected:,}")
    records = content.reshape(PER_BATCH, 1 + PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _read_pickled(file: Path) -> Rows:
    """A pickled dictionary with `data`, uint8 [10000, 3072], and `labels`, a list of int."""
    with file.open("rb") as stream:
        try:
            content = _BatchUnpickler(stream, encoding="bytes").load()  # as Python 2 wrote it
            if not isinstance(content, dict):
                raise ValueError("it holds no dictionary")
            batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
            data, labels = batch["data"], batch["labels"]
        except OSError:
            raise
        except KeyError as error:
            raise ValueError(f"it holds no {error}") from error
        except Exception as error:  # a hostile or damaged pickle can raise anything
            raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    if not isinstance(data, _Array) or data.shape != (PER_BATCH, PIXELS):
        raise ValueError(f"its data is not an array of {PER_BATCH:,} x {PIXELS} bytes")
    if not isinstance(labels, list) or any(type(n) is not int or not 0 <= n < len(CLASSES) for n in labels):
        raise ValueError(f"its labels are not a list of numbers from 0 to {len(CLASSES) - 1}")
    pixels = np.frombuffer(data.content, np.uint8).reshape(data.shape, order=data.order)
    return pixels, np.array(labels, dtype=np.int64)


class _Array:
    """What a pickle says of a uint8 array, kept without numpy: numpy's own functions never see its arguments."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.order: Any = "C"
        self.content = b""

    def fill(self, shape: Any, fortran: bool, dtype: Any, content: Any) -> "_Array":
        """Take over the array's parts once they are plain and agree with one another."""
        if not isinstance(dtype, _UInt8) or not isinstance(content, bytes | bytearray):
            raise ValueError("it holds an array of something else than bytes")
        if shape != (PER_BATCH, PIXELS) or len(content) != PER_BATCH * PIXELS:
            raise ValueError(f"its data is not an array of {PER_BATCH:,} x {PIXELS} bytes")
        self.shape, self.order, self.content = shape, "F" if fortran else "C", bytes(content)
        return self

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, content = state
        self.fill(shape, fortran, dtype, content)


class _UInt8:
    """numpy's dtype, for the one dtype that a batch has."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise ValueError("it holds an array of something else than bytes")

    def __setstate__(self, state: Any) -> None:
        """Byte order, alignment and the like mean nothing for bytes."""


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes in the old protocols."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("it holds a text in an unexpected encoding")
    return text.encode("latin1")


class _BatchUnpickler(pickle.Unpickler):
    """Reads a batch and nothing else: every name that a batch may mention stands for something inert of ours."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for `module.name`; any other name is refused before it is looked up."""
        stand_in = _stand_ins().get((module.replace("numpy._core.", "numpy.core."), name))  # since numpy 2
        if stand_in is None:
            raise ValueError(f"it asks for {module + '.' + name!r:.80}, which no batch needs; nothing was run")
        return stand_in


def _stand_ins() -> dict[tuple[str, str], Callable[..., Any]]:
    """Made anew for each name, so that nothing a pickle hangs on one outlives it."""

    def frombuffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
        return _Array().fill(shape, order == "F", dtype, content)

    return {
        ("numpy", "dtype"): lambda *arguments: _UInt8(*arguments),
        ("numpy", "ndarray"): lambda: None,  # only ever named, as the first argument of the next
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy.core.numeric", "_frombuffer"): frombuffer,
        ("_codecs", "encode"): lambda text, encoding: _encode(text, encoding),
    }


@dataclass(frozen=True)
class Layout:
    """One of the official forms of the data set: names, and how to read one of its files."""

    folder: str
    suffix: str
    meta: str
    archive: str
    sha256: str
    largest: int  # bytes of a batch file; a bound for what is read or unpacked
    read: Callable[[Path], Rows]


LAYOUTS = (
    Layout(
        folder="cifar-10-batches-bin",
        suffix=".bin",
        meta="batches.meta.txt",
        archive="cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        largest=PER_BATCH * (1 + PIXELS),
        read=_read_binary,
    ),
    Layout(
        folder="cifar-10-batches-py",
        suffix="",
        meta="batches.meta",
        archive="cifar-10-python.tar.gz",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        largest=64 << 20,  # names and labels beside the pixels; up to twice as long in the text protocols
        read=_read_pickled,
    ),
)
