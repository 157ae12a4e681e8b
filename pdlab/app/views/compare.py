"""Compare: samplers in rows, network calls in columns, every cell from the same noises."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pdlab.app import html, state
from pdlab.app.compute import Show
from pdlab.app.condition import TWICE, Condition
from pdlab.app.ladders import NOISES, PAGE, Shelf, ShownLadder
from pdlab.app.views import cells
from pdlab.app.views.cells import KINDS, Cell
from pdlab.app.views.first import columns, missing
from pdlab.metrics.card import Row

PAGES = NOISES // PAGE
ZOOMS = (16, 4, 1)


@dataclass(frozen=True)
class Comparison:
    """What is compared; every value is one that the ladder has."""

    rows: tuple[str, ...]
    steps: tuple[int, ...]
    nu: float
    page: int
    clip: bool
    zoom: int
    left: str
    right: str
    condition: Condition

    @classmethod
    def of(cls, ladder: ShownLadder, given: Mapping[str, Any]) -> "Comparison":
        """From a link's or the controls' values, whatever they are."""
        counts, kinds = ladder.counts, tuple(cells.kinds(ladder))
        return cls(
            rows=state.some(given.get("rows"), kinds, ("ddim", "distilled")),
            steps=state.some(given.get("steps"), counts, columns(ladder) or counts[-1:]),
            nu=state.number(given.get("nu"), 0.0, 1.0, 0.0),
            page=state.whole(given.get("page"), 1, PAGES, 1),
            clip=state.flag(given.get("clip"), True),
            zoom=state.one(given.get("zoom"), ZOOMS, 16),
            left=state.one(given.get("left"), kinds, "ddim"),
            right=state.one(given.get("right"), kinds, "distilled"),
            condition=Condition.of(ladder, given),
        )

    def cell(self, kind: str, calls: int) -> Cell:
        """The cell in row `kind` and column `calls`."""
        nu = self.nu if kind == "ancestral" else 0.0
        return Cell(kind, calls, self.page - 1, self.clip, nu, self.condition)

    def cells(self, ladder: ShownLadder) -> list[Cell]:
        """All cells that the ladder can draw."""
        every = [self.cell(kind, calls) for kind in self.rows for calls in self.steps]
        return [cell for cell in every if not cell.missing(ladder)]


def view(shelf: Shelf, ladder: ShownLadder, what: Comparison) -> tuple[str, str, str, str]:
    """The pictures, their table, the pair under a slider, and the Python that draws the last cell."""
    if not what.rows or not what.steps:
        return html.note("Choose at least one row and one number of network calls."), "", "", ""
    return grid(shelf, ladder, what), table(shelf, ladder, what), pair(shelf, ladder, what), code(ladder, what)


def grid(shelf: Shelf, ladder: ShownLadder, what: Comparison) -> Markup:
    """The pictures, each with where it comes from."""
    rows, first = [], (what.page - 1) * PAGE
    among = what.condition.among(ladder, first, what.zoom)
    for kind in what.rows:
        line = []
        for calls in what.steps:
            cell = what.cell(kind, calls)
            why = cell.missing(ladder)
            found = None if why else cells.drawn(shelf, ladder, cell)
            if found is None:
                line.append(missing(why) if why else missing())
                continue
            alt = (
                f"{html.samples_text(what.zoom)}{among}, {KINDS[kind]}, {html.steps_text(cell.steps)}, "
                f"page {what.page}"
            )
            figures = cells.figures_text(ladder, cell)
            badge = html.source(found.seconds is not None)
            small = Markup("<small>{} {}</small>").format(figures, badge)
            line.append(html.picture(found.images[: what.zoom], alt) + small)
        rows.append((name(kind, what), line))
    heads = [f"{calls} call{'' if calls == 1 else 's'}" for calls in what.steps]
    return html.sheet(heads, rows, caption(ladder, what))


def caption(ladder: ShownLadder, what: Comparison) -> str:
    """What all cells have in common: their noises, classes and guidance."""
    parts = ["Columns: network calls an image. Every cell starts from the same noises"]
    names = what.condition.names(ladder, (what.page - 1) * PAGE, what.zoom)
    if what.condition.label is not None:
        parts[0] += f", all of class {names[0]}."
    elif names:
        side = round(len(names) ** 0.5)
        lines = [", ".join(names[k : k + side]) for k in range(0, len(names), side)]
        parts[0] += f"; row by row: {' / '.join(lines)}."
    else:
        parts[0] += "."
    if what.condition.guidance:
        parts.append(f"Guidance {what.condition.guidance:g}. {TWICE}")
    return " ".join(parts)


def table(shelf: Shelf, ladder: ShownLadder, what: Comparison) -> Markup:
    """What the pictures cost and score."""
    every = what.cells(ladder)
    columns = {"distance": [cells.figure(ladder, cell) for cell in every]}
    if ladder.classes:
        columns["agreement"] = [cells.figure(ladder, cell, "agreement") for cell in every]
    lines = []
    for cell, *rows in zip(every, *columns.values(), strict=True):
        found = cells.drawn(shelf, ladder, cell)
        seconds = f"{found.seconds:.2f}" if found and found.seconds is not None else ""
        origin = "not drawn yet" if found is None else "live" if found.seconds is not None else "precomputed"
        figures = [value_text(row) for row in rows]
        lines.append((name(cell.kind, what), cell.steps, cell.nfe, *figures, seconds, origin))
    measured = [
        " or ".join(sorted({f"{row.metric}, n = {row.card.n:,}" for row in rows if row})) or kind
        for kind, rows in columns.items()
    ]
    headers = ("sampler", "steps", "network calls", *measured, "seconds for 16, here", "source")
    better = "lower distances (to the training images) are better"
    if ladder.classes:
        better += ", and higher agreement (with the class that was asked for)"
    return html.table(headers, lines, f"The same as numbers; {better}")


def value_text(row: Row | None) -> str:
    """A figure with its spread."""
    if row is None:
        return "not measured"
    return f"{row.value:.3g}" + (f" ± {row.spread:.2g}" if row.spread is not None else "")


def pair(shelf: Shelf, ladder: ShownLadder, what: Comparison) -> Markup:
    """Two cells of the fewest network calls on top of one another; a slider moves the border."""
    both = (what.left, what.right)
    fit = [n for n in what.steps if not any(what.cell(kind, n).missing(ladder) for kind in both)]
    if not fit:
        return html.note("No column above has both of the two.")
    calls = fit[-1]
    found = {kind: cells.drawn(shelf, ladder, what.cell(kind, calls)) for kind in both}
    there = {kind: one for kind, one in found.items() if one is not None}
    if len(there) < len(found):
        return html.note("One of the two is not drawn yet: add its row above and press Draw live.")
    of = what.condition.among(ladder, (what.page - 1) * PAGE, what.zoom)
    over, under = (
        html.picture(there[kind].images[: what.zoom], f"{KINDS[kind]}, {html.calls_text(calls)}{of}")
        for kind in (what.left, what.right)
    )
    left, right = (KINDS[kind] for kind in (what.left, what.right))
    origin = html.source(any(one.seconds is not None for one in there.values()))
    return Markup(
        '<div class="pair"><div class="under">{under}</div><div class="over">{over}</div></div>'
        '<input class="border" type="range" min="0" max="100" value="50" aria-label="Border: {left} and {right}">'
        '<p class="how">Left: {left}; right: {right}; {calls}. {origin}</p>'
    ).format(left=left, right=right, over=over, under=under, calls=html.calls_text(calls), origin=origin)


def code(ladder: ShownLadder, what: Comparison) -> str:
    """Python for the cell in the last row and column that exists."""
    drawable = what.cells(ladder)
    return cells.code(ladder, drawable[-1]) if drawable else ""


def work(shelf: Shelf, ladder: ShownLadder, what: Comparison, show: Show) -> None:
    """Draw every cell now, cheapest first; shows (text, pictures, table, pair) after each."""
    todo = sorted(what.cells(ladder), key=lambda cell: cell.nfe)
    if not todo:
        show(("None of these cells can be drawn.", *view(shelf, ladder, what)[:3]))
    for k, cell in enumerate(todo):
        if k == 0:
            show((f"Drawing {len(todo)} cells …", *view(shelf, ladder, what)[:3]))
        cells.draw(shelf, ladder, cell, show)
        text = f"{k + 1} of {len(todo)} cells drawn on this machine" + ("." if k + 1 == len(todo) else " …")
        show((text, *view(shelf, ladder, what)[:3]))


def name(kind: str, what: Comparison) -> str:
    """A row's name, with the ancestral sampler's parameter."""
    return f"{KINDS[kind]}, ν = {what.nu:g}" if kind == "ancestral" else KINDS[kind]
