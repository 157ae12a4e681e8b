"""Pictures and tables as HTML: images inline (no file is written or served), with text for who cannot see them."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import torch
from PIL import Image
from torch import Tensor

from pdlab.figures.mosaic import mosaic
from pdlab.metrics.card import Row


def png(sheet: Tensor) -> str:
    """An image uint8 `[H, W, 3]`, or `[H, W, 4]` with opacity, as a data: address, lossless."""
    buffer = io.BytesIO()
    Image.fromarray(sheet.contiguous().numpy()).save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(images: Tensor, alt: str, columns: int | None = None) -> str:
    """Images uint8 `[n, C, H, W]` as one grid; browsers enlarge it pixel by pixel. `alt` says what it shows."""
    columns = columns or max(1, round(len(images) ** 0.5))
    opaque = mosaic(torch.zeros_like(images[:, :1]), columns)[..., :1] == 0  # gaps let the page shine through
    sheet = torch.cat([mosaic(images, columns), 255 * opaque.to(torch.uint8)], -1)
    return f'<img class="pixels" src="{png(sheet)}" alt="{escape(alt)}">'


def source(live: bool) -> str:
    """The badge that says where a picture comes from."""
    return f'<span class="badge">{"live" if live else "precomputed"}</span>'


def note(text: str, kind: str = "note") -> str:
    """A paragraph; `kind` "error" for what went wrong, with its remedy."""
    role = ' role="alert"' if kind == "error" else ""
    return f'<p class="{kind}"{role}>{escape(text)}</p>'


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """A table; the first cell of a row heads it. Cells are text; `Markup` is left as it is."""
    head = "".join(f'<th scope="col">{_cell(text)}</th>' for text in headers)
    body = "".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>'
        + "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


class Markup(str):
    """HTML that a table takes as it is."""


def steps_text(steps: int) -> str:
    """ "1 step", "2 steps"."""
    return f"{steps} step" + ("" if steps == 1 else "s")


def samples_text(n: int) -> str:
    """ "1 sample", "2 samples"."""
    return f"{n} sample" + ("" if n == 1 else "s")


def calls_text(calls: int) -> str:
    """ "1 network call", "2 network calls"."""
    return f"{calls} network call" + ("" if calls == 1 else "s")


def card(row: Row) -> str:
    """How a figure was measured, as a table."""
    c = row.card
    reference = c.reference
    parameters = {k: v for k, v in c.sampler.items() if k != "name"} | (
        {"guidance": c.guidance} if c.guidance else {}
    )
    sampler = ", ".join([str(c.sampler["name"]), *(f"{k} = {v:g}" for k, v in parameters.items())])
    real = f"{c.real['value']:.4g} ({c.real['how']})" if c.real else "not measured"
    value = f"{row.value:.4g}" + (f" ± {row.spread:.2g}" if row.spread is not None else "")
    lines: Mapping[str, object] = {
        "figure": f"{row.metric} {value} ({row.better} is better)",
        "model": f"{row.model}, weights {(c.checkpoint or 'none')[:12]}, " + ("EMA" if c.ema else "not averaged"),
        "samples": f"{c.n:,}, seed {c.seed}, {c.rounding}",
        **({"classes": ", ".join(c.classes) + ", in turn"} if c.classes else {}),
        "reference": f"{reference['name']} {reference['split']}, {reference['size']:,} images",
        "real images score": real,
        "features": f"{c.extractor['label']}, resize: {c.extractor['resize']}",
        "sampler": f"{sampler}; {steps_text(c.steps)}, {c.nfe} network calls, x̂ {'' if c.clip else 'not '}clipped",
        "computed in": f"{c.precision}, {c.device}",
        "versions": ", ".join(f"{name} {version}" for name, version in c.versions.items()),
    }
    return table(("", f"Card: {row.model}, {steps_text(row.steps)}"), list(lines.items()), "How it was measured")


def _cell(value: object) -> str:
    return value if isinstance(value, Markup) else escape("" if value is None else str(value))


def sheet(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], caption: str, narrow: bool = False
) -> str:
    """A table of pictures: a heading above each column, the name of each row on a line of its own above it.

    The columns of a `narrow` one hold a single small picture each.
    """
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in columns)
    body = "".join(
        f'<tr class="name"><th scope="rowgroup" colspan="{len(columns)}">{name}</th></tr><tr>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows
    )
    kind = f'class="sheet narrow" style="max-width: {68 * len(columns)}px"' if narrow else 'class="sheet"'
    return f"<table {kind}><caption>{caption}</caption><thead><tr>{head}</tr></thead>{body}</table>"
