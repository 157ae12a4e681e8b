"""Figures hold what they are given: every cell, every point, axes with names."""

import torch

from pdlab.teaching.plots import metric_curve, mosaic, sample_grid, scatter


def test_mosaic_places_every_image() -> None:
    images = torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    sheet = mosaic(images, columns=3)
    assert sheet.shape == (5, 8, 3)
    assert [int(sheet[r, c, 0]) for r, c in ((0, 0), (0, 3), (0, 6), (3, 0), (3, 3))] == [1, 2, 3, 4, 5]
    assert (sheet[:, 2] == 255).all()
    assert (sheet[3:, 6:] == 255).all()  # an empty cell


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
