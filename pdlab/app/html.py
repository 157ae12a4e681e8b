"""Pictures and tables as HTML: images inline (no file is written or served), with text for who cannot see them.

What is HTML is `Markup`; text that is put into it, here, by a template or by `Markup.format`, is escaped.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from pdlab.figures.mosaic import mosaic
from pdlab.metrics.card import Row

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: "" if value is None else value,
)
_MACROS: Any = _TEMPLATES.get_template("html.j2").module


def png(sheet: Tensor) -> str:
    """An image uint8 `[H, W, 3]`, or `[H, W, 4]` with opacity, as a data: address, lossless."""
    buffer = io.BytesIO()
    Image.fromarray(sheet.contiguous().numpy()).save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(images: Tensor, alt: str, columns: int | None = None) -> Markup:
    """Images uint8 `[n, C, H, W]` as one grid; browsers enlarge it pixel by pixel. `alt` says what it shows."""
    columns = columns or max(1, round(len(images) ** 0.5))
    opaque = mosaic(torch.zeros_like(images[:, :1]), columns)[..., :1] == 0  # gaps let the page shine through
    sheet = torch.cat([mosaic(images, columns), 255 * opaque.to(torch.uint8)], -1)
    return Markup('<img class="pixels" src="{}" alt="{}">').format(png(sheet), alt)


def source(live: bool) -> Markup:
    """The badge that says where a picture comes from."""
    return Markup('<span class="badge">{}</span>').format("live" if live else "precomputed")


def note(text: str, kind: str = "note") -> Markup:
    """A paragraph; `kind` "error" for what went wrong, with its remedy."""
    role = Markup(' role="alert"') if kind == "error" else ""
    return Markup('<p class="{}"{}>{}</p>').format(kind, role, text)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> Markup:
    """A table; the first cell of a row heads it."""
    return _MACROS.table(headers, rows, caption)


def sheet(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], caption: str, narrow: bool = False
) -> Markup:
    """A table of pictures: a heading above each column, the name of each row on a line of its own above it.

    The columns of a `narrow` one hold a single small picture each.
    """
    return _MACROS.sheet(columns, rows, caption, narrow)


def steps_text(steps: int) -> str:
    """ "1 step", "2 steps"."""
    return f"{steps} step" + ("" if steps == 1 else "s")


def samples_text(n: int) -> str:
    """ "1 sample", "2 samples"."""
    return f"{n} sample" + ("" if n == 1 else "s")


def calls_text(calls: int) -> str:
    """ "1 network call", "2 network calls"."""
    return f"{calls} network call" + ("" if calls == 1 else "s")


def card(row: Row) -> Markup:
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
