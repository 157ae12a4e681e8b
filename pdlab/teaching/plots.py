"""Figures, as pure functions that return a matplotlib `Figure`; nothing is shown or saved here."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from torch import Tensor

#: Okabe and Ito's colours, told apart by colour-blind readers; shapes of markers tell them apart again.
COLOURS = {"teacher": "#D55E00", "distilled": "#0072B2", "floor": "#666666"}
NAMES = {"teacher": "undistilled, DDIM", "distilled": "distilled"}
_MARKERS = {"teacher": "o", "distilled": "s"}


def mosaic(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """Images uint8 `[N, C, H, W]` as one uint8 `[H', W', 3]`, `columns` in a row, white gaps between."""
    images = images.expand(-1, 3, -1, -1)
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8
    )
    for k, image in enumerate(images):
        top, left = (k // columns) * (height + gap), (k % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet.permute(1, 2, 0)


def sample_grid(
    samples: Mapping[str, Mapping[int, Tensor]],
    captions: Mapping[str, Mapping[int, str]] | None = None,
    title: str = "",
    titles: Mapping[int, str] | None = None,
) -> Figure:
    """Samples of models (rows) at step counts (columns, in the order given), all from the same noise.

    `samples[model][steps]` is uint8 `[n, C, H, W]`, n a square number to fill the cell; `captions` go below
    the cells, `titles` above the columns (default: the number of steps).
    """
    steps = list(dict.fromkeys(count for row in samples.values() for count in row))
    figure = Figure(figsize=(1.55 * len(steps) + 0.6, 1.95 * len(samples) + 0.5), dpi=150, layout="constrained")
    axes = figure.subplots(len(samples), len(steps), squeeze=False)
    for row, (model, cells) in enumerate(samples.items()):
        for column, count in enumerate(steps):
            axis = axes[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0:
                default = f"{count} step{'s' if count > 1 else ''}"
                axis.set_title(titles[count] if titles else default, fontsize=10)
            if column == 0:
                axis.set_ylabel(NAMES.get(model, model), fontsize=10, color=COLOURS.get(model, "black"))
            if count not in cells:
                continue
            side = max(1, round(len(cells[count]) ** 0.5))
            axis.imshow(mosaic(cells[count], side).numpy(), interpolation="nearest")
            if captions is not None and count in captions.get(model, {}):
                axis.set_xlabel(captions[model][count], fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def metric_curve(
    figures: Mapping[str, Mapping[int, float]], metric: str, floor: float | None = None, note: str = ""
) -> Figure:
    """A metric against the number of sampling steps, both axes logarithmic, with the real-data floor.

    `figures[model][steps]` is the value; all values must be of one card but for model and steps.
    """
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    for model, values in figures.items():
        steps: Sequence[int] = sorted(values)
        axis.plot(
            steps,
            [values[count] for count in steps],
            marker=_MARKERS.get(model, "^"),
            color=COLOURS.get(model),
            label=NAMES.get(model, model),
        )
    if floor is not None:
        axis.axhline(floor, color=COLOURS["floor"], linestyle="--", linewidth=1, label="real against real (floor)")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    counts = sorted({count for values in figures.values() for count in values})
    axis.xaxis.set_major_locator(FixedLocator(counts))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("sampling steps (network evaluations)")
    axis.set_ylabel(f"{metric} (lower is better)")
    axis.grid(which="major", alpha=0.3)
    axis.legend(frameon=False)
    if note:
        axis.set_title(note, fontsize=9)
    return figure


def scatter(points: Tensor, title: str = "") -> Figure:
    """Points `[N, 2]` in the plane, both axes to the same scale."""
    figure = Figure(figsize=(4.2, 4.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.scatter(
        points[:, 0].numpy(), points[:, 1].numpy(), s=4, color=COLOURS["distilled"], alpha=0.5, linewidths=0
    )
    axis.set_aspect("equal")
    axis.set_xlabel("x₁")
    axis.set_ylabel("x₂")
    axis.set_title(title, fontsize=9)
    return figure
