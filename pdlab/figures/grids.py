"""Grids of images, as pure functions that return a matplotlib `Figure`; images are uint8 `[N, C, H, W]`."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pdlab.figures.mosaic import mosaic
from pdlab.figures.sheet import NotebookFigure, sheet
from pdlab.figures.style import COLOURS, NAMES


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
    figure = NotebookFigure(
        figsize=(1.55 * len(steps) + 0.6, 1.95 * len(samples) + 0.5), dpi=150, layout="constrained"
    )
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


def class_grid(
    blocks: Mapping[str, Mapping[str, Tensor]], classes: Sequence[str], title: str = "", repeats: int = 1
) -> Figure:
    """Samples of models (blocks) at step counts (rows), one class a column, from the same noises in every row.

    `blocks[model][label]` is uint8 `[repeats · len(classes), C, H, W]`, the classes in turn; each label stands
    beside its `repeats` lines of pictures.
    """
    gap, columns = 1, len(classes)
    side = next(iter(next(iter(blocks.values())).values())).shape[-1] + gap
    lines = [repeats * len(rows) for rows in blocks.values()]
    figure = sheet(
        0.62 * columns + 1.9,
        0.62 * sum(lines) + 0.3 * len(lines) + 0.6,
        left=1.8,
        bottom=0.1,
        top=0.75,
        hspace=0.15,
    )
    axes = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=lines)[:, 0]
    for axis, (model, rows) in zip(axes, blocks.items(), strict=True):
        axis.imshow(mosaic(torch.cat(list(rows.values())), columns, gap).numpy(), interpolation="nearest")
        heights = [side * repeats * (k + 0.5) for k in range(len(rows))]
        axis.set_yticks(heights, labels=list(rows), fontsize=8)
        axis.set_xticks([side * (k + 0.5) for k in range(columns)], labels=classes, fontsize=7)
        axis.tick_params(length=0, top=False, bottom=False, labeltop=axis is axes[0], labelbottom=False)
        axis.set_ylabel(NAMES.get(model, model), fontsize=10, color=COLOURS.get(model, "black"))
        axis.set_frame_on(False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def image_rows(rows: Mapping[str, Tensor], columns: Sequence[str] = (), title: str = "") -> Figure:
    """Rows of images with a label each; all rows have the same number, `columns` names it from above."""
    count = max(len(images) for images in rows.values())
    left = 0.25 + 0.075 * max(len(name) for name in rows)
    cell = min(1.0, 9.0 / count)
    # Figures of a single pixel size a cell: 32 pixels or 16 are both enlarged without smoothing.
    height = cell * len(rows) + 0.1 + (0.25 if columns else 0) + (0.3 if title else 0)
    figure = sheet(left + cell * count + 0.1, height, left=left, bottom=0.05, top=height - cell * len(rows) - 0.05)
    axes = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"hspace": 0.04})
    for row, (name, images) in enumerate(rows.items()):
        axis, side = axes[row, 0], images.shape[-1] + 1
        axis.imshow(mosaic(images, count).numpy(), interpolation="nearest", aspect="auto")
        axis.set_yticks([images.shape[-2] / 2 - 0.5], [name], fontsize=9)
        axis.tick_params(length=0)
        axis.set_xticks([])
        axis.spines[:].set_color("white")
        if row == 0 and columns:
            axis.set_xticks(
                [side * k + images.shape[-1] / 2 - 0.5 for k in range(len(columns))], columns, fontsize=8
            )
            axis.xaxis.tick_top()
    if title:
        figure.suptitle(title, fontsize=10, y=1 - 0.08 / height, va="top")
    return figure
