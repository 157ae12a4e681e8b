"""A folder of images of any size, brought to one size and cached as one uint8 array."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.markup import escape
from rich.progress import track

from pdlab import console, memory
from pdlab.data.cache import CACHE_REMEDY, cache_dir
from pdlab.data.source import ImageSource
from pdlab.errors import PdlabError
from pdlab.files import alone, atomic_file, discard, open_regular

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # whatever the suffix says, never a program's
MOST_PIXELS = 64 << 20
#: How images are brought to a size, when they shrink and when they grow; both ways of shrinking see every pixel.
RESIZES = {
    "box": (Image.Resampling.BOX, Image.Resampling.BICUBIC),
    "bilinear": (Image.Resampling.BILINEAR, Image.Resampling.BILINEAR),
}
VERSION = 2  # part of the cache's key: raise it when `_prepare` changes


def load(root: Path, size: int, split: str = "train", resize: str = "box") -> ImageSource:
    """Every image below `root`, in the order of its path, RGB, as uint8 [N, 3, size, size].

    Each is turned upright (EXIF), cropped to its central square and resized. `resize` "box" takes a box filter
    when it shrinks (as ImageNet 64 x 64 was made) and bicubic when it grows; "bilinear" is antialiased: a triangle
    that widens as the image shrinks (as the paper's authors did LSUN, who do not round to uint8 after it). The
    result is cached under the files' names, sizes and times. Hidden files and other suffixes than `SUFFIXES` are
    passed over.

    When every image lies exactly one folder deep, in two folders or more, these are its classes.

    Raises:
        PdlabError: no such folder, no image in it, one that cannot be read, or a cache that cannot be written.
    """
    if split != "train":
        raise PdlabError(f'a folder of images has only the split "train", not "{split}": give another folder')
    if resize not in RESIZES:
        raise PdlabError(f'unknown resize "{resize}": choose one of {", ".join(RESIZES)}')
    if size < 1:
        raise PdlabError(f"size must be at least 1 pixel, not {size}")
    files = _list(root)
    labels, classes = _classes([file.relative_to(root) for file in files])
    return ImageSource(
        images=torch.from_numpy(_cached(root, files, size, resize)),
        labels=labels,
        classes=classes,
        name="folder",
        split=split,
    )


def _list(root: Path) -> list[Path]:
    if not root.is_dir():
        raise PdlabError(f"{root} is not a folder: give the folder that holds the images with --data DIR")
    files = []
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(folder) / name for name in names if not name.startswith("."))
        files += [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        raise PdlabError(f"{root} holds no image ({', '.join(sorted(SUFFIXES))}): give another folder")
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _refuse(error: OSError) -> None:
    raise error


def _classes(names: Sequence[Path]) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    classes = sorted({name.parts[0] for name in names})
    if any(len(name.parts) != 2 for name in names) or len(classes) < 2:
        return None, ()
    number = {name: index for index, name in enumerate(classes)}
    return torch.tensor([number[name.parts[0]] for name in names]), tuple(classes)


def _cached(root: Path, files: Sequence[Path], size: int, resize: str) -> np.ndarray:
    """The images, uint8 [N, 3, size, size], from the cache or else from the files by way of the cache."""
    stats = [file.stat() for file in files]
    listing = [
        (file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)
        for file, stat in zip(files, stats, strict=True)
    ]
    names = json.dumps([VERSION, size, resize, listing])
    path = cache_dir() / "folders" / f"{hashlib.sha256(names.encode()).hexdigest()[:32]}.pixels"
    shape = (len(files), 3, size, size)
    memory.check(
        3 * size * size * len(files), f"{len(files):,} images of {size} × {size} pixels", "take a smaller size"
    )
    if (images := _kept(path, shape)) is not None:
        return images
    discard(path)  # whatever stands there
    images, digest = np.empty(shape, np.uint8), hashlib.sha256()
    busy = f"another pdlab prepares the images of {root}: wait for it, then run again"
    # The lock goes before the file takes its name: a kill between leaves what the next call sweeps up.
    with atomic_file(path, CACHE_REMEDY) as cache, alone(path, busy, CACHE_REMEDY):
        pool = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes and resizes without the GIL
        try:
            prepared = pool.map(lambda file: _prepare(file, size, resize), files)
            title = f"Preparing {escape(console.printable(root.name))}"
            progress = track(prepared, title, len(files), console=console.errors(), transient=True)
            for row, image in zip(images, progress, strict=True):
                row[:] = np.frombuffer(image, np.uint8).reshape(row.shape)
                digest.update(image)
                cache.write(image)
        finally:
            pool.shutdown(cancel_futures=True)
        cache.write(digest.digest())
    return images


def _kept(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The pixels in the cache: bytes of `shape`, then their SHA-256. None if they are not there, or damaged."""
    count = int(np.prod(shape))
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size != count + hashlib.sha256().digest_size:
                return None
            images = np.fromfile(file, np.uint8, count)
            return images.reshape(shape) if hashlib.sha256(images.data).digest() == file.read() else None
    except (OSError, PdlabError, ValueError):
        return None


def _prepare(file: Path, size: int, resize: str) -> bytes:
    """One image as the bytes of uint8 [3, size, size]."""
    try:
        with open_regular(file) as content, Image.open(content, formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{opened.width} × {opened.height} pixels are more than {MOST_PIXELS:,}")
            if opened.mode[0] in "IF":
                raise ValueError(f"mode {opened.mode} has more than 8 bits a channel")
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # Pillow's decoders raise almost anything at damaged files
        reason = " ".join(str(error).split())
        raise PdlabError(f"cannot read {file} ({reason}): repair or remove it and run again") from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    resample = RESIZES[resize][side < size]
    square = image.resize((size, size), resample, box=(left, top, left + side, top + side))
    return np.asarray(square).transpose(2, 0, 1).tobytes()
