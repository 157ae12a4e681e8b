"""Figures of the plane and of the method, as pure functions that return a matplotlib `Figure`.

Points are `[N, 2]`. Symbols are those of the code: x, eps (ε), v, z, alpha, sigma, t.
"""

import math
from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import NullLocator
from torch import Tensor

from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.prediction import Prediction
from pdlab.diffusion.samplers import ddim_step
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.distillation.ledger import Ledger
from pdlab.figures.sheet import draw_lines, sheet
from pdlab.figures.style import PALETTE, STYLES

_X, _EPS, _V, _Z = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[6]
_GREY = "#888888"


def triangle(schedule: CosineSchedule, t: float) -> Figure:
    """x, eps, z and v at time `t`, drawn in the plane that x and eps span; beside it what x̂ makes of an error.

    An error of size 1 in the network's output is an error of x̂ of 1 (output x), sigma/alpha (eps) or sigma (v).
    """
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma, phi = float(schedule.alpha(time)), float(schedule.sigma(time)), float(schedule.phi(time))
    figure = sheet(8.2, 3.5, wspace=0.25)
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
    figure = sheet(5.2, 4.6)
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
    figure = sheet(2.1 * max(2, len(panels)) + 0.4, 2.75 if title else 2.5, left=0.4, wspace=0.12, bottom=0.3)
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
    figure = sheet(5.6, 4.6, right=1.6)
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
    figure = sheet(2.7 * max(2, len(panels)) + 1.2, 3.5 if title else 3.25, **margins)
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
    figure = sheet(8.8, 3.6, left=0.5, right=1.5, wspace=0.25)
    plane, axis = figure.subplots(1, 2)
    _classes(plane, x, labels, points)
    _plane(plane, f"samples, w = {w:g}", limit=4.2)
    draw_lines(axis, lines)
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
    figure = sheet(5.8, 4.2, right=1.9)
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
    figure = sheet(6.4, 1.1 + 0.3 * (len(lengths) + 2), left=1.9)
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
            marker=STYLES[label][0],
            color=PALETTE[label],
            alpha=0.35,
            linewidths=0,
            label=f"{label}",
        )


def _plane(axis: Axes, title: str, limit: float | None = 2.6) -> None:
    if limit is not None:
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axis.set_aspect("equal", adjustable="box" if limit is not None else "datalim")
    axis.set_xlabel("first coordinate")
    axis.set_ylabel("second coordinate")
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
