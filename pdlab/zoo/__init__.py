"""Trained ladders: a teacher, its students, what they draw, and every figure with its card.

    NAME/manifest.json          every file's hash, every rung's lineage, cost and figures
    NAME/teacher/, student-0004/, …   checkpoints, weights in float16
    NAME/report.json            all samplers against all step counts
    NAME/noise.npz              64 fixed noises, float32 [64, C, H, W]
    NAME/samples.safetensors    what every rung, and undistilled DDIM, makes of them: uint8 [64, C, H, W] each
    NAME/pool.png               2,048 samples of the teacher, one lossless mosaic
    NAME/samples.png, README.md to look at and to read

A ladder is named by what ships with the package (`names()`), or by the path of a folder that `build` made.
Files are checked against the manifest's hashes when they are read; nothing is unpickled.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from pdlab.data import ImageSource
from pdlab.data import load as load_data
from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError
from pdlab.training.checkpoint import Checkpoint, file_sha256
from pdlab.training.checkpoint import load as load_checkpoint

HOME = Path(__file__).parent
MANIFEST, REPORT, NOISE, SAMPLES, POOL = (
    "manifest.json",
    "report.json",
    "noise.npz",
    "samples.safetensors",
    "pool.png",
)
_PREFERRED = ("cifar10-gpu",)


def names() -> list[str]:
    """The ladders that ship with the package."""
    return sorted(path.parent.name for path in HOME.glob(f"*/{MANIFEST}"))


def default() -> str:
    """The ladder that the notebooks and the app show: the best that ships. PdlabError where none does."""
    shipped = names()
    for name in (*_PREFERRED, *shipped):
        if name in shipped:
            return name
    raise PdlabError(f"this installation has no ladder in {HOME}: install pdlab again, or run pdlab quickstart")


def folder(name: str) -> Path:
    """Where ladder `name`, one of `names()` or a path, lies. PdlabError naming those there are."""
    for path in (HOME / name, Path(name)):
        if (path / MANIFEST).is_file():
            return path
    raise PdlabError(f"there is no ladder {name!r}: there is {', '.join(names()) or 'none'} (see pdlab zoo)")


def manifest(name: str) -> dict[str, Any]:
    """The manifest of ladder `name`; PdlabError if it cannot be read."""
    return _json(folder(name) / MANIFEST)


def report(name: str) -> dict[str, Any]:
    """The measured report of ladder `name`: rows with cards, costs, nearest training images."""
    return _json(_checked(name, REPORT))


def load(name: str, steps: int | None = None) -> Denoiser:
    """The student of `steps` steps of ladder `name`, or its undistilled teacher; weights in float32.

    `load("cifar10-16px", steps=4)`. PdlabError for an unknown ladder or rung, or a damaged file.
    """
    return checkpoint(name, steps).denoiser


def checkpoint(name: str, steps: int | None = None) -> Checkpoint:
    """The same with what is known about it: preset, data, cost, lineage, hash."""
    rung = _rung(name, steps)
    found = load_checkpoint(folder(name) / rung["name"])
    if found.sha256 != rung["sha256"]:
        raise PdlabError(f"{found.path} is not the model of {name}'s manifest: install pdlab again")
    return found


def find(text: str) -> Path:
    """The checkpoint folder that `text` names: a path, or LADDER:STEPS, or LADDER:teacher.

    What exists as a path is a path; what does not and names no ladder stays one, for the reader's own message.
    """
    path, (name, colon, rung) = Path(text), text.rpartition(":")
    if path.exists():
        return path
    if text in names():
        raise PdlabError(f"{text} is a ladder: name a model of it, {text}:teacher or {text}:STEPS (see pdlab zoo)")
    if not colon:
        return path
    if rung != "teacher" and not rung.isdecimal():
        raise PdlabError(f"{text}: after the colon comes a number of steps or teacher, e.g. {name}:4")
    return folder(name) / str(_rung(name, None if rung == "teacher" else int(rung))["name"])


def noise(name: str) -> Tensor:
    """The 64 fixed noises of ladder `name`, float32 `[64, C, H, W]`."""
    path = _checked(name, NOISE)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return torch.from_numpy(archive["noise"])
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path) from error


def samples(name: str) -> dict[tuple[str, int], Tensor]:
    """What is made of `noise(name)`, sampled in float32: uint8 `[64, C, H, W]` by (kind, steps).

    The kind is "distilled" (the student of so many steps) or "ddim" (the undistilled teacher).
    """
    path = _checked(name, SAMPLES)
    try:
        tensors = safetensors.torch.load_file(path)
        return {
            (kind, int(steps)): t for (kind, _, steps), t in ((k.partition("/"), t) for k, t in tensors.items())
        }
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _damaged(path) from error


def pool(name: str) -> ImageSource:
    """2,048 samples of the teacher of ladder `name`: images to work on where its data set is not at hand."""
    path, made = _checked(name, POOL), manifest(name)
    channels, height, width = made["data"]["shape"]
    try:
        with Image.open(path) as picture:
            sheet = np.array(picture)
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    sheet = sheet.reshape(*sheet.shape[:2], -1)[:, :, :channels]
    tiles = sheet.reshape(sheet.shape[0] // height, height, sheet.shape[1] // width, width, channels)
    images = torch.from_numpy(tiles.transpose(0, 2, 4, 1, 3).reshape(-1, channels, height, width).copy())
    return ImageSource(images, name=f"samples of {name}'s teacher")


def images(name: str, split: str = "train", root: str | Path | None = None) -> ImageSource:
    """The data set of ladder `name` where it is at hand (`root`, $PDLAB_DATA, the cache), else its `pool`.

    The source's `name` says which. A damaged data set is an error, not a reason for the pool.
    """
    data = manifest(name)["data"]
    try:
        source = load_data(data["name"], split, root, data["size"])
    except PdlabError as error:
        if root is not None or "not found" not in str(error):
            raise
        return pool(name)
    assert isinstance(source, ImageSource)
    return source


def _rung(name: str, steps: int | None) -> dict[str, Any]:
    rungs: list[dict[str, Any]] = manifest(name)["rungs"]
    for rung in rungs:
        if rung["steps"] == steps:
            return rung
    there = ", ".join(str(rung["steps"]) for rung in rungs if rung["steps"])
    raise PdlabError(f"{name} has no student of {steps} steps: there are {there}, and the teacher")


def _checked(name: str, file: str) -> Path:
    """The path of `file`, whose hash is the manifest's."""
    path = folder(name) / file
    try:
        stat = path.stat()
        if _sha256(path, stat.st_mtime_ns, stat.st_size) != manifest(name)["files"][file]["sha256"]:
            raise _damaged(path)
    except (OSError, KeyError) as error:
        raise _damaged(path) from error
    return path


@lru_cache(maxsize=64)
def _sha256(path: Path, changed: int, size: int) -> str:
    return file_sha256(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
        return value
    except (OSError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> PdlabError:
    return PdlabError(f"{path} is missing or damaged: install pdlab again, or build the ladder again")
