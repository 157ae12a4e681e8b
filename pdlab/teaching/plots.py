"""Figures, as pure functions that return a matplotlib `Figure`; nothing is shown or saved here.

Points are `[N, 2]`, images uint8 `[N, C, H, W]`. Symbols are those of the code: x, eps (ε), v, z, alpha, sigma, t.
Margins are set by hand: matplotlib's automatic layout costs more than the drawing, and widgets redraw often.
"""

import io
import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, ScalarFormatter
from torch import Tensor

from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.prediction import Prediction
from pdlab.diffusion.samplers import ddim_step
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.distillation.ledger import Ledger

#: Okabe and Ito's colours, told apart by colour-blind readers; shapes of markers tell them apart again.
COLOURS = {"teacher": "#D55E00", "distilled": "#0072B2", "floor": "#666666"}
NAMES = {"teacher": "undistilled, DDIM", "distilled": "distilled"}
_MARKERS = {"teacher": "o", "distilled": "s"}
#: The palette in the order in which curves take it, each with a marker and a line of its own.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", "-"), ("P", "--"), ("X", "-."), ("<", ":"))
_X, _EPS, _V, _Z = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[6]
_GREY = "#888888"


class NotebookFigure(Figure):
    """A figure that notebooks show as a picture; matplotlib's own needs pyplot for that."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return png(self, 144), {"width": round(96 * self.get_figwidth())}


def png(figure: Figure, dpi: float) -> bytes:
    """The figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def _sheet(width: float, height: float, **margins: float) -> NotebookFigure:
    """An empty figure of `width` × `height` inches; margins in inches too."""
    m = {"left": 0.75, "right": 0.1, "bottom": 0.5, "top": 0.35, "wspace": 0.3, "hspace": 0.3} | margins
    figure = NotebookFigure(figsize=(width, height), dpi=100)
    figure.subplots_adjust(
        left=m["left"] / width,
        right=1 - m["right"] / width,
        bottom=m["bottom"] / height,
        top=1 - m["top"] / height,
        wspace=m["wspace"],
        hspace=m["hspace"],
    )
    return figure


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
    figure = _sheet(
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


def metric_curve(
    figures: Mapping[str, Mapping[int, float]], metric: str, floor: float | None = None, note: str = ""
) -> Figure:
    """A metric against the number of sampling steps, both axes logarithmic, with the real-data floor.

    `figures[model][steps]` is the value; all values must be of one card but for model and steps.
    """
    figure = NotebookFigure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
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
    _log_heights(axis, [y for values in figures.values() for y in values.values()])
    counts = sorted({count for values in figures.values() for count in values})
    axis.xaxis.set_major_locator(FixedLocator(counts))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("sampling steps (network evaluations)")
    axis.set_ylabel(f"{metric} (lower is better)")
    axis.grid(which="major", alpha=0.3)
    axis.legend(frameon=False)
    if note:
        axis.set_title(note, fontsize=9)
    return figure


def scatter(points: Tensor, title: str = "") -> Figure:
    """Points `[N, 2]` in the plane, both axes to the same scale."""
    figure = NotebookFigure(figsize=(4.2, 4.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.scatter(
        points[:, 0].numpy(), points[:, 1].numpy(), s=4, color=COLOURS["distilled"], alpha=0.5, linewidths=0
    )
    axis.set_aspect("equal")
    axis.set_xlabel("x₁")
    axis.set_ylabel("x₂")
    axis.set_title(title, fontsize=9)
    return figure


def curves(
    lines: Mapping[str, Mapping[float, float]],
    xlabel: str,
    ylabel: str,
    *,
    xlog: bool = False,
    ylog: bool = True,
    title: str = "",
    markers: bool = True,
    floor: float | None = None,
    floor_label: str = "floor",
) -> Figure:
    """One line for each name, `lines[name][x]` being its height at x; `floor` is a dashed level."""
    figure = _sheet(6.4, 3.8, left=0.85, right=1.9)
    axis = figure.subplots()
    _lines(axis, lines, markers)
    if floor is not None:
        axis.axhline(floor, color=COLOURS["floor"], linestyle=(0, (1, 1)), linewidth=1.2, label=floor_label)
    if xlog:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    if ylog:
        _log_heights(axis, [y for points in lines.values() for y in points.values()])
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=10)
    axis.grid(which="major", alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def spread(
    results: Mapping[str, Sequence[float]],
    xlabel: str,
    title: str = "",
    log: bool = False,
    span: tuple[float, float] | None = None,
) -> Figure:
    """Every result of every name as a dot, one line a name, with a bar at the mean: what the seeds alone change.

    `span` fixes the axis, so that figures of one widget can be compared.
    """
    figure = _sheet(6.4, 0.9 + 0.32 * len(results), left=2.6)
    axis = figure.subplots()
    for row, values in enumerate(results.values()):
        axis.plot(values, [row] * len(values), "o", color=PALETTE[0], alpha=0.7, markersize=5)
        mean = sum(values) / len(values)
        axis.plot([mean, mean], [row - 0.3, row + 0.3], color=PALETTE[1], linewidth=2)
    axis.set_yticks(range(len(results)), list(results))
    axis.set_ylim(len(results) - 0.5, -0.5)
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    if span is not None:
        axis.set_xlim(span)
    axis.set_xlabel(xlabel)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    return figure


def image_rows(rows: Mapping[str, Tensor], columns: Sequence[str] = (), title: str = "") -> Figure:
    """Rows of images with a label each; all rows have the same number, `columns` names it from above."""
    count = max(len(images) for images in rows.values())
    left = 0.25 + 0.075 * max(len(name) for name in rows)
    cell = min(1.0, 9.0 / count)
    # Figures of a single pixel size a cell: 32 pixels or 16 are both enlarged without smoothing.
    height = cell * len(rows) + 0.1 + (0.25 if columns else 0) + (0.3 if title else 0)
    figure = _sheet(left + cell * count + 0.1, height, left=left, bottom=0.05, top=height - cell * len(rows) - 0.05)
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


def triangle(schedule: CosineSchedule, t: float) -> Figure:
    """x, eps, z and v at time `t`, drawn in the plane that x and eps span; beside it what x̂ makes of an error.

    An error of size 1 in the network's output is an error of x̂ of 1 (output x), sigma/alpha (eps) or sigma (v).
    """
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma, phi = float(schedule.alpha(time)), float(schedule.sigma(time)), float(schedule.phi(time))
    figure = _sheet(8.2, 3.5, wspace=0.25)
    plane, amplification = figure.subplots(1, 2)
    arc = torch.linspace(0, math.pi / 2, 50)
    plane.plot(torch.cos(arc), torch.sin(arc), color=_GREY, linewidth=0.8)
    for name, (right, up), colour in (
        ("x", (1.0, 0.0), _X),
        ("ε", (0.0, 1.0), _EPS),
        ("z", (alpha, sigma), _Z),
        ("v", (-sigma, alpha), _V),
    ):
        plane.annotate("", (right, up), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        plane.text(1.12 * right, 1.12 * up, name, color=colour, fontsize=13, ha="center", va="center")
    plane.plot([alpha, alpha], [0, sigma], ":", color=_GREY)
    plane.plot([0, alpha], [sigma, sigma], ":", color=_GREY)
    plane.text(alpha / 2, -0.09, f"α = {alpha:.2f}", ha="center", fontsize=9)
    plane.text(alpha + 0.04, sigma / 2, f"σ = {sigma:.2f}", va="center", fontsize=9)
    wedge = torch.linspace(0, phi, 30)
    plane.plot(0.3 * torch.cos(wedge), 0.3 * torch.sin(wedge), color=_Z, linewidth=1)
    plane.text(0.4 * math.cos(phi / 2), 0.4 * math.sin(phi / 2), "φ", ha="center", va="center", fontsize=11)
    plane.set(xlim=(-1.25, 1.4), ylim=(-0.2, 1.3), aspect="equal", xticks=(-1, 0, 1), yticks=(0, 1))
    plane.set_xlabel("part of x (the data)")
    plane.set_ylabel("part of ε (the noise)")
    plane.set_title(f"t = {t:.2f}:  z = α x + σ ε,  v = α ε − σ x", fontsize=10)
    grid = torch.linspace(0.005, 0.995, 100, dtype=torch.float64)
    a, s = schedule.alpha(grid), schedule.sigma(grid)
    for name, values, at, colour, style in (
        ("x: 1", torch.ones_like(grid), 1.0, _X, "-"),
        ("ε: σ/α", s / a, sigma / max(alpha, 1e-12), _EPS, "--"),
        ("v: σ", s, sigma, _V, "-."),
    ):
        amplification.plot(grid, values, style, color=colour, label=name, linewidth=2)
        amplification.plot([t], [min(max(at, 1e-2), 1e2)], "o", color=colour)
    amplification.set(yscale="log", ylim=(1e-2, 1e2), xlim=(0, 1))
    amplification.axvline(t, color=_GREY, linewidth=0.8)
    amplification.set_xlabel("t  (0: data, 1: noise)")
    amplification.set_title("error of x̂ for an error of 1 in the output", fontsize=10)
    amplification.yaxis.set_minor_locator(NullLocator())
    amplification.yaxis.set_major_formatter("{x:g}")  # plain text: mathtext is slow
    amplification.grid(alpha=0.3)
    amplification.legend(frameon=False, fontsize=9, title="output")
    return figure


def paths(exact: Tensor, coarse: Tensor, data: Tensor, title: str = "") -> Figure:
    """Sampling paths in the plane: the exact flow, and a few steps from the same noises.

    `exact` `[M, B, 2]` and `coarse` `[N, B, 2]` begin at the noise and end at the sample; a dashed line joins their
    ends: the error. `data` `[K, 2]` is the distribution, faint.
    """
    figure = _sheet(5.2, 4.6)
    axis = figure.subplots()
    axis.scatter(data[:, 0], data[:, 1], s=3, color="#BBBBBB", linewidths=0, label="data")
    for b in range(exact.shape[1]):
        first = b == 0
        axis.plot(exact[:, b, 0], exact[:, b, 1], color=_X, linewidth=1.5, label="exact flow" if first else None)
        axis.plot(
            coarse[:, b, 0],
            coarse[:, b, 1],
            color=_EPS,
            marker="o",
            markersize=3.5,
            linewidth=1,
            label=f"{len(coarse) - 1} step{'s' if len(coarse) > 2 else ''}" if first else None,
        )
        ends = torch.stack([exact[-1, b], coarse[-1, b]])
        axis.plot(ends[:, 0], ends[:, 1], "--", color="black", linewidth=1, label="error" if first else None)
    axis.plot(exact[0, :, 0], exact[0, :, 1], "s", color="black", markersize=5, label="noise, t = 1")
    _plane(axis, title)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def clouds(panels: Mapping[str, Tensor], follow: int = 6, title: str = "") -> Figure:
    """Samples of models side by side, all from the same noises; `follow` of them are numbered in every panel."""
    figure = _sheet(2.1 * max(2, len(panels)) + 0.4, 2.75 if title else 2.5, left=0.4, wspace=0.12, bottom=0.3)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        axis.scatter(points[:, 0], points[:, 1], s=3, color=_X, alpha=0.35, linewidths=0)
        for k in range(min(follow, len(points))):
            axis.text(
                float(points[k, 0]),
                float(points[k, 1]),
                str(k + 1),
                color=_EPS,
                fontsize=9,
                weight="bold",
                ha="center",
                clip_on=True,
            )
        _plane(axis, name)
        outside = float((points.abs().amax(1) > max(axis.get_xlim())).double().mean())
        if outside > 0.1:
            axis.text(0.5, 0.5, f"{outside:.0%} lie\noutside", transform=axis.transAxes, ha="center", va="center")
        axis.tick_params(labelleft=axis is axes[0])
        axis.set(xlabel="", ylabel="")
    if title:
        figure.suptitle(title, fontsize=10, y=0.99)
        figure.subplots_adjust(top=0.8)
    return figure


def target_geometry(
    schedule: CosineSchedule, z: Tensor, t: float, mid: float, end: float, first: Prediction, second: Prediction
) -> Figure:
    """One student step equal to two teacher steps, in the plane, for one point `z` `[2]` at time `t`.

    `first` is the teacher's prediction at z_t, `second` at the z_t' it steps to; all `[2]`. The one step
    with x̃ (blue) meets the end of the two steps; the one with the second x̂ does not.
    """
    times = [torch.tensor(value, dtype=z.dtype) for value in (t, mid, end)]
    z_mid = ddim_step(schedule, z, times[0], times[1], first)
    z_end = ddim_step(schedule, z_mid, times[1], times[2], second)
    ratio = schedule.sigma(times[2]) / schedule.sigma(times[0])
    solved = (z_end - ratio * z) / (schedule.alpha(times[2]) - ratio * schedule.alpha(times[0]))
    wrong_end = ratio * z + (schedule.alpha(times[2]) - ratio * schedule.alpha(times[0])) * second.x
    figure = _sheet(5.6, 4.6, right=1.6)
    axis = figure.subplots()
    walk = torch.stack([z, z_mid, z_end])
    axis.plot(walk[:, 0], walk[:, 1], "o-", color=_EPS, label="teacher's two steps", markersize=5)
    for label, target, landing, colour, style in (
        ("one step with x̃", solved, z_end, _X, "--"),
        ("one step with x̂₂", second.x, wrong_end, _V, ":"),
    ):
        way = torch.stack([z, landing])
        axis.plot(way[:, 0], way[:, 1], style, color=colour, linewidth=2, label=label)
        axis.plot(*landing, "x", color=colour, markersize=9, markeredgewidth=2)
        axis.plot(*target, "*", color=colour, markersize=13)
    axis.plot(*first.x, "*", color=_EPS, markersize=13)
    for name, point, offset in (
        ("z_t", z, (8, 2)),
        ("z_t'", z_mid, (-26, -2)),
        ("z_t''", z_end, (8, -12)),
        ("x̂₁", first.x, (7, 5)),
        ("x̂₂", second.x, (7, 5)),
        ("x̃", solved, (7, 5)),
    ):
        axis.annotate(name, (float(point[0]), float(point[1])), offset, textcoords="offset points", fontsize=10)
    _plane(axis, f"t = {t:.3g},  t' = {mid:.3g},  t'' = {end:.3g}", limit=None)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def class_clouds(panels: Mapping[str, tuple[Tensor, Tensor]], points: GaussianMixture, title: str = "") -> Figure:
    """Samples `[B, 2]` and the classes `[B]` they were asked for, a panel each; circles are the mixture's clouds.

    A class has a colour and a marker. A circle of two standard deviations holds 86 % of a cloud.
    """
    margins = {"left": 0.4, "right": 0.8, "bottom": 0.3, "top": 0.6 if title else 0.35, "wspace": 0.1}
    figure = _sheet(2.7 * max(2, len(panels)) + 1.2, 3.5 if title else 3.25, **margins)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, (x, labels)) in zip(axes, panels.items(), strict=True):
        _classes(axis, x, labels, points)
        _plane(axis, name, limit=4.2)
        axis.set(xlabel="", ylabel="")
        axis.tick_params(labelleft=axis is axes[0])
    axes[-1].legend(
        frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), title="class", markerscale=2
    )
    if title:
        figure.suptitle(title, fontsize=10, y=0.99)
    return figure


def guided_view(
    x: Tensor, labels: Tensor, points: GaussianMixture, lines: Mapping[str, Mapping[float, float]], w: float
) -> Figure:
    """Samples guided by `w` as in `class_clouds`; beside them shares against the weight, `w` marked."""
    figure = _sheet(8.8, 3.6, left=0.5, right=1.5, wspace=0.25)
    plane, axis = figure.subplots(1, 2)
    _classes(plane, x, labels, points)
    _plane(plane, f"samples, w = {w:g}", limit=4.2)
    _lines(axis, lines)
    axis.axvline(w, color=_GREY, linewidth=1)
    for line in lines.values():
        axis.annotate(f"{line[w]:.2f}", (w, line[w]), (4, 4), textcoords="offset points", fontsize=8)
    axis.set_ylim(-0.03, 1.1)
    axis.set_xlabel("guidance weight w")
    axis.set_title("fidelity against variety", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def ledger_trail(ledger: Ledger, example: int = 0, data: Tensor | None = None) -> Figure:
    """The error of one sample in the plane as a trail of arrows, from where the exact flow ends to the student."""
    figure = _sheet(5.8, 4.2, right=1.9)
    axis = figure.subplots()
    trail = ledger.trail()[:, example]
    points = [(float(x), float(y)) for x, y in trail]
    low, high = trail.min(0).values, trail.max(0).values
    centre, half = (low + high) / 2, max(0.6 * float((high - low).max()), 1e-3)
    if data is not None:
        axis.scatter(data[:, 0], data[:, 1], s=4, color="#CCCCCC", linewidths=0)
    for k, (name, colour) in enumerate(zip(ledger.terms, PALETTE, strict=False)):
        axis.annotate("", points[k + 1], points[k], arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        axis.plot([], [], color=colour, linewidth=2, label=name)
    total = {"arrowstyle": "-|>", "color": _GREY, "lw": 1, "linestyle": "--"}
    axis.annotate("", points[-1], points[0], arrowprops=total)
    axis.plot([], [], "--", color=_GREY, label="total")
    axis.plot(*trail[0], "s", color="black", label="start: exact", markersize=6)
    axis.plot(*trail[-1], "o", color="black", label="end: student", markersize=6)
    _plane(axis, f"the error of sample {example + 1}, term by term", limit=None)
    axis.set_adjustable("box")
    axis.set_xlim(float(centre[0]) - half, float(centre[0]) + half)
    axis.set_ylim(float(centre[1]) - half, float(centre[1]) + half)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def ledger_bars(ledger: Ledger) -> Figure:
    """The mean length of every term, their sum, and the mean length of the total, shorter where errors cancel."""
    lengths = {name: float(values.mean()) for name, values in ledger.lengths.items()}
    total = float((torch.stack(list(ledger.lengths.values())).sum(0) - ledger.slack).mean())
    figure = _sheet(6.4, 1.1 + 0.3 * (len(lengths) + 2), left=1.9)
    axis = figure.subplots()
    left = 0.0
    for row, (value, colour) in enumerate(zip(lengths.values(), PALETTE, strict=False)):
        axis.barh(row, value, left=left, color=colour)
        axis.text(left + value, row, f" {value:.3f}", va="center", fontsize=8)
        left += value
    names = [*lengths, "sum of lengths", "length of total"]
    for row, value in ((len(lengths), left), (len(lengths) + 1, total)):
        axis.barh(row, value, color=_GREY)
        axis.text(value, row, f" {value:.3f}", va="center", fontsize=8)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * left)
    axis.set_xlabel("mean length (root mean square, units of the data)")
    return figure


def _lines(axis: Axes, lines: Mapping[str, Mapping[float, float]], markers: bool = True) -> None:
    """A line for each name, told apart by colour, marker and dashes."""
    for (name, points), colour, (marker, style) in zip(lines.items(), PALETTE, _STYLES, strict=False):
        xs = sorted(points)
        axis.plot(
            xs,
            [points[x] for x in xs],
            color=colour,
            marker=marker if markers else None,
            linestyle=style,
            markersize=5,
            label=name,
        )


def _classes(axis: Axes, x: Tensor, labels: Tensor, points: GaussianMixture) -> None:
    """Points in the colour and marker of their class, on the circles of the mixture's clouds."""
    of_cloud = points.log_member[:-1].argmax(0)
    for mean, std, label in zip(points.means, points.stds, of_cloud, strict=True):
        edge = Circle((float(mean[0]), float(mean[1])), 2 * float(std), fill=False, edgecolor=PALETTE[int(label)])
        axis.add_patch(edge)
    for label in range(points.num_classes):
        mine = x[labels == label]
        axis.scatter(
            mine[:, 0],
            mine[:, 1],
            s=9,
            marker=_STYLES[label][0],
            color=PALETTE[label],
            alpha=0.35,
            linewidths=0,
            label=f"{label}",
        )


def _log_heights(axis: Axes, heights: Sequence[float]) -> None:
    """A logarithmic y axis with plain numbers: 1, 2, 5 of each power of ten, or, for a wide range, powers alone."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(heights) < 100 * min(heights) else (1,)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _plane(axis: Axes, title: str, limit: float | None = 2.6) -> None:
    if limit is not None:
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axis.set_aspect("equal", adjustable="box" if limit is not None else "datalim")
    axis.set_xlabel("first coordinate")
    axis.set_ylabel("second coordinate")
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
