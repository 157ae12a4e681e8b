"""What samples are measured against: features and statistics of real images, and the floor they set."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import TypedDict

from pdlab import schema
from pdlab.data import cache_dir
from pdlab.data.cache import CACHE_REMEDY
from pdlab.data.source import ImageSource
from pdlab.errors import PdlabError
from pdlab.files import discard
from pdlab.metrics.features import FeatureExtractor
from pdlab.metrics.frechet import frechet_distance
from pdlab.metrics.kernel import kernel_distance
from pdlab.metrics.statistics import FeatureStatistics
from pdlab.tensors import read_tensors, write_folder

Progress = Callable[[int, int], None]  # images done, images in all

_CHUNK = 512  # images between two calls of a progress


class Kept(TypedDict):
    """features.json of the cache without its seal; `name` is that of the folder it was written as."""

    sha256: schema.Sha256
    name: str


def reference_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    limit: int | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Tensor:
    """The features `[N, dim]` of the source's images, from the cache when they are there.

    `limit` takes that many images, drawn without replacement from `seed`: a source may be ordered by class.
    The cache folder is named by the hash of the images' digest, the draw and `extractor.describe()`; a damaged
    one is computed anew. Pixels are not cached, being quicker to compute than to read.
    """
    if extractor.name == "pixels":
        return torch.cat(list(_batches(source, extractor, limit, progress, seed)))
    path = cache_path("features", source, extractor, limit, seed)
    rows = _rows(source, limit, seed)
    whole = cache_path("features", source, extractor)
    for folder, taken in ((path, slice(None)), (whole, rows)):
        if found := kept(folder, "features"):
            return found[0][taken]
    features = torch.cat(list(_batches(source, extractor, limit, progress, seed)))
    keep(path, features=features)
    return features


def reference_statistics(
    source: ImageSource,
    extractor: FeatureExtractor,
    limit: int | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> FeatureStatistics:
    """Mean and covariance of `reference_features`, cached in the same way."""
    path = cache_path("statistics", source, extractor, limit, seed)
    if found := kept(path, "n", "mean", "scatter"):
        return FeatureStatistics.from_parts(*found)
    if extractor.name == "pixels":  # streamed: as float64, the features of a large source fill the memory
        statistics = FeatureStatistics()
        for features in _batches(source, extractor, limit, progress, seed):
            statistics.update(features)
    else:
        statistics = FeatureStatistics.of(reference_features(source, extractor, limit, progress, seed))
    keep(path, **statistics.parts())
    return statistics


def reference_card(source: ImageSource, limit: int | None = None) -> dict[str, Any]:
    """The reference as a card names it: name, split, number of images used, digest of all its images."""
    return {
        "name": source.name,
        "split": source.split,
        "size": len(_rows(source, limit)),
        "digest": source.digest,
    }


def real_floor(
    reference_source: ImageSource,
    extractor: FeatureExtractor,
    n: int,
    held_out: ImageSource | None = None,
    seed: int = 0,
    distance: Literal["frechet", "kernel"] = "frechet",
    progress: Progress | None = None,
    **kernel_options: Any,
) -> dict[str, Any]:
    """The distance of `n` real images to the reference: what a perfect model would score at the same n.

    The `n` are images of `held_out` when it has as many, else draws with replacement from the reference.
    Returns {"value": the distance, "n": n, "how": which of the two}; `kernel_options` are those of
    `kernel_distance`.

    Raises PdlabError for too few samples, as the distances do.
    """
    if held_out is not None and len(held_out.images) >= n:
        real = reference_features(held_out, extractor, n, progress, seed)
        how = f"{n} held-out images ({held_out.name} {held_out.split})"
    else:
        size = len(reference_source.images)
        drawn = torch.randint(size, (n,), generator=torch.Generator().manual_seed(seed))
        if extractor.name == "pixels":
            real = extractor(reference_source.images[drawn.to(reference_source.images.device)])
        else:
            real = reference_features(reference_source, extractor, progress=progress)[drawn]
        how = f"{n} draws with replacement from the reference itself, as too few images are held out"
    if distance == "frechet":
        statistics = reference_statistics(reference_source, extractor, progress=progress)
        value = frechet_distance(FeatureStatistics.of(real), statistics)
    else:
        reference = reference_features(reference_source, extractor, progress=progress)
        value, _ = kernel_distance(real, reference, seed=seed, **kernel_options)
    return {"value": value, "n": n, "how": how}


def nearest_distances(samples: Tensor, reference: Tensor, chunk: int = 256) -> Tensor:
    """For each of `samples` `[n, dim]` the Euclidean distance `[n]`, float64, to the nearest of `reference`.

    Samples that copy training images have distances near 0 and far below those of held-out images.
    """
    reference = reference.double()
    distances = []
    for part in samples.double().split(chunk):
        # cdist goes by the matrix product, which near 0 keeps half the digits: only its argmin is used
        nearest = torch.cdist(part, reference).argmin(1)
        distances.append((part - reference[nearest]).norm(dim=1))
    return torch.cat(distances)


def _rows(source: ImageSource, limit: int | None, seed: int = 0) -> Tensor:
    """The rows of `source` that `limit` leaves, in ascending order."""
    size = len(source.images)
    if limit is None or limit >= size:
        return torch.arange(size)
    if limit < 1:
        raise PdlabError(f"a reference needs at least 1 image, not {limit}")
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def _batches(
    source: ImageSource, extractor: FeatureExtractor, limit: int | None, progress: Progress | None, seed: int
) -> Iterator[Tensor]:
    rows, done = _rows(source, limit, seed), 0
    for part in rows.split(_CHUNK):
        yield extractor(source.images[part.to(source.images.device)])
        done += len(part)
        if progress is not None:
            progress(done, len(rows))


def cache_path(
    kind: str, source: ImageSource, extractor: FeatureExtractor, limit: int | None = None, seed: int = 0
) -> Path:
    """Where what is computed of the source's features lies: named by the hash of all that decides it."""
    size = len(source.images)
    drawn = None if limit is None or limit >= size else [limit, seed]
    content = {"format": 1, "images": source.digest, "drawn": drawn, "extractor": extractor.describe()}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "features" / f"{key}.{kind}"


def kept(path: Path, *names: str) -> list[Tensor] | None:
    """The tensors `names` of a folder of the cache; None where it is missing, damaged or something else."""
    try:
        header = schema.read(path / "features.json", Kept)
        tensors = read_tensors(path / "features.safetensors", header["sha256"])
        return [tensors[name] for name in names] if header["name"] == path.name else None
    except (PdlabError, OSError, KeyError):
        return None


def keep(path: Path, **tensors: Tensor) -> None:
    """Write to the cache, in the place of what cannot be used there, or warn."""
    discard(path)
    try:
        write_folder(path, "features", tensors, {"name": path.name}, CACHE_REMEDY)
    except PdlabError as error:  # a full or read-only disk costs time later, not the figure now
        if kept(path, *tensors) is None:  # else another process was quicker
            warnings.warn(f"not cached: {error}", stacklevel=3)
