"""FID curve: a figure against network calls, with what real images reach, and every figure's card."""

import base64
import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pdlab.app import chart, html, state
from pdlab.app.chart import Curve
from pdlab.app.condition import TWICE
from pdlab.app.ladders import ShownLadder
from pdlab.app.views.cells import KINDS, STYLES, kind_of, kinds
from pdlab.metrics.card import Kind, Row, comparable
from pdlab.teaching.paper import FID

#: What a figure of each kind says.
MEANS: dict[Kind, str] = {
    "frechet": "How far the distribution of samples is from that of the training images, as two Gaussians.",
    "kernel": "How far the distribution of samples is from that of the training images, by a kernel.",
    "agreement": "The share of samples in which a classifier sees the class that was asked for.",
    "precision": "The share of samples that lie where training images lie: fidelity.",
    "recall": "The share of training images that lie where samples lie: variety.",
}


@dataclass(frozen=True)
class CurveChoice:
    """What is drawn: a metric at a number of samples and a guidance, for some kinds; the paper's curve or not."""

    metric: str
    n: int
    guidance: float
    kinds: tuple[str, ...]
    paper: bool
    card: str

    @classmethod
    def of(cls, ladder: ShownLadder, given: Mapping[str, Any]) -> "CurveChoice":
        """From a link's or the controls' values, whatever they are."""
        found = options(ladder)
        metric = state.one(given.get("metric"), list(found), next(iter(found), ""))
        sizes = found.get(metric, [0])
        n = state.one(given.get("n"), sizes, sizes[-1])
        measured = weights(ladder, metric, n) or [0.0]
        shown = ladder.shown if ladder.shown in measured else measured[0]
        every = tuple(kinds(ladder))
        return cls(
            metric=metric,
            n=n,
            guidance=state.one(state.number(given.get("guidance"), 0.0, measured[-1], shown), measured, shown),
            kinds=state.some(given.get("kinds"), every, every),
            paper=state.flag(given.get("paper"), True),
            card=given["card"] if isinstance(given.get("card"), str) else "",
        )


def every_row(ladder: ShownLadder) -> list[Row]:
    """The report's figures: the main ones, those of the search for ν, and FID where it was measured."""
    report = ladder.report
    return [Row.from_dict(row) for part in ("rows", "nu_search", "fid") for row in report.get(part, [])]


def options(ladder: ShownLadder) -> dict[str, list[int]]:
    """The metrics that were measured, each with its numbers of samples, ascending."""
    found: dict[str, set[int]] = {}
    for row in every_row(ladder):
        found.setdefault(row.metric, set()).add(row.card.n)
    return {metric: sorted(sizes) for metric, sizes in found.items()}


def weights(ladder: ShownLadder, metric: str, n: int) -> list[float]:
    """The guidances at which a metric was measured on `n` samples, ascending."""
    return sorted({row.card.guidance for row in every_row(ladder) if row.metric == metric and row.card.n == n})


def chosen(ladder: ShownLadder, choice: CurveChoice) -> dict[str, Row]:
    """The figures to draw by their key "kind-calls"; of the ancestral sampler the best ν at each step count.

    All are of cards that may share an axis with the first, and of samples of the same classes.
    """
    found: dict[str, Row] = {}
    one: Row | None = None
    for row in every_row(ladder):
        card, kind = row.card, kind_of(row)
        if (row.metric, card.n, card.guidance) != (choice.metric, choice.n, choice.guidance):
            continue
        one = one or row
        if comparable(card, one.card) or card.classes != one.card.classes or kind not in choice.kinds:
            continue
        key = f"{kind}-{card.nfe}"
        before = found.get(key)
        if before is None or (row.value < before.value) == (row.better == "lower"):
            found[key] = row
    return found


def view(ladder: ShownLadder, choice: CurveChoice) -> tuple[str, str, str, str]:
    """The curves, the table (with CSV), the card that was asked for, and the Python that reads the same."""
    rows = chosen(ladder, choice)
    if not rows:
        what = "This ladder has no report: measure it with pdlab evaluate … --out report.json in its folder."
        text = html.note(
            what if not options(ladder) else "Nothing was measured for this choice: tick another model."
        )
        return text + (paper() if choice.paper else ""), "", "", code(ladder, choice)
    return (
        curves(rows, choice, bool(ladder.most)) + (paper() if choice.paper else ""),
        table(rows),
        card(rows, choice.card),
        code(ladder, choice),
    )


def curves(rows: Mapping[str, Row], choice: CurveChoice, guided: bool) -> Markup:
    """The figures as curves, one for each sampler, and what real images reach; distances on a logarithmic axis."""
    series = []
    for kind, label in KINDS.items():
        mine = {row.card.nfe: (key, row) for key, row in rows.items() if key.rpartition("-")[0] == kind}
        if mine:
            values = {float(nfe): row.value for nfe, (_, row) in mine.items()}
            keys = {float(nfe): key for nfe, (key, _) in mine.items()}
            series.append(Curve(label, values, STYLES[kind], keys))
    one = next(iter(rows.values()))
    real = float(one.card.real["value"]) if one.card.real else None
    title = f"{choice.metric} of {choice.n:,} samples against network calls"
    title += f", guidance {choice.guidance:g}" if guided else ""
    label = f"{choice.metric} ({one.better} is better)"
    return (
        Markup("<h3>{} {}</h3>").format(title, html.source(False))
        + html.note(MEANS[one.kind] + (f" {TWICE}" if choice.guidance else ""), "how")
        + Markup(chart.curves(series, title, "network calls an image", label, real, one.better == "lower"))
    )


def paper() -> Markup:
    """The published curve: another metric on other images, so in a panel of its own."""
    series = [
        Curve(KINDS[kind], {float(k): v for k, v in values.items()}, STYLES[kind]) for kind, values in FID.items()
    ]
    counts = sorted({k for values in FID.values() for k in values})
    lines = [(k, *(values.get(k) for values in FID.values())) for k in counts]
    return Markup(
        "<h3>For comparison: the paper's FID</h3>"
        '<p class="how">Salimans &amp; Ho 2022, CIFAR-10 at 32 × 32, 50,000 samples, a network of 60 million '
        "parameters. Another metric and another model: compare the shapes of the curves, not their heights.</p>"
        "{}<details><summary>The paper's curve as a table</summary>{}</details>"
    ).format(
        Markup(chart.curves(series, "FID in the paper against steps", "steps", "FID (lower is better)")),
        html.table(("steps", *(KINDS[kind] for kind in FID)), lines, "FID; above 8 steps read off the figure"),
    )


def table(rows: Mapping[str, Row]) -> Markup:
    """The figures by network calls and sampler; each is a button that opens its card. CSV below."""
    kinds = [kind for kind in KINDS if any(key.rpartition("-")[0] == kind for key in rows)]
    calls = sorted({row.card.nfe for row in rows.values()})
    lines = []
    for nfe in calls:
        cells = [rows.get(f"{kind}-{nfe}") for kind in kinds]
        lines.append((nfe, *(_button(f"{kind}-{nfe}", row) for kind, row in zip(kinds, cells, strict=True))))
    one = next(iter(rows.values()))
    real = f"; real images score {one.card.real['value']:.3g}" if one.card.real else ""
    weight = f", guidance {one.card.guidance:g}" if one.card.guidance else ""
    caption = f"{one.metric}, n = {one.card.n:,}{weight}{real}. Press a figure for its card."
    data = base64.b64encode(as_csv(rows).encode()).decode()
    link = Markup(
        '<p><a class="download" download="curve.csv" href="data:text/csv;base64,{}">Download as CSV</a></p>'
    ).format(data)
    return html.table(("network calls", *(KINDS[kind] for kind in kinds)), lines, caption) + link


def as_csv(rows: Mapping[str, Row]) -> str:
    """The figures as CSV, one a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ("sampler", "nu", "guidance", "steps", "network_calls", "metric", "value", "spread", "n", "checkpoint")
    )
    for key, row in sorted(rows.items(), key=lambda item: (item[0].rpartition("-")[0], item[1].card.nfe)):
        c = row.card
        kind = key.rpartition("-")[0]
        how = (kind, c.sampler.get("nu", ""), f"{c.guidance:g}", c.steps, c.nfe)
        writer.writerow((*how, row.metric, row.value, row.spread, c.n, c.checkpoint))
    return out.getvalue()


def card(rows: Mapping[str, Row], key: str) -> Markup:
    """The card of the figure `key`, or how to open one."""
    if key not in rows:
        return html.note("Press a point of the curve, or a figure of the table, to see how it was measured.")
    return html.card(rows[key])


def code(ladder: ShownLadder, choice: CurveChoice) -> str:
    """Python that reads the same figures."""
    line, expression = ladder.code(None)
    if line == "from pdlab import zoo":
        read = (
            f"{line}\nfrom pdlab.metrics.card import Row\n\nreport = {expression.replace('zoo.load', 'zoo.report')}"
        )
    else:
        path = expression.removeprefix("load(").removesuffix(").denoiser")
        read = (
            "import json\nfrom pathlib import Path\n\nfrom pdlab.metrics.card import Row\n\n"
            f"report = json.loads((Path({path}).parent / 'report.json').read_text())"
        )
    weight = f" and row.card.guidance == {choice.guidance:g}" if ladder.most else ""
    return (
        f"{read}\nfor row in map(Row.from_dict, report['rows']):\n"
        f"    if row.metric == {choice.metric!r} and row.card.n == {choice.n}{weight}:\n"
        "        print(row.model, row.card.sampler['name'], row.card.nfe, row.value)\n"
    )


def _button(key: str, row: Row | None) -> object:
    if row is None:
        return None
    nu = Markup("<small>ν = {:g}</small>").format(row.card.sampler["nu"]) if "nu" in row.card.sampler else ""
    spread = f" ± {row.spread:.2g}" if row.spread is not None else ""
    button = Markup('<button type="button" data-key="{}">{:.3g}{}</button>').format(key, row.value, spread)
    return button + nu
