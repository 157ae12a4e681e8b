"""Metrics: what the number of samples alone does to a distance, for the Fréchet and the kernel one."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from pdlab.app import chart, html, state
from pdlab.app.chart import Curve
from pdlab.app.compute import Show
from pdlab.app.ladders import Ladder, Shelf, ZooLadder
from pdlab.data import to_uint8
from pdlab.diffusion.samplers import sample
from pdlab.metrics.evaluate import noise
from pdlab.metrics.features import FeatureExtractor, extractor
from pdlab.metrics.frechet import frechet_distance
from pdlab.metrics.kernel import kernel_distance
from pdlab.metrics.statistics import FeatureStatistics

EXTRACTORS = ("pixels", "effnet-lite0")
SIZES = (32, 64, 128, 256, 512, 1024)
_BATCH = 32


@dataclass(frozen=True)
class Choice:
    """The features, and the most samples."""

    extractor: str
    n: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Choice":
        """From a link's or the controls' values, whatever they are."""
        return cls(
            state.one(given.get("extractor"), EXTRACTORS, "pixels"), state.one(given.get("n"), SIZES[2:], 1024)
        )


def introduction() -> str:
    """What the experiment is."""
    return (
        '<p class="how">Two sets of samples of one teacher: their true distance is 0. What you see above 0 '
        "comes from the number of samples alone. That is why a figure is worth nothing without its n, and why "
        "figures of different n are never drawn on one axis here.</p>"
    )


def images(shelf: Shelf, ladder: Ladder, n: int, show: Show) -> Tensor:
    """`2 n` samples of the teacher: the ladder's stored pool, or, where it has none, drawn now in 8 steps."""
    if isinstance(ladder, ZooLadder):
        return ladder.pool()[: 2 * n]
    model, parts = shelf.model(ladder, None), []
    for z in noise(ladder.shape, 2 * n, 1).split(_BATCH):
        parts.append(to_uint8(sample(model, z.to(model.device), 8)).cpu())
        show((f"Drawn {len(parts) * _BATCH} of {2 * n} samples", "", ""))
    return torch.cat(parts)


def work(shelf: Shelf, ladder: Ladder, choice: Choice, show: Show) -> None:
    """Shows (text, charts, table) as n grows."""
    show(("Loading the features' network …", "", ""))
    by = extractor(choice.extractor)
    features = _features(shelf, ladder, by, choice.n, show)
    ours, reference = features[0::2], features[1::2]
    half = len(reference)
    statistics = FeatureStatistics.of(reference)
    done: dict[int, tuple[float, float, float]] = {}
    for n in [size for size in SIZES if size <= min(choice.n, half)]:
        part = ours[:n]
        frechet = frechet_distance(FeatureStatistics.of(part), statistics, allow_singular=True)
        kernel, spread = kernel_distance(part, reference[:n], subsets=20, subset_size=max(2, n // 2))
        done[n] = (frechet, kernel, spread)
        show(
            (
                f"{len(done)} sizes measured, of {half} samples against {half}",
                *view(by.label, features.shape[1], done, half),
            )
        )


def view(label: str, dim: int, done: Mapping[int, tuple[float, float, float]], half: int) -> tuple[str, str]:
    """The two distances (on `dim` features) against n, each in its own panel, and the table."""
    frechet = Curve(f"FD-{label}", {float(n): value for n, (value, _, _) in done.items()}, 1)
    kernel = Curve(f"KD-{label}", {float(n): value for n, (_, value, _) in done.items()}, 0)
    charts = (
        f'<div class="panels"><div><h3>Fréchet distance {html.source(True)}</h3>'
        + chart.curves([frechet], f"FD-{label} against n", "n, samples", f"FD-{label}", log_y=False)
        + f"</div><div><h3>Kernel distance {html.source(True)}</h3>"
        + chart.curves([kernel], f"KD-{label} against n", "n, samples", f"KD-{label}", log_y=False)
        + "</div></div>"
    )
    lines = [
        (n, f"{frechet:.4g}", "yes" if n <= dim else "no", f"{kernel:.3g} ± {spread:.2g}")
        for n, (frechet, kernel, spread) in done.items()
    ]
    headers = ("n", f"FD-{label}", f"n ≤ {dim} features (covariance singular)", f"KD-{label} ± between subsets")
    caption = f"The true distance is 0. Fréchet: n against {half} samples; kernel: n against n"
    return charts, html.table(headers, lines, caption)


def cards(ladder: Ladder) -> str:
    """How the ladder's own figures were measured, one card for each metric."""
    first = {row.metric: row for row in reversed(ladder.rows)}
    if not first:
        return html.note("This ladder has no report: measure it with pdlab evaluate.")
    parts = [
        f"<details><summary>{escape(metric)}</summary>{html.card(row)}</details>" for metric, row in first.items()
    ]
    return f"<h3>How this ladder's figures were measured {html.source(False)}</h3>" + "".join(parts)


def code(ladder: Ladder, choice: Choice) -> str:
    """Python that measures the last point."""
    line, expression = ladder.code(None)
    if isinstance(ladder, ZooLadder):
        pool = expression.replace("zoo.load", "zoo.pool") + f".images[:{2 * choice.n}]"
        imports, make = [line], f"images = {pool}"
    else:
        imports = [
            line,
            "from pdlab.data import to_uint8",
            "from pdlab.diffusion.samplers import sample",
            "from pdlab.metrics.evaluate import noise",
        ]
        make = f"images = to_uint8(sample({expression}, noise({ladder.shape}, {2 * choice.n}, 1), 8))"
    imports += [
        "from pdlab.metrics.features import extractor",
        "from pdlab.metrics.frechet import frechet_distance",
        "from pdlab.metrics.statistics import FeatureStatistics",
    ]
    return (
        "\n".join(sorted(imports)) + f"\n\n{make}\nfeatures = extractor({choice.extractor!r})(images)\n"
        "a, b = FeatureStatistics.of(features[0::2]), FeatureStatistics.of(features[1::2])\n"
        "print(len(features) // 2, frechet_distance(a, b, allow_singular=True))\n"
    )


def _features(shelf: Shelf, ladder: Ladder, by: FeatureExtractor, n: int, show: Show) -> Tensor:
    key = (ladder.name, by.name)
    held = shelf.features.get(key)
    if held is None or len(held) < 2 * n:
        pictures, parts = images(shelf, ladder, n, show), []
        for k, part in enumerate(pictures.split(_BATCH)):
            parts.append(by(part))
            show((f"Features of {min(len(pictures), (k + 1) * _BATCH)} of {len(pictures)} samples", "", ""))
        held = torch.cat(parts)
        shelf.features.put(key, held, held.numel() * held.element_size())
    return held[: 2 * n]
