"""Charts, as pure functions that return a matplotlib `Figure`; nothing is shown or saved here."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter
from torch import Tensor

from pdlab.figures.sheet import NotebookFigure, draw_lines, log_heights, sheet
from pdlab.figures.style import COLOURS, MARKERS, NAMES, PALETTE


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
            marker=MARKERS.get(model, "^"),
            color=COLOURS.get(model),
            label=NAMES.get(model, model),
        )
    if floor is not None:
        axis.axhline(floor, color=COLOURS["floor"], linestyle="--", linewidth=1, label="real against real (floor)")
    axis.set_xscale("log", base=2)
    log_heights(axis, [y for values in figures.values() for y in values.values()])
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
    figure = sheet(6.4, 3.8, left=0.85, right=1.9)
    axis = figure.subplots()
    draw_lines(axis, lines, markers)
    if floor is not None:
        axis.axhline(floor, color=COLOURS["floor"], linestyle=(0, (1, 1)), linewidth=1.2, label=floor_label)
    if xlog:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    if ylog:
        log_heights(axis, [y for points in lines.values() for y in points.values()])
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
    figure = sheet(6.4, 0.9 + 0.32 * len(results), left=2.6)
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
