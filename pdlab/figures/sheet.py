"""What every figure is made with: sheets with margins in inches, lines told apart, a readable logarithmic axis.

Margins are set by hand: matplotlib's automatic layout costs more than the drawing, and widgets redraw often.
"""

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from pdlab.figures.style import PALETTE, STYLES


class NotebookFigure(Figure):
    """A figure that notebooks show as a picture; matplotlib's own needs pyplot for that."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return png(self, 144), {"width": round(96 * self.get_figwidth())}


def png(figure: Figure, dpi: float) -> bytes:
    """The figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def sheet(width: float, height: float, **margins: float) -> NotebookFigure:
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


def draw_lines(axis: Axes, lines: Mapping[str, Mapping[float, float]], markers: bool = True) -> None:
    """A line for each name, told apart by colour, marker and dashes."""
    for (name, points), colour, (marker, style) in zip(lines.items(), PALETTE, STYLES, strict=False):
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


def log_heights(axis: Axes, heights: Sequence[float]) -> None:
    """A logarithmic y axis with plain numbers: 1, 2, 5 of each power of ten, or, for a wide range, powers alone."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(heights) < 100 * min(heights) else (1,)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
