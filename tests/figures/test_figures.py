"""Figures hold what they are given: every cell, every point, axes with names."""

import torch
from matplotlib.text import Text

from pdlab.figures.charts import curves, metric_curve, scatter, spread
from pdlab.figures.grids import class_grid, image_rows, sample_grid
from pdlab.figures.mosaic import mosaic


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
    assert {"first", "second", "a", "b", "c", "title"} <= {text.get_text() for text in figure.findobj(Text)}
