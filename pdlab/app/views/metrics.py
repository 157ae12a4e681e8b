"""Metrics: what the number of samples alone does to a distance, for the Fréchet and the kernel one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from pdlab.app import chart, html, state
from pdlab.app.chart import Curve
from pdlab.app.compute import Show
from pdlab.app.ladders import Shelf, ShownLadder, ZooLadder
from pdlab.data import to_uint8
from pdlab.diffusion.samplers import sample
from pdlab.metrics.bias import SIZES, Bias, sample_size_bias
from pdlab.metrics.evaluate import labels_of, noise
from pdlab.metrics.features import FeatureExtractor, extractor

EXTRACTORS = ("pixels", "effnet-lite0")
_BATCH = 32


@dataclass(frozen=True)
class FeatureChoice:
    """The features, and the most samples."""

    extractor: str
    n: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "FeatureChoice":
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


def images(shelf: Shelf, ladder: ShownLadder, n: int, show: Show) -> Tensor:
    """`2 n` samples of the teacher: the ladder's stored pool, or, where it has none, drawn now in 8 steps."""
    if isinstance(ladder, ZooLadder):
        return ladder.pool()[: 2 * n]
    model, parts = shelf.model(ladder, None), []
    labels = labels_of(model, 2 * n)
    for k, z in enumerate(noise(ladder.shape, 2 * n, 1).split(_BATCH)):
        of = None if labels is None else labels[k * _BATCH :][: len(z)].to(model.device)
        parts.append(to_uint8(sample(model, z.to(model.device), 8, labels=of)).cpu())
        show((f"Drawn {len(parts) * _BATCH} of {2 * n} samples", ""))
    return torch.cat(parts)


def work(shelf: Shelf, ladder: ShownLadder, choice: FeatureChoice, show: Show) -> None:
    """Shows (text, charts) as n grows."""
    show(("Loading the features' network …", ""))
    by = extractor(choice.extractor)
    done: list[Bias] = []
    for point in sample_size_bias(_features(shelf, ladder, by, choice.n, show)):
        done.append(point)
        show((f"{len(done)} sizes measured on this machine …", view(by.label, done, live=True)))
    if done:
        show((f"{len(done)} sizes measured on this machine.", view(by.label, done, live=True)))
    else:
        show((f"This ladder has too few samples: {SIZES[0]} in each set are the least.", ""))


def stored(ladder: ShownLadder, choice: FeatureChoice) -> Markup:
    """The same as it was measured when the ladder was built; how to measure it where it was not."""
    kept = ladder.report.get("bias", {}).get(choice.extractor, {"points": []})
    points = [point for point in (Bias(**values) for values in kept["points"]) if point.n <= choice.n]
    if not points:
        return html.note("Not measured yet for these features: press Measure.")
    return view(kept["label"], points, live=False)


def view(label: str, points: Sequence[Bias], live: bool) -> Markup:
    """The two distances against n, each in its own panel, and the table."""
    frechet = Curve(f"FD-{label}", {float(point.n): point.frechet for point in points}, 1)
    kernel = Curve(f"KD-{label}", {float(point.n): point.kernel for point in points}, 0)
    lines = [
        (
            point.n,
            f"{point.frechet:.4g}",
            "yes" if point.n <= point.dim else "no",
            f"{point.kernel:.3g} ± {point.spread:.2g}",
        )
        for point in points
    ]
    headers = (
        "n",
        f"FD-{label}",
        f"n ≤ {points[0].dim} features (covariance singular)",
        f"KD-{label} ± between subsets",
    )
    return Markup(
        '<div class="panels"><div><h3>Fréchet distance {badge}</h3>{frechet}</div>'
        "<div><h3>Kernel distance {badge}</h3>{kernel}</div></div>{table}"
    ).format(
        badge=html.source(live),
        frechet=Markup(chart.curves([frechet], f"FD-{label} against n", "n, samples", f"FD-{label}", log_y=False)),
        kernel=Markup(chart.curves([kernel], f"KD-{label} against n", "n, samples", f"KD-{label}", log_y=False)),
        table=html.table(headers, lines, "n samples against n others of the same model: the true distance is 0"),
    )


def cards(ladder: ShownLadder) -> Markup:
    """How the ladder's own figures were measured, one card for each metric."""
    first = {row.metric: row for row in reversed(ladder.rows)}
    if not first:
        return html.note("This ladder has no report: measure it with pdlab evaluate.")
    title = Markup("<h3>How this ladder's figures were measured {}</h3>").format(html.source(False))
    part = Markup("<details><summary>{}</summary>{}</details>")
    return title + Markup().join(part.format(metric, html.card(row)) for metric, row in first.items())


def code(ladder: ShownLadder, choice: FeatureChoice) -> str:
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
        labels = f", labels=torch.arange({2 * choice.n}) % {len(ladder.classes)}" if ladder.classes else ""
        make = f"images = to_uint8(sample({expression}, noise({ladder.shape}, {2 * choice.n}, 1), 8{labels}))"
        if labels:
            imports.append("import torch")
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


def _features(shelf: Shelf, ladder: ShownLadder, by: FeatureExtractor, n: int, show: Show) -> Tensor:
    key = (ladder.name, by.name)
    held = shelf.features.get(key)
    if held is None or len(held) < 2 * n:
        pictures, parts = images(shelf, ladder, n, show), []
        for k, part in enumerate(pictures.split(_BATCH)):
            parts.append(by(part))
            show((f"Features of {min(len(pictures), (k + 1) * _BATCH)} of {len(pictures)} samples", ""))
        held = torch.cat(parts)
        shelf.features.put(key, held, held.numel() * held.element_size())
    return held[: 2 * n]
