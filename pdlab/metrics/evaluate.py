"""Measure denoisers: the same noise, the same rounding, the same reference for all; a card for every figure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pdlab.data.source import ImageSource, to_uint8
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import Sampler, find_sampler, nfe, sample, sampler_name, takes
from pdlab.errors import PdlabError
from pdlab.metrics.agreement import real_agreement, reference_probe, standard_error
from pdlab.metrics.card import Card, Kind, Row, figure_name, versions
from pdlab.metrics.features import FeatureExtractor
from pdlab.metrics.frechet import frechet_distance, frechet_spread
from pdlab.metrics.kernel import kernel_distance
from pdlab.metrics.manifold import MOST, Manifold
from pdlab.metrics.reference import real_floor, reference_card, reference_features, reference_statistics
from pdlab.metrics.statistics import FeatureStatistics
from pdlab.seeds import generator_for
from pdlab.training.checkpoint import Checkpoint
from pdlab.training.machine import Machine

Progress = Callable[[int, int], None]  # images done, images in all
Decode = Callable[[Tensor], Tensor]  # samples [B, …] -> images [B, C, H, W] in [-1, 1]

_SHARES: tuple[Kind, ...] = ("precision", "recall")
_BLOCK = 250  # noise is drawn in blocks of this size, so that it does not depend on the batch


def noise(shape: Sequence[int], n: int, seed: int) -> Tensor:
    """Standard normal `[n, *shape]` float32 on the CPU: the first `n` of one sequence for each seed."""
    return torch.cat(list(_noise_blocks(shape, n, seed)))


def labels_of(denoiser: Denoiser, n: int, classes: Sequence[int] | None = None) -> Tensor | None:
    """The classes `[n]` that samples of `denoiser` are drawn of; None for one without classes.

    Sample k is of the (k mod m)-th of the m `classes` (default: all), so that each is drawn equally often.
    Raises PdlabError for a class that there is not.
    """
    if not denoiser.num_classes:
        if classes is not None:
            raise PdlabError("this model was trained without classes: leave them out")
        return None
    chosen = torch.arange(denoiser.num_classes) if classes is None else torch.tensor(list(classes))
    if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= denoiser.num_classes:
        raise PdlabError(f"classes are numbers from 0 to {denoiser.num_classes - 1}, not {chosen.tolist()}")
    return chosen[torch.arange(n) % len(chosen)]


def generate(
    denoiser: Denoiser,
    shape: Sequence[int],
    n: int,
    steps: int,
    sampler: str | Sampler = "ddim",
    *,
    seed: int = 0,
    clip: bool | None = None,
    guidance: float = 0.0,
    classes: Sequence[int] | None = None,
    conditions: Tensor | None = None,
    batch: int = 1000,
    progress: Progress | None = None,
    options: Mapping[str, float] | None = None,
) -> Iterator[Tensor]:
    """Batches of samples `[b, *shape]` in float32, `n` in all, from `noise(shape, n, seed)`.

    Sample k is of the class that `labels_of` says, or told the (k mod m)-th of the `conditions` `[m, …]`. It
    depends on `seed` and k, but neither on `batch` nor on `n`: a sampler's own noise, too, is of one stream for
    each block of k. Raises PdlabError for a guidance or classes that `denoiser` cannot be given, and for conditions
    that are missing, before anything is drawn.
    """
    find_sampler(sampler)
    denoiser.check_guidance(guidance)
    labels = labels_of(denoiser, n, classes)
    if (conditions is None) != (denoiser.condition is None):
        raise PdlabError(
            f"this model is told conditions [m, {', '.join(map(str, denoiser.condition))}]: give them, from Python"
            if denoiser.condition is not None
            else "this model is told no conditions: leave them out"
        )

    def told(begin: int, end: int) -> Tensor | None:
        if conditions is not None:
            return conditions[torch.arange(begin, end) % len(conditions)]
        return None if labels is None else labels[begin:end]

    def batches() -> Iterator[Tensor]:
        device = denoiser.device
        for begin in range(0, n, max(_BLOCK, batch // _BLOCK * _BLOCK)):
            end = min(n, begin + max(_BLOCK, batch // _BLOCK * _BLOCK))
            z = torch.cat(list(_noise_blocks(shape, end, seed, begin)))
            extra: dict[str, Any] = dict(options or {})
            if takes(sampler, "draw"):
                extra["draw"] = _fresh_noise(begin, end, seed)
            given = told(begin, end)
            given = None if given is None else given.to(device)
            yield sample(
                denoiser, z.to(device), steps, sampler, clip=clip, labels=given, guidance=guidance, **extra
            )
            if progress is not None:
                progress(end, n)

    return batches()


def samples_of(
    checkpoint: Checkpoint,
    n: int,
    steps: int,
    machine: Machine,
    sampler: str | Sampler = "ddim",
    *,
    classes: Sequence[str | int] | None = None,
    **how: Any,
) -> Iterator[Tensor]:
    """Batches of samples of `checkpoint` on `machine`, `n` in all; `classes` by name or number.

    `how` as for `generate`.
    """
    with machine.for_sampling(machine.place(checkpoint.denoiser)) as denoiser:
        numbers = checkpoint.class_numbers(classes)
        yield from generate(denoiser, checkpoint.shape, n, steps, sampler, classes=numbers, **how)


class Yardstick:
    """What samples are measured with: features, a reference, a number of samples, and what real images reach.

    Args:
        reference: the training images.
        extractor: the features.
        n: samples to be measured; precision and recall take at most the first 10,000.
        held_out: real images to compare with, if there are as many as `n`.
        kinds: what is measured: "frechet", "kernel", "agreement" (of models with classes), "precision", "recall".
        spread: also estimate the standard error of a Fréchet distance, at 5 times its cost.

    `real[kind]` is what real images reach: {"value", "n", "how"}, or None where there are too few.

    Raises PdlabError if `n` is too small for what is measured, or `reference` has no classes to agree with.
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
        # Products of all with all are the device's; a covariance, and its eigenvalues, are the CPU's.
        self.device = getattr(extractor, "device", torch.device("cpu"))  # one's own need not have any
        self.features = reference_features(reference, extractor).to(self.device) if "kernel" in kinds else None
        self.real: dict[Kind, dict[str, Any] | None] = {}
        if "frechet" in kinds:
            self.real["frechet"] = real_floor(reference, extractor, n, held_out)
        if "kernel" in kinds:
            self.real["kernel"] = real_floor(
                reference, extractor, n, held_out, distance="kernel", shrink_subsets=True
            )
        if "agreement" in kinds:
            self._probe = reference_probe(reference, extractor)
            self.real["agreement"] = real_agreement(reference, extractor, held_out)
        if "precision" in kinds or "recall" in kinds:
            count = min(n, MOST)
            self._drawn = reference_features(reference, extractor, count).to(self.device)
            self._manifold = Manifold.of(self._drawn)
            self.real |= {kind: None for kind in _SHARES if kind in kinds}
            if held_out is not None and len(held_out) >= count:
                real = reference_features(held_out, extractor, count)
                how = f"{count} held-out images ({held_out.name} {held_out.split})"
                for kind in self.real.keys() & _SHARES:
                    self.real[kind] = {"value": self._share(kind, real), "n": count, "how": how}

    def name(self, kind: Kind) -> str:
        """Name of the figure of this kind, e.g. FD-pixels."""
        return figure_name(
            kind,
            self.extractor,
            self.n,
            self.reference.split,
            len(self.reference),
        )

    def taken(self, kind: Kind) -> tuple[int, dict[str, Any]]:
        """How many samples, and which reference as a card names it, figures of this kind are of."""
        if kind in _SHARES:
            return min(self.n, MOST), reference_card(self.reference, min(self.n, MOST))
        return self.n, reference_card(self.reference)

    def measure(self, features: Tensor, labels: Tensor | None = None) -> dict[Kind, tuple[float, float | None]]:
        """(value, spread) of each kind for samples' `features` `[n, dim]` of the classes `labels` `[n]`.

        Samples without classes are not measured for agreement.
        """
        figures: dict[Kind, tuple[float, float | None]] = {}
        for kind in self.kinds:
            if kind == "frechet":
                spread = frechet_spread(features, self.statistics) if self.spread else None
                figures[kind] = (frechet_distance(FeatureStatistics.of(features), self.statistics), spread)
            elif kind == "kernel":
                assert self.features is not None
                figures[kind] = kernel_distance(features.to(self.device), self.features, shrink_subsets=True)
            elif kind == "agreement":
                if labels is not None:
                    figures[kind] = self._probe.agreement(features, labels)
            else:
                share = self._share(kind, features[:MOST])
                of = len(features[:MOST]) if kind == "precision" else len(self._drawn)
                figures[kind] = (share, standard_error(share, of))
        return figures

    def _share(self, kind: Kind, features: Tensor) -> float:
        """Precision or recall of `features` `[n, dim]`."""
        features = features.to(self.device)
        if kind == "precision":
            return self._manifold.holds(features)
        return Manifold.of(features, self._manifold.centre).holds(self._drawn)


def evaluate(
    checkpoint: Checkpoint,
    steps: int,
    yardstick: Yardstick,
    machine: Machine,
    *,
    sampler: str | Sampler = "ddim",
    seed: int = 0,
    clip: bool | None = None,
    guidance: float = 0.0,
    classes: Sequence[str | int] | None = None,
    conditions: Tensor | None = None,
    decode: Decode | None = None,
    batch: int = 1000,
    progress: Progress | None = None,
    options: Mapping[str, float] | None = None,
) -> list[Row]:
    """Sample `checkpoint` in `steps` steps and measure it: one row for each kind of the yardstick.

    `classes`, by name or number, are drawn in turn (default: all), or the `conditions`. `decode` makes images of
    samples that are none: its card says so.
    """
    how: dict[str, Any] = {"sampler": sampler, "seed": seed, "clip": clip, "options": options}
    how |= {"guidance": guidance, "classes": classes}
    only: dict[str, Any] = {"conditions": conditions, "decode": decode, "batch": batch, "progress": progress}
    features = sample_features(checkpoint, steps, yardstick, machine, **only, **how)
    said: dict[str, Any] = {} if conditions is None else {"conditions": len(conditions)}
    if decode is not None:
        said["decoder"] = str(getattr(getattr(decode, "__self__", decode), "name", "one's own"))
    how["options"] = {**(options or {}), **said}
    return rows_of(features, checkpoint, steps, yardstick, machine, **how)


def sample_features(
    checkpoint: Checkpoint,
    steps: int,
    yardstick: Yardstick,
    machine: Machine,
    *,
    sampler: str | Sampler = "ddim",
    seed: int = 0,
    clip: bool | None = None,
    guidance: float = 0.0,
    classes: Sequence[str | int] | None = None,
    conditions: Tensor | None = None,
    decode: Decode | None = None,
    batch: int = 1000,
    progress: Progress | None = None,
    options: Mapping[str, float] | None = None,
) -> Tensor:
    """Features `[yardstick.n, dim]` of samples of `checkpoint`, decoded and rounded to uint8."""
    how: dict[str, Any] = {"seed": seed, "clip": clip, "guidance": guidance, "classes": classes, "options": options}
    how |= {"conditions": conditions, "batch": batch, "progress": progress}
    parts = samples_of(checkpoint, yardstick.n, steps, machine, sampler, **how)
    return torch.cat([yardstick.extractor(to_uint8(decode(part) if decode else part)) for part in parts])


def rows_of(
    features: Tensor,
    checkpoint: Checkpoint,
    steps: int,
    yardstick: Yardstick,
    machine: Machine,
    *,
    sampler: str | Sampler = "ddim",
    seed: int = 0,
    clip: bool | None = None,
    guidance: float = 0.0,
    classes: Sequence[str | int] | None = None,
    options: Mapping[str, float | str] | None = None,
) -> list[Row]:
    """Measure `features`, made by `sample_features` with the same arguments."""
    denoiser, names = checkpoint.denoiser, checkpoint.classes
    numbers = checkpoint.class_numbers(classes)
    labels = labels_of(denoiser, len(features), numbers)
    rows = []
    for kind, (value, spread) in yardstick.measure(features, labels).items():
        n, reference = yardstick.taken(kind)
        card = Card(
            metric=yardstick.name(kind),
            n=n,
            reference=reference,
            extractor=yardstick.extractor.describe(),
            rounding="uint8, to nearest",
            sampler={"name": sampler_name(sampler), **(options or {})},
            steps=steps,
            nfe=nfe(sampler, steps, denoiser.evaluations(guidance)),
            guidance=float(guidance),
            classes=None if labels is None else [names[k] for k in numbers or range(len(names))],
            clip=denoiser.bounded if clip is None else clip,
            seed=seed,
            ema=bool(checkpoint.info.get("ema")),
            checkpoint=checkpoint.sha256 or None,
            precision=machine.computes_in(denoiser.network),
            device=machine.describe(),
            versions=versions(),
            real=yardstick.real[kind],
        )
        rows.append(Row(str(checkpoint.info.get("model", "teacher")), steps, card.metric, value, card, spread))
    return rows


def _noise_blocks(shape: Sequence[int], n: int, seed: int, first: int = 0) -> Iterator[Tensor]:
    """The noise of samples `first` (a multiple of the block's size) to `n`, block by block."""
    for start in range(first, n, _BLOCK):
        yield _block(shape, n - start, generator_for("cpu", seed, "noise", start))


def _fresh_noise(first: int, n: int, seed: int) -> Callable[[Tensor], Tensor]:
    """What the ancestral sampler adds to samples `first` to `n` in one step after the other."""
    generators = {start: generator_for("cpu", seed, "ancestral", start) for start in range(first, n, _BLOCK)}

    def draw(z: Tensor) -> Tensor:
        return torch.cat([_block(z.shape[1:], n - start, g) for start, g in generators.items()]).to(z)

    return draw


def _block(shape: Sequence[int], n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(_BLOCK, *shape, generator=generator)[:n]
