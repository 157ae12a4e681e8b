"""Data sets: `load` gives a `Source`, which draws batches on the device."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pdlab.data import cifar10, digits, folder, toys
from pdlab.data.cache import cache_dir
from pdlab.data.source import ImageSource, Source, to_float, to_uint8
from pdlab.errors import PdlabError, reason
from pdlab.files import place

__all__ = [
    "ImageSource",
    "Source",
    "cache_dir",
    "load",
    "names",
    "register_dataset",
    "source_of",
    "to_float",
    "to_uint8",
]


class Wanted(NamedTuple):
    """What a loader is asked for: the arguments of `load`."""

    split: str
    root: Path | None
    size: int | None
    download: bool
    resize: str


Loader = Callable[[Wanted], Source]
DATASETS: dict[str, Loader] = {}
L = TypeVar("L", bound=Loader)


def register_dataset(name: str) -> Callable[[L], L]:
    """Register the decorated `loader(wanted: Wanted) -> Source` under `name`.

    It is then known to `load` and to `--dataset`. PdlabError for a name that is taken by another.
    """

    def add(loader: L) -> L:
        known = DATASETS.get(name)
        if known is not None and _where(known) != _where(loader):
            raise PdlabError(f"there is a data set {name!r} already: register yours under another name")
        DATASETS[name] = loader
        return loader

    return add


def _where(loader: Any) -> tuple[str, str]:
    return loader.__module__, loader.__qualname__


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(DATASETS)


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
    if name not in DATASETS:
        raise PdlabError(f'unknown data set "{name}": choose one of {", ".join(DATASETS)}')
    try:
        source = DATASETS[name](Wanted(split, where, size, download, resize))
    except OSError as error:
        raise PdlabError(
            f"cannot read {error.filename or name}: {reason(error)}; put that right, or give --data"
        ) from error
    source.name = name  # by which a checkpoint finds it again
    return source


def source_of(
    data: Source | Tensor,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    conditions: Tensor | None = None,
) -> Source:
    """`data` as a `Source`: one already, or images `[N, C, H, W]`, uint8 or in [−1, 1] (kept as uint8).

    `labels` `[N]` are integers from 0 on, one an image; `classes` names them. `conditions` `[N, …]`, finite floats,
    stand in their place. Raises PdlabError for images of another type or range, or that are not finite, and for
    labels or conditions that do not fit.
    """
    if isinstance(data, Source):
        if labels is not None or classes is not None or conditions is not None:
            raise PdlabError(f"{data.name} brings its own labels: leave labels, classes and conditions out")
        return data
    if not isinstance(data, Tensor) or data.ndim != 4 or data.numel() == 0:
        given = list(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise PdlabError(f"images are a tensor [N, C, H, W] with an image at least, not {given}")
    if data.dtype != torch.uint8:
        if not data.is_floating_point():
            raise PdlabError(f"images are uint8, or floats in [-1, 1], not {data.dtype}")
        if not bool(data.isfinite().all()):
            raise PdlabError("there are images that are not finite: remove them")
        least, most = float(data.min()), float(data.max())
        if least < -1 or most > 1:
            raise PdlabError(
                f"images range from {least:.4g} to {most:.4g}, not within [-1, 1]: scale them (those in [0, 1] by "
                "2 x - 1), or give uint8"
            )
        data = to_uint8(data)
    if conditions is not None:
        return ImageSource(data, conditions=checked_conditions(conditions, len(data), labels))
    if labels is None:
        if classes is not None:
            raise PdlabError("classes name labels: give labels too")
        return ImageSource(data)
    if labels.shape != data.shape[:1] or labels.is_floating_point() or int(labels.min()) < 0:
        raise PdlabError(
            f"labels are {len(data)} integers from 0 on, one an image, not {list(labels.shape)} of {labels.dtype}"
            + (f" from {int(labels.min())} on" if labels.numel() and not labels.is_floating_point() else "")
        )
    count = int(labels.max()) + 1
    names = tuple(classes) if classes is not None else tuple(str(k) for k in range(count))
    if len(names) < count:
        raise PdlabError(f"labels go up to {count - 1}, but only {len(names)} classes are named")
    return ImageSource(data, labels.long(), names)


def checked_conditions(conditions: Tensor, n: int, labels: Tensor | None = None) -> Tensor:
    """`conditions` as float32; PdlabError unless they are `[n, …]`, finite floats, without labels beside."""
    if labels is not None:
        raise PdlabError("give labels or conditions, not both")
    if not conditions.is_floating_point() or conditions.ndim < 2 or len(conditions) != n:
        raise PdlabError(
            f"conditions are floats [{n}, …], one an example, not {list(conditions.shape)} of {conditions.dtype}"
        )
    if not bool(conditions.isfinite().all()):
        raise PdlabError("there are conditions that are not finite: remove them")
    return conditions.detach().float().cpu()


@register_dataset("cifar10")
def _cifar10(wanted: Wanted) -> Source:
    return cifar10.load(wanted.split, wanted.root, wanted.download)


@register_dataset("cifar10-16px")
def _cifar10_16px(wanted: Wanted) -> Source:
    return cifar10.halved(cifar10.load(wanted.split, wanted.root, wanted.download))


@register_dataset("digits")
def _digits(wanted: Wanted) -> Source:
    return digits.load(wanted.split)


@register_dataset("folder")
def _folder(wanted: Wanted) -> Source:
    if wanted.root is None or wanted.size is None:
        raise PdlabError("a folder of images needs root (--data DIR) and size (pixels, for example 64)")
    return folder.load(wanted.root, wanted.size, wanted.split, wanted.resize)


for _name in toys.TOYS:
    DATASETS[_name] = lambda wanted, name=_name: toys.ToySource(name, wanted.split)  # type: ignore[misc]
