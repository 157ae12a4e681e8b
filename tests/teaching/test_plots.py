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
    clouds,
    guided_view,
    ledger_bars,
    ledger_trail,
    paths,
    target_geometry,
    triangle,
)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


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
