"""Charts as SVG: in the page's colours, light or dark, as wide as it allows, and read out by their table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from torch import Tensor

from pdlab.figures.style import PALETTE

#: Curves are told apart by colour, by the shape of their points and by their dashes.
COLOURS = PALETTE[:6]
_DASHES = ("", "6 3", "8 3 2 3", "2 3", "10 4", "1 2")
_SIZE = (640.0, 360.0)
_BOX = (84.0, 16.0, 624.0, 308.0)  # left, top, right, bottom of the axes


@dataclass(frozen=True)
class Curve:
    """A series: x -> y, with the key of the card that each point opens, if any."""

    name: str
    points: Mapping[float, float]
    style: int
    keys: Mapping[float, str] = field(default_factory=dict)


def curves(
    series: Sequence[Curve], title: str, x_label: str, y_label: str, floor: float | None = None, log_y: bool = True
) -> str:
    """Curves over a logarithmic x axis whose ticks are the data's own."""
    points = [(x, y) for one in series for x, y in one.points.items()]
    if not points:
        return ""
    xs = sorted({x for x, _ in points})
    ys = [y for _, y in points] + ([floor] if floor is not None else [])
    log_y = log_y and min(ys) > 0
    to_x = _scale(math.log2(xs[0]), math.log2(xs[-1]), _BOX[0] + 16, _BOX[2] - 16)
    low, high, ticks = _log_ticks(min(ys), max(ys)) if log_y else _ticks(min(ys), max(ys))
    to_y = _scale(math.log10(low) if log_y else low, math.log10(high) if log_y else high, _BOX[3], _BOX[1])

    def place(x: float, y: float) -> tuple[float, float]:
        return to_x(math.log2(x)), to_y(math.log10(y) if log_y else y)

    parts = []
    for tick in ticks:
        y = place(xs[0], tick)[1]
        parts.append(f'<line class="grid" x1="{_BOX[0]}" x2="{_BOX[2]}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_BOX[0] - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for x in _apart(xs, to_x):
        at = to_x(math.log2(x))
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_BOX[1]}" y2="{_BOX[3]}"/>')
        parts.append(f'<text x="{at:.1f}" y="{_BOX[3] + 18}" text-anchor="middle">{x:g}</text>')
    middle = (_BOX[0] + _BOX[2]) / 2
    parts.append(f'<text x="{middle}" y="{_SIZE[1] - 14}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(14 {(_BOX[1] + _BOX[3]) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    if floor is not None:
        y = place(xs[0], floor)[1]
        parts.append(f'<line class="floor" x1="{_BOX[0]}" x2="{_BOX[2]}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for one in series:
        at_points = [(x, *place(x, y)) for x, y in sorted(one.points.items())]
        colour, dash = COLOURS[one.style % len(COLOURS)], _DASHES[one.style % len(_DASHES)]
        line = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in at_points)
        parts.append(f'<polyline points="{line}" stroke="{colour}" stroke-dasharray="{dash}"/>')
        for key, x, y in at_points:
            opens = f' data-key="{escape(one.keys[key])}"' if key in one.keys else ""
            text = f"{one.name}, {key:g}: {one.points[key]:.4g}"
            parts.append(f"<g{opens}><title>{escape(text)}</title>{_marker(one.style, x, y, colour)}</g>")
    names = [(one.name, one.style) for one in series]
    return _svg("".join(parts), title) + legend(names, floor is not None)


def bars(values: Mapping[str, float], title: str, unit: str) -> str:
    """Horizontal bars from zero, each with its value written beside it."""
    high = max([*values.values(), 1e-12])
    height = 26 * len(values) + 8
    parts = []
    for k, (name, value) in enumerate(values.items()):
        y = 4 + 26 * k
        parts.append(f'<text x="110" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="120" y="{y + 3}" width="{420 * value / high:.1f}" height="18" fill="{COLOURS[0]}"/>'
        )
        parts.append(f'<text x="{128 + 420 * value / high:.1f}" y="{y + 16}">{value:.3g}</text>')
    return _svg("".join(parts), f"{title} ({unit})", (640, height))


def plane(
    points: Mapping[str, tuple[Tensor, int]], paths: Mapping[str, tuple[Tensor, int]], title: str, reach: float
) -> str:
    """Points `[n, 2]` and paths `[steps, n, 2]` in the plane [−reach, reach]², each with a style's number."""
    side = 420.0
    to_x, to_y = _scale(-reach, reach, 0, side), _scale(-reach, reach, side, 0)
    parts = [f'<rect class="frame" x="0" y="0" width="{side}" height="{side}"/>']
    for cloud, style in points.values():
        colour = COLOURS[style % len(COLOURS)] if style >= 0 else "currentColor"
        dots = "".join(
            f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="1.8"/>'
            for x, y in cloud.clamp(-reach, reach).tolist()
        )
        parts.append(f'<g fill="{colour}" fill-opacity="{0.55 if style >= 0 else 0.22}">{dots}</g>')
    for trail, style in paths.values():
        colour, dash = COLOURS[style % len(COLOURS)], _DASHES[style % len(_DASHES)]
        for path in trail.clamp(-reach, reach).transpose(0, 1).tolist():
            line = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in path)
            parts.append(
                f'<polyline points="{line}" stroke="{colour}" stroke-dasharray="{dash}" stroke-width="1.4"/>'
            )
            x, y = path[-1]
            parts.append(_marker(style, to_x(x), to_y(y), colour, 3.2))
    names = [(name, style) for group in (points, paths) for name, (_, style) in group.items()]
    return _svg("".join(parts), title, (side, side)) + legend(names)


def legend(names: Sequence[tuple[str, int]], floor: bool = False) -> str:
    """What the colours, dashes and shapes mean."""
    items = []
    for name, style in names:
        colour = COLOURS[style % len(COLOURS)] if style >= 0 else "currentColor"
        dash = _DASHES[style % len(_DASHES)] if style >= 0 else ""
        line = f'<line x1="1" x2="27" y1="7" y2="7" stroke="{colour}" stroke-dasharray="{dash}" stroke-width="2"/>'
        mark = _marker(style, 14, 7, colour)
        items.append(
            f'<span><svg width="28" height="14" aria-hidden="true">{line}{mark}</svg> {escape(name)}</span>'
        )
    if floor:
        line = '<line class="floor" x1="1" x2="27" y1="7" y2="7"/>'
        items.append(f'<span><svg width="28" height="14" aria-hidden="true">{line}</svg> real images</span>')
    return f'<div class="legend">{"".join(items)}</div>'


def _svg(inside: str, title: str, size: tuple[float, float] = _SIZE) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {size[0]:g} {size[1]:g}" style="max-width:{size[0]:g}px" role="img" '
        f'aria-label="{escape(title)}; the table beside it has the values">{inside}</svg>'
    )


_CORNERS: dict[
    int, list[tuple[float, float]]
] = {  # square, triangle, diamond, triangle upside down, triangle to the left
    1: [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    2: [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
    3: [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    4: [(0, 1.2), (1.1, -0.9), (-1.1, -0.9)],
    5: [(-1.2, 0), (0.9, -1.1), (0.9, 1.1)],
}


def _marker(style: int, x: float, y: float, colour: str, r: float = 5.0) -> str:
    shape = style % 6 if style >= 0 else 0
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{colour}"/>'
    points = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in _CORNERS[shape])
    return f'<polygon points="{points}" fill="{colour}"/>'


class _scale:
    """Maps [a, b] linearly to [to_a, to_b]."""

    def __init__(self, a: float, b: float, to_a: float, to_b: float) -> None:
        self._slope = (to_b - to_a) / (b - a) if b > a else 0.0
        self._at = to_a if b > a else (to_a + to_b) / 2
        self._a = a

    def __call__(self, x: float) -> float:
        return self._at + self._slope * (x - self._a)


def _apart(xs: list[float], to_x: _scale, gap: float = 26.0) -> list[float]:
    """Those of `xs` whose labels do not touch: powers of two first, then what still has room."""
    kept: list[float] = []
    for x in sorted(xs, key=lambda x: (not math.log2(x).is_integer(), x)):
        if all(abs(to_x(math.log2(x)) - to_x(math.log2(other))) >= gap for other in kept):
            kept.append(x)
    return sorted(kept)


def _log_ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """Bounds about [low, high] and 1, 2, 5 × powers of ten within."""
    candidates = [m * 10.0**e for e in range(-9, 10) for m in (1, 2, 5)]
    below = max((c for c in candidates if c <= low), default=low)
    above = min((c for c in candidates if c >= high and c > below), default=high)
    return below, above, [c for c in candidates if below <= c <= above]


def _ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    low, high = min(low, 0.0), max(high, 0.0)
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if span / s <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, last * step, [k * step for k in range(first, last + 1)]
