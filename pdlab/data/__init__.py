"""Data sets: `load` gives a `Source`, which draws batches on the device."""

from pathlib import Path

from pdlab.data import cifar10, digits, folder, toys
from pdlab.data.cache import cache_dir
from pdlab.data.source import ImageSource, Source, to_float, to_uint8
from pdlab.errors import PdlabError, reason
from pdlab.files import place

__all__ = ["ImageSource", "Source", "cache_dir", "load", "names", "to_float", "to_uint8"]


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return ("cifar10", "cifar10-16px", "digits", "folder", *toys.TOYS)


def load(
    name: str,
    split: str = "train",
    root: str | Path | None = None,
    size: int | None = None,
    download: bool = False,
    resize: str = "box",
) -> Source:
    """The data set `name`, on the CPU; move it with `.to(device)`.

    Args:
        name: one of `names()`; cifar10-16px is CIFAR-10 at half its side, for networks that a CPU can train.
        split: "train" or "test"; digits and folder have only "train".
        root: where cifar10 lies (default: $PDLAB_DATA, then the cache), or the folder of images.
        size: for a folder: the side in pixels that its images are brought to.
        resize: for a folder: how they are, see `folder.load`.
        download: fetch cifar10 (162 MiB) where it is not found. Nothing else is ever downloaded.

    Raises:
        PdlabError: unknown name or split, data not found, damaged or unreadable.
    """
    if split not in ("train", "test"):
        raise PdlabError(f'unknown split "{split}": choose train or test')
    where = None if root is None else place(root, "--data")
    try:
        return _load(name, split, where, size, download, resize)
    except OSError as error:
        raise PdlabError(
            f"cannot read {error.filename or name}: {reason(error)}; put that right, or give --data"
        ) from error


def _load(name: str, split: str, root: Path | None, size: int | None, download: bool, resize: str) -> Source:
    if name == "cifar10":
        return cifar10.load(split, root, download)
    if name == "cifar10-16px":
        return cifar10.halved(cifar10.load(split, root, download))
    if name == "digits":
        return digits.load(split)
    if name == "folder":
        if root is None or size is None:
            raise PdlabError("a folder of images needs root (--data DIR) and size (pixels, for example 64)")
        return folder.load(root, size, split, resize)
    if name in toys.TOYS:
        return toys.ToySource(name, split)
    raise PdlabError(f'unknown data set "{name}": choose one of {", ".join(names())}')
