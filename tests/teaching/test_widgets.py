"""Widgets draw what their function returns, again at every move, and hide no error."""

from collections.abc import Callable, Iterator

import ipywidgets as ipw
import pytest
import torch
from matplotlib.figure import Figure

from pdlab.diffusion.samplers import ddim, ddim_step
from pdlab.distillation.ledger import ledger
from pdlab.figures import charts
from pdlab.teaching import plots
from pdlab.teaching.lab import mixture, mixture_of_classes
from pdlab.teaching.widgets import choice, explore, press, slider


def picture(box: ipw.VBox) -> bytes:
    (image,) = (child for child in box.children if isinstance(child, ipw.Image))
    return bytes(image.value)


def note(box: ipw.VBox) -> str:
    (html,) = (child for child in box.children if isinstance(child, ipw.HTML))
    return html.value


def figure_of(value: object) -> Figure:
    return charts.curves({"a": {1: 1.0, 2: 2.0}}, "x", "y", title=str(value))


def test_explore_draws_at_once_and_at_every_move() -> None:
    seen = []

    def draw(n: int, name: str) -> Figure:
        seen.append((n, name))
        return figure_of((n, name))

    n, name = slider("n", [1, 2, 4], 2), choice("name", ["a", "b"])
    box = explore(draw, n=n, name=name)
    first = picture(box)
    n.value = 4
    assert picture(box) != first
    name.value = "b"
    assert seen == [(2, "a"), (4, "a"), (4, "b")]


def test_an_error_is_shown_and_raised() -> None:
    def draw(n: int) -> Figure:
        if n == 2:
            raise ValueError("two is too many")
        return figure_of(n)

    n = slider("n", [1, 2, 3], 1)
    box = explore(draw, n=n)
    with pytest.raises(ValueError, match="two is too many"):
        n.value = 2
    assert "two is too many" in note(box)
    n.value = 3
    assert note(box) == ""


def test_press_takes_one_figure_a_press() -> None:
    made = []

    def figures() -> Iterator[Figure]:
        for k in range(3):
            made.append(k)
            yield figure_of(k)

    box = press("next", figures())
    button = box.children[0]
    assert made == [0]
    button.click()
    button.click()
    assert made == [0, 1, 2]
    last = picture(box)
    assert not button.disabled
    button.click()
    assert button.disabled
    assert button.description == "done"
    assert picture(box) == last


def two_dimensional() -> dict[str, Callable[[], Figure]]:
    perfect = mixture().denoiser()
    data = mixture().sample(1500, torch.Generator().manual_seed(0))
    z = torch.randn(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    path = torch.stack([z[:8], *(step.z for step in ddim(perfect, z[:8], 64))])
    book = ledger({8: z, 4: 1.1 * z, 2: z + 0.1, 1: z - 0.2})

    def geometry() -> Figure:
        point, (t, mid) = z[:1], torch.tensor([0.75, 0.625], dtype=torch.float64)
        first = perfect(point, t)
        second = perfect(ddim_step(perfect.schedule, point, t, mid, first), mid)
        one = [type(p)(*(part[0] for part in p)) for p in (first, second)]
        return plots.target_geometry(perfect.schedule, point[0], 0.75, 0.625, 0.5, *one)

    classes, labels = mixture_of_classes(), torch.arange(500) % 3
    shares = {name: {0.0: 1.0, 1.0: 0.5} for name in "abc"}

    return {
        "guided_view": lambda: plots.guided_view(z, labels, classes, shares, 1.0),
        "class_clouds": lambda: plots.class_clouds(dict.fromkeys("abc", (z, labels)), classes),
        "triangle": lambda: plots.triangle(perfect.schedule, 0.3),
        "paths": lambda: plots.paths(path, path[::8], data),
        "target_geometry": geometry,
        "ledger_trail": lambda: plots.ledger_trail(book, 3, data),
        "clouds": lambda: plots.clouds({"a": z, "b": z, "c": z}),
        "curves": lambda: figure_of(1),
        "spread": lambda: charts.spread({"a": [1.0, 2.0], "b": [1.5]}, "x"),
    }


@pytest.mark.parametrize("name", two_dimensional())
def test_every_value_is_drawn(name: str) -> None:
    draws: list[int] = []
    draw = two_dimensional()[name]

    def recorded(n: int) -> object:
        draws.append(n)
        return draw()

    box = explore(recorded, n=slider("n", list(range(4)), 0))
    for n in range(1, 4):
        box.children[0].value = n
    assert draws == [0, 1, 2, 3]
