"""A folder of images of any size, brought to one size and cached as one uint8 array."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from pdlab.data.cache import CACHE_REMEDY, cache_dir
from pdlab.data.source import ImageSource
from pdlab.errors import PdlabError
from pdlab.files import atomic_file

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VERSION = 1  # part of the cache's key: raise it when `_prepare` changes


def load(root: Path, size: int, split: str = "train") -> ImageSource:
    """Every image below `root`, in the order of its path, RGB, as uint8 [N, 3, size, size].

    Each is turned upright (EXIF), cropped to its central square and resized: with a box filter when it
    shrinks (as ImageNet 64 x 64 was made), bicubic when it grows. The result is cached under the files'
    names, sizes and times. Hidden files and other suffixes than `SUFFIXES` are passed over.

    When every image lies exactly one folder deep, in two folders or more, these are its classes.

    Raises:
        PdlabError: no such folder, no image in it, one that cannot be read, or a cache that cannot be written.
    """
    if split != "train":
        raise PdlabError(f'a folder of images has only the split "train", not "{split}": give another folder')
    if size < 1:
        raise PdlabError(f"size must be at least 1 pixel, not {size}")
    files = _list(root)
    labels, classes = _classes([file.relative_to(root) for file in files])
    return ImageSource(
        images=torch.from_numpy(_cached(root, files, size)),
        labels=labels,
        classes=classes,
        name="folder",
        split=split,
    )


def _list(root: Path) -> list[Path]:
    if not root.is_dir():
        raise PdlabError(f"{root} is not a folder: give the folder that holds the images with --data DIR")
    files = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    ]
    if not files:
        raise PdlabError(f"{root} holds no image ({', '.join(sorted(SUFFIXES))}): give another folder")
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _classes(names: Sequence[Path]) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    classes = sorted({name.parts[0] for name in names})
    if any(len(name.parts) != 2 for name in names) or len(classes) < 2:
        return None, ()
    number = {name: index for index, name in enumerate(classes)}
    return torch.tensor([number[name.parts[0]] for name in names]), tuple(classes)


def _cached(root: Path, files: Sequence[Path], size: int) -> np.ndarray:
    """The images, uint8 [N, 3, size, size], from the cache or else from the files by way of the cache."""
    stats = [file.stat() for file in files]
    listing = [
        (file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)
        for file, stat in zip(files, stats, strict=True)
    ]
    key = hashlib.sha256(json.dumps([VERSION, size, listing]).encode()).hexdigest()
    path = cache_dir() / "folders" / f"{key[:32]}.npy"
    shape = (len(files), 3, size, size)
    try:
        images = np.load(path, allow_pickle=False)
        if images.shape == shape and images.dtype == np.uint8:
            return images
    except (OSError, ValueError, EOFError):
        pass  # not there, or damaged: made anew
    with atomic_file(path, CACHE_REMEDY) as cache:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(cache, header)
        pool = ThreadPoolExecutor()  # Pillow decodes and resizes without the GIL
        try:
            prepared = pool.map(lambda file: _prepare(file, size), files)
            console = Console(stderr=True)
            for image in track(prepared, f"Preparing {root.name}", len(files), console=console, transient=True):
                cache.write(image)
        finally:
            pool.shutdown(cancel_futures=True)
    return np.load(path, allow_pickle=False)


def _prepare(file: Path, size: int) -> bytes:
    """One image as the bytes of uint8 [3, size, size]."""
    try:
        with Image.open(file) as opened:
            if opened.mode[0] in "IF":
                raise ValueError(f"mode {opened.mode} has more than 8 bits a channel")
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # Pillow's decoders raise almost anything at damaged files
        reason = " ".join(str(error).split())
        raise PdlabError(f"cannot read {file} ({reason}): repair or remove it and run again") from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    resample = Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC
    square = image.resize((size, size), resample, box=(left, top, left + side, top + side))
    return np.asarray(square).transpose(2, 0, 1).tobytes()
