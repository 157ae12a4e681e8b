"""Lineage: one noise, what every rung of the ladder makes of it, and how far each halving moved it."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from pdlab.app import chart, html, state
from pdlab.app.compute import Show
from pdlab.app.ladders import NOISES, Ladder
from pdlab.data.source import to_float
from pdlab.distillation.ledger import Ledger, ledger, length

_CHUNK = 2048  # training images that are compared at a time


@dataclass(frozen=True)
class Choice:
    """Which of the fixed noises, from 1."""

    noise: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Choice":
        """From a link's or the controls' values, whatever they are."""
        return cls(state.whole(given.get("noise"), 1, NOISES, 1))


def rungs(ladder: Ladder) -> list[int]:
    """The longest unbroken chain of precomputed rungs down to the last: the teacher's steps, then the students'."""
    stored = ladder.samples
    chain = [ladder.steps[-1]] if ladder.steps and ("distilled", ladder.steps[-1]) in stored else []
    while chain and 2 * chain[0] in ladder.steps and ("distilled", 2 * chain[0]) in stored:
        chain.insert(0, 2 * chain[0])
    if chain and ("ddim", 2 * chain[0]) in stored:
        chain.insert(0, 2 * chain[0])
    return chain


def trail(ladder: Ladder, noise: int) -> dict[int, Tensor]:
    """What each rung makes of noise `noise` (from 0): uint8 `[C, H, W]` by steps, the first one by the teacher."""
    stored = ladder.samples
    found = {k: stored["distilled" if k in ladder.steps else "ddim", k] for k in rungs(ladder)}
    return {steps: images[noise] for steps, images in found.items() if noise < len(images)}


def view(ladder: Ladder, choice: Choice) -> tuple[str, str, str]:
    """The images, the drift bars with their table, and the Python that computes the same."""
    images = trail(ladder, choice.noise - 1)
    if len(images) < 2:
        text = "Nothing is precomputed of this noise; ladders of the zoo have all 64, quickstart's the first 16."
        return html.note(text), "", ""
    counts = list(images)
    undistilled = ladder.samples
    rows = [
        ("the teacher, then each student" if counts[0] not in ladder.steps else "each student", images),
        (
            "for comparison: the teacher in as few steps (DDIM)",
            {k: undistilled["ddim", k][choice.noise - 1] for k in counts if ("ddim", k) in undistilled},
        ),
    ]
    cells = [
        (
            escape(name),
            [
                html.picture(line[k][None], f"noise {choice.noise}, {html.steps_text(k)}, {name}")
                if k in line
                else ""
                for k in counts
            ],
        )
        for name, line in rows
    ]
    caption = (
        f"Noise {choice.noise} of {NOISES}, from {html.steps_text(counts[0])} to {counts[-1]}. {html.source(False)}"
    )
    heads = [str(k) for k in counts]
    found = drift(images)
    return html.sheet(heads, cells, caption), bars(found), code(ladder, choice)


def drift(images: Mapping[int, Tensor]) -> Ledger:
    """The ledger of one noise: how far every halving moved its image."""
    return ledger({steps: to_float(image)[None] for steps, image in images.items()})


def bars(found: Ledger) -> str:
    """The lengths of all moves, and of their sum, as bars and as a table."""
    lengths = {name: 127.5 * float(value) for name, value in found.lengths.items()}
    total = 127.5 * float(length(found.total))
    walked = sum(lengths.values())
    lines = [(name, f"{value:.2f}") for name, value in lengths.items()]
    lines += [("sum of the moves", f"{walked:.2f}"), ("from first to last", f"{total:.2f}")]
    return (
        f"<h3>How far each halving moved it {html.source(False)}</h3>"
        + chart.bars(lengths, "Move in each round", "grey levels a pixel, root mean square")
        + html.table(("round", "grey levels a pixel"), lines, "Root mean square over pixels and colours, of 255")
        + '<p class="how">The moves are vectors: those of two rounds may cancel, so the way from first to last is '
        "shorter than their sum.</p>"
    )


def nearest(ladder: Ladder, choice: Choice, show: Show) -> None:
    """Shows (text, picture) of the training images nearest to the first and the last rung's image, in pixels."""
    show(("Reading the training images …", ""))
    source = ladder.images()
    if source is None:
        remedy = (
            f"The training images ({ladder.data_name}) are not on this machine: pdlab train … --download gets them."
        )
        show((remedy, ""))
        return
    images = trail(ladder, choice.noise - 1)
    asked = [next(iter(images.values())), list(images.values())[-1]]
    wanted = torch.stack([to_float(image).flatten() for image in asked])
    best, where = torch.full((2,), torch.inf), torch.zeros(2, dtype=torch.long)
    for start in range(0, len(source.images), _CHUNK):
        part = to_float(source.images[start : start + _CHUNK]).flatten(1)
        distances, places = torch.cdist(wanted, part).min(1)
        closer = distances < best
        best, where = torch.where(closer, distances, best), torch.where(closer, places + start, where)
        show(None)
    found = source.images[where]
    counts = [next(iter(images)), list(images)[-1]]
    cells = []
    for k, image, neighbour, index in zip(counts, asked, found, where.tolist(), strict=True):
        alt = f"left: noise {choice.noise} in {html.steps_text(k)}; right: training image {index}"
        grey = 127.5 * float((to_float(image) - to_float(neighbour)).square().mean().sqrt())
        cells.append(
            html.picture(torch.stack([image, neighbour]), alt, 2)
            + f"<small>image {index}: {grey:.1f} grey levels a pixel away</small>"
        )
    heads = [html.steps_text(k) for k in counts]
    picture = html.sheet(heads, [("sample, and the nearest training image", cells)], html.source(True))
    show((f"Nearest of {len(source.images):,} images of {source.name}, by pixels.", picture))


def code(ladder: Ladder, choice: Choice) -> str:
    """Python that computes the same drift."""
    line, expression = ladder.code(None)
    chain = rungs(ladder)
    index = choice.noise - 1
    if line == "from pdlab import zoo":
        name = expression.removeprefix("zoo.load(").removesuffix(")")
        start = ("distilled" if chain[0] in ladder.steps else "ddim", chain[0])
        return (
            "from pdlab import zoo\nfrom pdlab.data import to_float\n"
            "from pdlab.distillation.ledger import ledger\n\n"
            f"drawn = zoo.samples({name})\nimages = {{{chain[0]}: drawn[{start!r}]}}\n"
            f"images |= {{k: drawn['distilled', k] for k in {chain[1:]}}}\n"
            f"found = ledger({{k: to_float(v[{index}:{index + 1}]) for k, v in images.items()}})\n"
            "for name, length in found.lengths.items():\n    print(name, 127.5 * float(length))\n"
        )
    models = ", ".join(ladder.code(k)[1] for k in chain if k in ladder.steps)
    return (
        "from pdlab.distillation.ledger import measure_ledger\nfrom pdlab.metrics.evaluate import noise\n"
        f"{line}\n\n"
        f"z = noise({ladder.shape}, 64, 0)[{index}:{index + 1}]\n"
        f"found = measure_ledger({expression}, [{models}], z)\n"
        "for name, length in found.lengths.items():\n    print(name, 127.5 * float(length))\n"
    )
