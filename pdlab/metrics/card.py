"""The card: how a figure was measured, kept with the figure."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch

from pdlab import __version__
from pdlab.errors import PdlabError
from pdlab.metrics.features import FeatureExtractor

Kind = Literal["frechet", "kernel", "agreement", "precision", "recall", "density"]
_NAMES: dict[Kind, str] = {
    "frechet": "F",
    "kernel": "KD-",
    "agreement": "agreement-",
    "precision": "precision-",
    "recall": "recall-",
    "density": "bits/dim-",
}


@dataclass(frozen=True)
class Card:
    """How one figure was measured. Every field is a JSON value."""

    metric: str  # as `figure_name` says
    n: int  # samples
    reference: dict[str, Any]  # name, split, size, digest
    extractor: dict[str, Any]  # FeatureExtractor.describe()
    rounding: str  # how samples in [-1, 1] became images: "uint8, to nearest"
    sampler: dict[str, Any]  # its name and parameters
    steps: int
    nfe: int  # network evaluations per sample
    guidance: float  # how far beyond its class each sample was guided; 0 is not
    classes: list[str] | None  # sample k is of class k mod their number; None for a model without classes
    clip: bool  # whether the prediction of x was clipped to [-1, 1]
    seed: int
    ema: bool
    checkpoint: str | None  # hash of the weights; None for a model without any
    precision: str  # of products, as they were really computed: "bf16", "tf32" or "fp32"
    device: str
    versions: dict[str, str]
    real: dict[str, Any] | None  # value, n, how: what real images reach, the best that can be expected

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Card":
        """The inverse of `to_dict`; PdlabError if a field is missing or unknown."""
        return cls(**_checked(cls, data))


@dataclass(frozen=True)
class Row:
    """One figure of a report, with its card."""

    model: str
    steps: int
    metric: str
    value: float
    card: Card
    spread: float | None = None  # the standard error over draws of samples; kernel: deviation between subsets

    @property
    def kind(self) -> Kind:
        """What was measured, by the figure's name."""
        return next(kind for kind, name in _NAMES.items() if self.metric.startswith(name))

    @property
    def better(self) -> str:
        """Which figures are better: "lower" for distances and code lengths, "higher" for shares."""
        return "lower" if self.kind in ("frechet", "kernel", "density") else "higher"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Row":
        """The inverse of `to_dict`; PdlabError if a field is missing or unknown."""
        data = _checked(cls, data)
        return cls(**{**data, "card": Card.from_dict(data["card"])})


def figure_name(
    kind: Kind,
    extractor: FeatureExtractor | str,
    n: int,
    reference_split: str,
    reference_size: int,
) -> str:
    """The name of a figure: FID only for what papers call FID, else its features' name.

    FID is the Fréchet distance on Inception-2015 features of 50,000 samples against the training split
    (which, at fewer than 50,000 images, is only a part of one). All else is FD-<features>, KD-<features> for the
    kernel distance, or its kind and the features. `extractor` is an extractor or its label.
    """
    label = extractor if isinstance(extractor, str) else extractor.label
    if kind != "frechet":
        return f"{_NAMES[kind]}{label}"
    conventional = n == 50_000 and reference_split == "train" and reference_size >= 50_000
    return "FID" if conventional and label == "Inception2015" else f"FD-{label}"


def comparable(a: Card, b: Card) -> list[str]:
    """The fields in which `a` and `b` differ so that their figures must not share an axis; [] if they may.

    Model, sampler, steps, guidance, seed and the machine may differ: those are what a plot compares.
    """
    same = ("metric", "n", "reference", "extractor", "rounding")
    return [name for name in same if getattr(a, name) != getattr(b, name)]


def by_sampler(
    report: Mapping[str, Any], guidance: float = 0.0, what: Kind = "frechet"
) -> dict[str, dict[int, Row]]:
    """A report's figures of one kind at one guidance: `[sampler or "distilled"][network evaluations]`.

    Heun's rule, which needs an odd number of predictions, stands at one more.
    """
    found: dict[str, dict[int, Row]] = {}
    for data in report["rows"]:
        row = Row.from_dict(data)
        if row.kind == what and row.card.guidance == guidance:
            kind = "distilled" if row.model == "distilled" else str(row.card.sampler["name"])
            calls = row.card.nfe
            found.setdefault(kind, {})[calls + (calls + 2) // (2 * row.card.steps) if kind == "heun" else calls] = (
                row
            )
    return found


def versions() -> dict[str, str]:
    """The versions of what a figure depends on; an extractor's own library is in its description."""
    return {
        "pdlab": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def _checked(cls: type[Card] | type[Row], data: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    wrong = names.symmetric_difference(data)
    if wrong:
        raise PdlabError(f"not a {cls.__name__.lower()}: fields {', '.join(sorted(wrong))} missing or unknown")
    return data
