"""Trained ladders: a teacher, its students, what they draw, and every figure with its card.

    NAME/manifest.json          every file's hash, every rung's lineage, cost and figures
    NAME/teacher/, student-0004/, …   checkpoints, weights in float16
    NAME/report.json            all samplers against all step counts
    NAME/noise.npz              64 fixed noises, float32 [64, C, H, W]
    NAME/samples.safetensors    what every rung, and undistilled DDIM, makes of them: uint8 [64, C, H, W] each,
                                of a ladder with classes as class k mod their number, at the stored guidances
    NAME/pool.png               2,048 samples of the teacher, one lossless mosaic; of one with classes, every class
                                in turn
    NAME/progress.png           a quick distance of the teacher while it was trained, where that was measured
    NAME/samples.png, README.md to look at and to read

A ladder is named by what ships with the package (`names()`), or by the path of a folder that `build` made.
Files are checked against the manifest's hashes when they are read, and the manifest against its seal and schema;
nothing is unpickled.
"""

import hashlib
import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from pdlab import schema
from pdlab.data import ImageSource
from pdlab.data import load as load_data
from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError, reason
from pdlab.files import read_bytes
from pdlab.metrics.card import Row
from pdlab.training.checkpoint import Checkpoint, Data
from pdlab.training.checkpoint import load as load_checkpoint
from pdlab.training.presets import from_dict
from pdlab.zoo.recipe import LadderRecipe

HOME = Path(__file__).parent
MANIFEST, REPORT, NOISE, SAMPLES, POOL, PROGRESS = (
    "manifest.json",
    "report.json",
    "noise.npz",
    "samples.safetensors",
    "pool.png",
    "progress.png",
)
MOST_BYTES = 256 << 20  # of one file of a ladder
_PREFERRED = ("cifar10",)


class Rung(TypedDict):
    """One checkpoint of a ladder, as its manifest has it."""

    name: Annotated[str, Field(pattern=r"^(teacher|student-\d{4,})$")]
    steps: schema.Steps | None
    file: str
    sha256: schema.Sha256
    teacher: schema.Sha256 | None
    float32: schema.Sha256
    preset: str
    images: schema.Whole
    flops: schema.NotNegative
    seconds: schema.NotNegative
    device: str
    rows: list[Row]


class Sized(Data):
    """The data set, and the side that a folder's images were brought to."""

    size: schema.Count | None


class Guidance(TypedDict):
    """The weights that samples are stored at, the one shown first, and the largest that students take."""

    shown: schema.NotNegative
    stored: Annotated[list[schema.NotNegative], Field(min_length=1)]
    most: schema.NotNegative


class Entry(TypedDict):
    """One file of a ladder."""

    sha256: schema.Sha256
    bytes: schema.Whole


class Manifest(TypedDict):
    """manifest.json without its seal; `settings` is a preset."""

    name: str
    preset: str
    settings: dict[str, Any]
    data: Sized
    first_steps: schema.Steps
    seed: schema.Whole
    recipe: LadderRecipe
    commit: str | None
    versions: dict[str, str]
    rungs: Annotated[list[Rung], Field(min_length=1)]
    samples: dict[str, Any]
    guidance: Guidance
    pool: dict[str, Any]
    throughput: dict[str, Any]
    seconds: schema.NotNegative
    files: dict[str, Entry]


class Reached(TypedDict):
    """What real images reach, by kind of figure."""

    frechet: dict[str, float | int | str]
    kernel: dict[str, float | int | str]
    agreement: NotRequired[dict[str, float | int | str] | None]
    precision: NotRequired[dict[str, float | int | str] | None]
    recall: NotRequired[dict[str, float | int | str] | None]


class Progress(TypedDict):
    """A figure's name, and its values by images seen."""

    figure: str
    points: list[tuple[schema.Whole, schema.Finite]]


class Report(TypedDict):
    """report.json of a ladder without its seal."""

    teacher_steps: schema.Steps
    rows: Annotated[list[Row], Field(min_length=1)]
    real: Reached
    best_nu: dict[str, float]
    nu_search: list[Row]
    teacher_best: dict[str, Any]
    memorising: dict[str, Any]
    cost: dict[str, Any]
    fid: list[Row]
    seconds: schema.NotNegative
    bias: dict[str, Any]
    progress: NotRequired[Progress]


def names() -> list[str]:
    """The ladders that ship with the package."""
    places = HOME.iterdir() if HOME.is_dir() else ()
    return sorted(path.name for path in places if os.path.lexists(path / MANIFEST))


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
        if os.path.lexists(path / MANIFEST):
            return path
    raise PdlabError(f"there is no ladder {name!r}: there is {', '.join(names()) or 'none'} (see pdlab zoo)")


def manifest(name: str) -> dict[str, Any]:
    """The manifest of ladder `name`; PdlabError if it cannot be read."""
    return manifest_at(folder(name))


def manifest_at(path: Path) -> dict[str, Any]:
    """The manifest of the ladder in folder `path`; PdlabError if it cannot be read or is none."""
    file = path / MANIFEST
    try:
        stat = file.stat()
        return _manifest(file, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    except OSError as error:
        raise _damaged(file, error) from error


def report(name: str) -> dict[str, Any]:
    """The measured report of ladder `name`: rows with cards, costs, nearest training images."""
    _content(name, REPORT)
    return schema.read(folder(name) / REPORT, Report)


def load(name: str, steps: int | None = None) -> Denoiser:
    """The student of `steps` steps of ladder `name`, or its undistilled teacher; weights in float32.

    `load("cifar10", steps=4)`. PdlabError for an unknown ladder or rung, or a damaged file.
    """
    return checkpoint(name, steps).denoiser


def checkpoint(name: str, steps: int | None = None) -> Checkpoint:
    """The same with what is known about it: preset, data, cost, lineage, hash."""
    rung = _rung(name, steps)
    found = load_checkpoint(folder(name) / rung["name"])
    if found.sha256 != rung["sha256"] or found.denoiser.steps != steps:
        raise PdlabError(f"{found.path} is not the model of {name}'s manifest: install pdlab again")
    _content(name, f"{rung['name']}/model.json")
    return found


def find(text: str) -> Checkpoint:
    """The checkpoint that `text` names: a path, or LADDER:STEPS, or LADDER:teacher.

    What exists as a path is a path; what does not and names no ladder stays one, for the reader's own message.
    """
    path, (name, colon, rung) = Path(text), text.rpartition(":")
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise PdlabError(f"{text:.100} cannot be the name of a checkpoint: {reason(error)}") from None
    if not there and text in names():
        raise PdlabError(f"{text} is a ladder: name a model of it, {text}:teacher or {text}:STEPS (see pdlab zoo)")
    if there or not colon:
        return load_checkpoint(path)
    if rung != "teacher" and not (rung.isdecimal() and len(rung) < 10):
        raise PdlabError(f"{text}: after the colon comes a number of steps or teacher, e.g. {name}:4")
    return checkpoint(name, None if rung == "teacher" else int(rung))


def noise(name: str) -> Tensor:
    """The 64 fixed noises of ladder `name`, float32 `[64, C, H, W]`."""
    content = _content(name, NOISE)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if (size := archive.zip.getinfo("noise.npy").file_size) > MOST_BYTES:
                raise ValueError(f"it would unpack to {size:,} bytes")
            return torch.from_numpy(archive["noise"])
    except (OSError, ValueError, KeyError, AttributeError, MemoryError) as error:
        raise _damaged(folder(name) / NOISE, error) from error


def labels(name: str) -> Tensor | None:
    """The class of each of `noise(name)`, int64 `[64]`: every class in turn; None for a ladder without classes."""
    count = len(classes(name))
    return torch.arange(manifest(name)["samples"]["noises"]) % count if count else None


def classes(name: str) -> list[str]:
    """The names of the classes that ladder `name` is conditioned on; empty for one without."""
    made = manifest(name)
    count = made["settings"]["network"].get("num_classes", 0)
    return (made["data"].get("classes") or [str(k) for k in range(count)]) if count else []


def samples(name: str, guidance: float | None = None) -> dict[tuple[str, int], Tensor]:
    """What is made of `noise(name)`, sampled in float32: uint8 `[64, C, H, W]` by (kind, steps).

    The kind is "distilled" (the student of so many steps) or "ddim" (the undistilled teacher). `guidance` is one
    of the stored weights, manifest["guidance"]["stored"]; by default that which is shown first. PdlabError for
    another.
    """
    stored = manifest(name)["guidance"]
    w = stored["shown"] if guidance is None else guidance
    if w not in stored["stored"]:
        there = ", ".join(f"{v:g}" for v in stored["stored"])
        raise PdlabError(f"{name} has no samples at guidance {w:g} in store: there are {there}")
    content = _content(name, SAMPLES)
    try:
        tensors = safetensors.torch.load(content)
        keys = {key: key.split("/") for key in tensors}
        return {(kind, int(n)): tensors[key] for key, (kind, n, at) in keys.items() if float(at) == w}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _damaged(folder(name) / SAMPLES, error) from error


def pool(name: str) -> ImageSource:
    """2,048 samples of the teacher of ladder `name`: images to work on where its data set is not at hand.

    Those of a ladder with classes are labelled with the class that was asked for.
    """
    content, made = _content(name, POOL), manifest(name)
    channels, height, width = made["data"]["shape"]
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.width * picture.height > 1 << 26:
                raise ValueError(f"{picture.width} × {picture.height} pixels are too many")
            sheet = np.array(picture)
        sheet = sheet.reshape(*sheet.shape[:2], -1)[:, :, :channels]
        tiles = sheet.reshape(sheet.shape[0] // height, height, sheet.shape[1] // width, width, channels)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(folder(name) / POOL, error) from error
    images = torch.from_numpy(tiles.transpose(0, 2, 4, 1, 3).reshape(-1, channels, height, width).copy())
    of, known = f"samples of {name}'s teacher", classes(name)
    if not known:
        return ImageSource(images, name=of)
    return ImageSource(images, torch.arange(len(images)) % len(known), tuple(known), of)


def images(name: str, split: str = "train", root: str | Path | None = None) -> ImageSource:
    """The data set of ladder `name` where it is at hand (`root`, $PDLAB_DATA, the cache), else its `pool`.

    The source's `name` says which. A damaged data set is an error, not a reason for the pool.
    """
    found = manifest(name)
    data, settings = found["data"], from_dict(found["settings"])
    try:
        source = load_data(data["name"], split, root, settings.size, resize=settings.resize)
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


def _content(name: str, file: str) -> bytes:
    """The content of `file`, whose size and hash are the manifest's."""
    path, entry = folder(name) / file, manifest(name)["files"].get(file)
    try:
        if entry is None or path.stat().st_size != entry["bytes"]:
            raise _damaged(path)
        content = read_bytes(path, MOST_BYTES)
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise _damaged(path)
    except OSError as error:
        raise _damaged(path, error) from error
    return content


@lru_cache(maxsize=16)
def _manifest(path: Path, changed: int, size: int, inode: int) -> dict[str, Any]:
    found = schema.read(path, Manifest)
    from_dict(found["settings"], f"{path}: settings")
    for rung in found["rungs"]:
        if rung["file"] not in found["files"]:
            raise PdlabError(f"{path}: files has no {rung['file']}, which is the file of a rung")
    return found


def _damaged(path: Path, why: Exception | None = None) -> PdlabError:
    because = f" ({reason(why)})" if why is not None else ""
    return PdlabError(f"{path} is missing or damaged{because}: install pdlab again, or build the ladder again")
