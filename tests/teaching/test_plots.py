"""Figures hold what they are given: every cell, every point, axes with names."""

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from pdlab.diffusion.prediction import from_x
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.distillation.ledger import ledger
from pdlab.teaching import lab
from pdlab.teaching.plots import (
    class_clouds,
    class_grid,
    clouds,
    curves,
    guided_view,
    image_rows,
    ledger_bars,
    ledger_trail,
    metric_curve,
    mosaic,
    paths,
    sample_grid,
    scatter,
    spread,
    target_geometry,
    triangle,
)


def test_mosaic_places_every_image() -> None:
    images = torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    sheet = mosaic(images, columns=3)
    assert sheet.shape == (5, 8, 3)
    assert [int(sheet[r, c, 0]) for r, c in ((0, 0), (0, 3), (0, 6), (3, 0), (3, 3))] == [1, 2, 3, 4, 5]
    assert (sheet[:, 2] == 255).all()
    assert (sheet[3:, 6:] == 255).all()  # an empty cell


def test_a_class_grid_has_a_column_for_each_class_and_a_label_for_each_row() -> None:
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 4) * 80
    rows = {"64 steps\nFD 12": images, "1 step\nFD 99": images}
    figure = class_grid({"teacher": rows, "distilled": rows}, ["a", "b", "c"], "title")
    assert len(figure.axes) == 2
    for axis in figure.axes:
        assert [text.get_text() for text in axis.get_yticklabels()] == list(rows)
        sheet = axis.images[0].get_array()
        middle = [int(x) for x in axis.get_xticks()]
        for y in map(int, axis.get_yticks()):
            assert [int(sheet[y, x, 0]) for x in middle] == [0, 80, 160]  # every column is its class
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["a", "b", "c"]


def test_sample_grid_has_a_cell_for_every_model_and_count() -> None:
    cell = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    figure = sample_grid({"teacher": {8: cell, 1: cell}, "distilled": {1: cell}}, {"teacher": {8: "FD 1.00"}})
    assert [axis.get_title() for axis in figure.axes[:2]] == ["8 steps", "1 step"]
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 0, 1]
    assert figure.axes[0].get_ylabel() == "undistilled, DDIM"
    assert figure.axes[0].get_xlabel() == "FD 1.00"


def test_metric_curve_draws_every_figure_and_the_floor() -> None:
    figure = metric_curve({"teacher": {1: 9.0, 4: 3.0}, "distilled": {1: 2.0}}, "FD-pixels", floor=0.5)
    (axis,) = figure.axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
    assert drawn["undistilled, DDIM"] == ([1, 4], [9.0, 3.0])
    assert drawn["distilled"] == ([1], [2.0])
    assert drawn["real against real (floor)"][1] == [0.5, 0.5]
    assert "FD-pixels" in axis.get_ylabel()
    assert "steps" in axis.get_xlabel()


def test_scatter_draws_every_point() -> None:
    figure = scatter(torch.rand(7, 2))
    assert len(figure.axes[0].collections[0].get_offsets()) == 7


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def test_a_figure_shows_itself_in_a_notebook() -> None:
    data, size = scatter(torch.rand(3, 2))._repr_png_()
    assert data.startswith(b"\x89PNG")
    assert size["width"] == 403  # 4.2 inches of 96 points


def test_curves_draw_every_point_told_apart_without_colour() -> None:
    figure = curves({"a": {1: 1.0, 4: 2.0}, "b": {2: 3.0}}, "steps", "error", floor=0.5)
    (axis,) = figure.axes
    assert [list(line.get_xdata()) for line in axis.lines[:2]] == [[1, 4], [2]]
    assert axis.lines[0].get_marker() != axis.lines[1].get_marker()
    assert list(axis.lines[2].get_ydata()) == [0.5, 0.5]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("steps", "error")


def test_spread_draws_every_seed_and_the_mean() -> None:
    (axis,) = spread({"a": [1.0, 2.0, 6.0]}, "error").axes
    assert list(axis.lines[0].get_xdata()) == [1.0, 2.0, 6.0]
    assert list(axis.lines[1].get_xdata()) == [3.0, 3.0]


def test_image_rows_keep_the_pixels() -> None:
    images = torch.randint(0, 256, (3, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    figure = image_rows({"first": images, "second": images[:2]}, ["a", "b", "c"], "title")
    shown = figure.axes[0].images[0].get_array()
    assert (torch.as_tensor(shown[:4, 5:9]) == images[1].permute(1, 2, 0)).all()
    assert {"first", "second", "a", "b", "c", "title"} <= set(texts(figure))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_triangle_is_right_angled(t: float) -> None:
    """The arrows' ends: z = (alpha, sigma) and v = (−sigma, alpha), at a right angle and of length 1."""
    schedule = CosineSchedule()
    arrows = [a for a in triangle(schedule, t).axes[0].texts if isinstance(a, Annotation)]
    x, eps, z, v = (torch.tensor(a.xy, dtype=torch.float64) for a in arrows)
    time = torch.tensor(t, dtype=torch.float64)
    torch.testing.assert_close(z, schedule.alpha(time) * x + schedule.sigma(time) * eps)
    assert abs(float(z @ v)) < 1e-12
    assert abs(float(v.norm()) - 1) < 1e-12


def test_paths_join_the_ends() -> None:
    exact, coarse = torch.rand(10, 2, 2), torch.rand(3, 2, 2)
    (axis,) = paths(exact, coarse, torch.rand(5, 2)).axes
    dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2
    torch.testing.assert_close(
        torch.tensor(dashed[1].get_xydata()).float(), torch.stack([exact[-1, 1], coarse[-1, 1]])
    )


def test_target_geometry_shows_that_x_tilde_lands_and_the_second_x_does_not() -> None:
    schedule, z = CosineSchedule(), torch.tensor([0.9, 1.6], dtype=torch.float64)
    alpha, sigma = (f(torch.tensor(0.75, dtype=torch.float64)) for f in (schedule.alpha, schedule.sigma))
    first = from_x(z, alpha, sigma, torch.tensor([0.2, 0.1], dtype=torch.float64))
    mid = torch.tensor(0.625, dtype=torch.float64)
    z_mid = schedule.alpha(mid) * first.x + schedule.sigma(mid) * first.eps
    second = from_x(z_mid, schedule.alpha(mid), schedule.sigma(mid), torch.tensor([0.8, 0.4], dtype=torch.float64))
    (axis,) = target_geometry(schedule, z, 0.75, 0.625, 0.5, first, second).axes
    walk, right, wrong = (line.get_xydata() for line in axis.lines if len(line.get_xydata()) > 1)
    assert abs(walk[-1] - right[-1]).max() < 1e-12
    assert abs(walk[-1] - wrong[-1]).max() > 1e-3


def test_ledger_figures_hold_every_term() -> None:
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    book = ledger({4: z, 2: z + 1, 1: z - 1}, exact_steps=z + 0.5, exact_flow=z + 0.6)
    terms = ["discretisation", "model", "4 → 2", "2 → 1"]
    assert set(terms) <= set(texts(ledger_trail(book, 1)))
    (bars,) = ledger_bars(book).axes
    assert [label.get_text() for label in bars.get_yticklabels()] == [*terms, "sum of lengths", "length of total"]
    widths = [patch.get_width() for patch in bars.patches]
    assert widths[:5] == pytest.approx([0.1, 0.5, 1.0, 2.0, 3.6])
    assert widths[5] == pytest.approx(1.6)


def test_clouds_follow_the_same_noises() -> None:
    points = torch.rand(9, 2)
    figure = clouds({"a": points, "b": points + 1}, follow=3, title="t")
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["1", "2", "3"]
    assert figure.axes[1].texts[2].get_position() == pytest.approx(tuple((points[2] + 1).tolist()))


def test_class_clouds_draw_every_sample_by_its_class_on_the_mixtures_circles() -> None:
    points = lab.mixture_of_classes()
    x, labels = points.labelled(60, torch.Generator().manual_seed(0))
    assert labels is not None
    figure = class_clouds({"a": (x, labels), "b": (x[:30], labels[:30])}, points, "t")
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    first = figure.axes[0]
    assert [len(c.get_offsets()) for c in first.collections] == [int((labels == c).sum()) for c in range(3)]
    assert [circle.radius for circle in first.patches] == pytest.approx([0.9] * 6)
    assert len({tuple(c.get_facecolor()[0]) for c in first.collections}) == 3
    assert len({len(c.get_paths()[0].vertices) for c in first.collections}) > 1  # markers differ too


def test_guided_view_marks_the_weight_and_says_its_figures() -> None:
    points = lab.mixture_of_classes()
    x, labels = points.labelled(30, torch.Generator().manual_seed(0))
    assert labels is not None
    figure = guided_view(x, labels, points, {"spread": {0.0: 1.0, 2.0: 0.53}}, 2.0)
    _, axis = figure.axes
    assert list(axis.lines[0].get_ydata()) == [1.0, 0.53]
    assert list(axis.lines[1].get_xdata()) == [2.0, 2.0]
    assert "0.53" in texts(figure)
