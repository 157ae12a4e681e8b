"""Measure denoisers: the same noise, the same rounding, the same reference for all; a card for every figure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pdlab.data.source import ImageSource, to_uint8
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import nfe, sample
from pdlab.errors import PdlabError
from pdlab.metrics.card import Card, Row, figure_name, versions
from pdlab.metrics.features import FeatureExtractor
from pdlab.metrics.frechet import frechet_distance, frechet_spread
from pdlab.metrics.kernel import kernel_distance
from pdlab.metrics.reference import real_floor, reference_card, reference_features, reference_statistics
from pdlab.metrics.statistics import FeatureStatistics
from pdlab.seeds import generator_for
from pdlab.training.checkpoint import Checkpoint
from pdlab.training.machine import Machine

Kind = Literal["frechet", "kernel"]
Progress = Callable[[int, int], None]  # images done, images in all

_BLOCK = 250  # noise is drawn in blocks of this size, so that it does not depend on the batch


def noise(shape: Sequence[int], n: int, seed: int) -> Tensor:
    """Standard normal `[n, *shape]` float32 on the CPU: the first `n` of one sequence for each seed."""
    return torch.cat(list(_noise_blocks(shape, n, seed)))


def generate(
    denoiser: Denoiser,
    shape: Sequence[int],
    n: int,
    steps: int,
    sampler: str = "ddim",
    *,
    seed: int = 0,
    clip: bool | None = None,
    batch: int = 1000,
    progress: Progress | None = None,
    options: Mapping[str, float] | None = None,
) -> Iterator[Tensor]:
    """Batches of samples `[b, *shape]` in float32, `n` in all, from `noise(shape, n, seed)`.

    Classes of a conditional denoiser are drawn uniformly; the ancestral sampler's noise from `seed` too.
    """
    device, done = denoiser.device, 0
    blocks = list(range(0, n, _BLOCK))
    for group in (blocks[i : i + max(1, batch // _BLOCK)] for i in range(0, len(blocks), max(1, batch // _BLOCK))):
        z = torch.cat([_noise_block(shape, min(_BLOCK, n - start), seed, start) for start in group])
        labels = None
        if denoiser.num_classes:
            draw = generator_for("cpu", seed, "labels", group[0])
            labels = torch.randint(denoiser.num_classes, (len(z),), generator=draw).to(device)
        extra: dict[str, Any] = dict(options or {})
        if sampler == "ancestral":
            extra["generator"] = generator_for(device, seed, "ancestral", group[0])
        with torch.inference_mode():
            yield sample(denoiser, z.to(device), steps, sampler, clip=clip, labels=labels, **extra)
        done += len(z)
        if progress is not None:
            progress(done, n)


class Yardstick:
    """What samples are measured with: features, a reference, a number of samples, and the floor these set.

    Args:
        reference: the training images.
        extractor: the features.
        n: samples to be measured.
        held_out: images the floor is taken of, if there are as many as `n`.
        kinds: "frechet" and/or "kernel".
        spread: also estimate the standard error of a Fréchet distance, at 5 times its cost.

    Raises PdlabError if `n` is too small for the features.
    """

    def __init__(
        self,
        reference: ImageSource,
        extractor: FeatureExtractor,
        n: int,
        held_out: ImageSource | None = None,
        kinds: Sequence[Kind] = ("frechet",),
        progress: Progress | None = None,
        spread: bool = True,
    ) -> None:
        self.reference, self.extractor, self.n, self.kinds = reference, extractor, n, tuple(kinds)
        self.spread = spread
        extractor(reference.images[:1])  # fixes the dimension of pixel features
        if "frechet" in kinds and n <= extractor.dim:
            raise PdlabError(
                f"too few samples: {n} of {extractor.label}'s {extractor.dim} features have a singular covariance, "
                f"and their distance measures n alone; take --n {extractor.dim + 1} or more, or --features pixels"
            )
        if "kernel" in kinds and n < 2:
            raise PdlabError(f"too few samples: the kernel distance needs at least 2, not {n}")
        self.statistics = reference_statistics(reference, extractor, progress=progress)
        self.features = reference_features(reference, extractor) if "kernel" in kinds else None
        self.floors = {}
        for kind in kinds:
            extra: dict[str, Any] = {"shrink_subsets": True} if kind == "kernel" else {}
            self.floors[kind] = real_floor(reference, extractor, n, held_out, distance=kind, **extra)

    def name(self, kind: Kind) -> str:
        """Name of the figure of this kind, e.g. FD-pixels."""
        return figure_name(
            kind,
            self.extractor,
            self.n,
            self.reference.split,
            len(self.reference),
        )

    def measure(self, features: Tensor) -> dict[Kind, tuple[float, float | None]]:
        """(value, spread) of each kind for samples' `features` `[n, dim]`."""
        figures: dict[Kind, tuple[float, float | None]] = {}
        for kind in self.kinds:
            if kind == "frechet":
                spread = frechet_spread(features, self.statistics) if self.spread else None
                figures[kind] = (frechet_distance(FeatureStatistics.of(features), self.statistics), spread)
            else:
                assert self.features is not None
                figures[kind] = kernel_distance(features, self.features, shrink_subsets=True)
        return figures


def evaluate(
    checkpoint: Checkpoint,
    steps: int,
    yardstick: Yardstick,
    machine: Machine,
    *,
    sampler: str = "ddim",
    seed: int = 0,
    clip: bool | None = None,
    batch: int = 1000,
    progress: Progress | None = None,
    options: Mapping[str, float] | None = None,
) -> list[Row]:
    """Sample `checkpoint` in `steps` steps and measure it: one row for each kind of the yardstick."""
    how: dict[str, Any] = {"sampler": sampler, "seed": seed, "clip": clip, "options": options}
    features = sample_features(checkpoint, steps, yardstick, machine, batch=batch, progress=progress, **how)
    return rows_of(features, checkpoint, steps, yardstick, machine, **how)


def sample_features(
    checkpoint: Checkpoint,
    steps: int,
    yardstick: Yardstick,
    machine: Machine,
    *,
    sampler: str = "ddim",
    seed: int = 0,
    clip: bool | None = None,
    batch: int = 1000,
    progress: Progress | None = None,
    options: Mapping[str, float] | None = None,
) -> Tensor:
    """Features `[yardstick.n, dim]` of samples of `checkpoint`, rounded to uint8."""
    denoiser = machine.place(checkpoint.denoiser)
    with machine.for_sampling(denoiser.network):
        parts = generate(
            denoiser,
            checkpoint.shape,
            yardstick.n,
            steps,
            sampler,
            seed=seed,
            clip=clip,
            batch=batch,
            progress=progress,
            options=options,
        )
        return torch.cat([yardstick.extractor(to_uint8(part)) for part in parts])


def rows_of(
    features: Tensor,
    checkpoint: Checkpoint,
    steps: int,
    yardstick: Yardstick,
    machine: Machine,
    *,
    sampler: str = "ddim",
    seed: int = 0,
    clip: bool | None = None,
    options: Mapping[str, float] | None = None,
) -> list[Row]:
    """Measure `features`, made by `sample_features` with the same arguments."""
    denoiser = checkpoint.denoiser
    rows = []
    for kind, (value, spread) in yardstick.measure(features).items():
        card = Card(
            metric=yardstick.name(kind),
            n=len(features),
            reference=reference_card(yardstick.reference),
            extractor=yardstick.extractor.describe(),
            rounding="uint8, to nearest",
            sampler={"name": sampler, **(options or {})},
            steps=steps,
            nfe=nfe(sampler, steps),
            clip=denoiser.bounded if clip is None else clip,
            seed=seed,
            ema=bool(checkpoint.info.get("ema")),
            checkpoint=checkpoint.sha256 or None,
            precision=machine.precision_for(denoiser.network),
            device=machine.describe(),
            versions=versions(),
            floor=yardstick.floors[kind],
        )
        rows.append(Row(str(checkpoint.info.get("model", "teacher")), steps, card.metric, value, card, spread))
    return rows


def _noise_blocks(shape: Sequence[int], n: int, seed: int) -> Iterator[Tensor]:
    for start in range(0, n, _BLOCK):
        yield _noise_block(shape, min(_BLOCK, n - start), seed, start)


def _noise_block(shape: Sequence[int], n: int, seed: int, start: int) -> Tensor:
    generator = generator_for("cpu", seed, "noise", start)
    return torch.randn(_BLOCK, *shape, generator=generator)[:n]
