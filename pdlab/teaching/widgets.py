"""Things to move in a notebook: controls bound to figures.

A widget holds no logic: it draws what a function returns for the values of the controls, once when it is made and
again when one of them moves. An error of that function is shown below the figure and raised: in a notebook into
Jupyter's log, in a test into the line that set `.value`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure

from pdlab.errors import extra
from pdlab.figures.sheet import png

with extra("notebooks", "what moves in a notebook"):
    import ipywidgets as ipw

_DPI = 80  # a redraw costs in proportion to its pixels


def slider(label: str, values: Sequence[Any], value: Any) -> ipw.SelectionSlider:
    """A slider over `values`, shown as text; it starts at `value`."""
    options = [(f"{v:.3g}" if isinstance(v, float) else str(v), v) for v in values]
    return ipw.SelectionSlider(options=options, value=value, description=label)


def choice(label: str, values: Sequence[str], value: str | None = None) -> ipw.ToggleButtons:
    """Buttons, one of which is pressed; it starts at `value` (default: the first)."""
    style = {"button_width": "max-content", "description_width": "initial"}
    return ipw.ToggleButtons(options=list(values), value=value or values[0], description=label, style=style)


def explore(draw: Callable[..., Figure], **controls: ipw.ValueWidget) -> ipw.VBox:
    """Controls above the figure that `draw(**values)` returns for their values."""
    canvas = _Canvas()

    def redraw(change: object = None) -> None:
        canvas.show(lambda: draw(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return ipw.VBox([*controls.values(), canvas.image, canvas.note])


def press(label: str, figures: Iterator[Figure]) -> ipw.VBox:
    """A button that draws the next of `figures`, the first of which is drawn at once; it goes grey after the last.

    The work between two figures is done when the button is pressed.
    """
    canvas = _Canvas()
    button = ipw.Button(description=label)

    def advance(clicked: object = None) -> None:
        button.disabled = True
        figure = canvas.show(lambda: next(figures, None))
        button.disabled = figure is None
        if figure is None:
            button.description = "done"

    button.on_click(advance)
    advance()
    return ipw.VBox([button, canvas.image, canvas.note])


class _Canvas:
    """A picture, and a line below it for what went wrong."""

    def __init__(self) -> None:
        self.image = ipw.Image(format="png", layout=ipw.Layout(align_self="flex-start", max_width="100%"))
        self.note = ipw.HTML()

    def show(self, make: Callable[[], Figure | None]) -> Figure | None:
        try:
            figure = make()
            if figure is not None:
                self.image.value = png(figure, _DPI)
            self.note.value = ""
            return figure
        except Exception as error:
            self.note.value = f"<b>{type(error).__name__}</b>: {error}"
            raise
