"""Lineage: one noise, what every rung of the ladder makes of it, and how far each halving moved it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from pdlab.app import chart, html, state
from pdlab.app.compute import Show
from pdlab.app.condition import TWICE, Condition
from pdlab.app.ladders import NOISES, PAGE, Shelf, ShownLadder
from pdlab.app.views import cells
from pdlab.app.views.cells import KINDS, Cell
from pdlab.data.source import to_float
from pdlab.distillation.guided import GUIDED
from pdlab.distillation.ledger import Ledger, ledger, length

_CHUNK = 2048  # training images that are compared at a time


@dataclass(frozen=True)
class NoiseChoice:
    """Which of the fixed noises, from 1, of which class and how guided."""

    noise: int
    condition: Condition

    @classmethod
    def of(cls, ladder: ShownLadder, given: Mapping[str, Any]) -> "NoiseChoice":
        """From a link's or the controls' values, whatever they are."""
        return cls(state.whole(given.get("noise"), 1, NOISES, 1), Condition.of(ladder, given))

    @property
    def index(self) -> int:
        """The noise, from 0."""
        return self.noise - 1

    def cell(self, kind: str, steps: int) -> Cell:
        """The page of samples of `steps` steps that this one is of."""
        calls = steps * Cell(kind, steps, condition=self.condition).each
        return Cell(kind, calls, self.index // PAGE, condition=self.condition)


def rungs(ladder: ShownLadder, choice: NoiseChoice) -> dict[int, Cell]:
    """The students by steps, each of half the steps of the one before, behind the model that the first is of."""
    chain = ladder.steps[-1:]
    while chain and 2 * chain[0] in ladder.steps:
        chain.insert(0, 2 * chain[0])
    if not chain:
        return {}
    return {2 * chain[0]: choice.cell(beginning(ladder), 2 * chain[0])} | {
        steps: choice.cell("distilled", steps) for steps in chain
    }


def beginning(ladder: ShownLadder) -> str:
    """What the first student was distilled from: stage one of guided distillation, if it is there to draw with."""
    return GUIDED if ladder.guided else "ddim"


def ordinary(ladder: ShownLadder, choice: NoiseChoice) -> dict[int, Cell]:
    """The undistilled teacher in as many steps as every rung."""
    return {steps: choice.cell("ddim", steps) for steps in rungs(ladder, choice)}


def trail(
    shelf: Shelf, ladder: ShownLadder, choice: NoiseChoice, line: Mapping[int, Cell] | None = None
) -> dict[int, Tensor]:
    """What each rung (or each cell of `line`) makes of the noise, as far as drawn: uint8 `[C, H, W]` by steps."""
    line = rungs(ladder, choice) if line is None else line
    found = {steps: cells.drawn(shelf, ladder, cell) for steps, cell in line.items()}
    return {steps: drawn.images[choice.index % PAGE] for steps, drawn in found.items() if drawn}


def view(shelf: Shelf, ladder: ShownLadder, choice: NoiseChoice) -> tuple[str, str, str]:
    """The images, the drift bars with their table, and the Python that computes the same."""
    chain = rungs(ladder, choice)
    if not chain:
        return html.note("This ladder has no students yet: distil some with pdlab distill."), "", ""
    if why := next(filter(None, (cell.missing(ladder) for cell in chain.values())), ""):
        return html.note(f"These models cannot all be guided so: {why}."), "", ""
    images, live = trail(shelf, ladder, choice), is_live(shelf, ladder, chain)
    if len(images) < len(chain):
        return html.note("Nothing is precomputed of this noise as it is asked for: press Draw live."), "", ""
    counts = list(images)
    first = "the teacher, its guidance distilled," if ladder.guided else "the teacher,"
    lines = [
        (f"{first} then each student", images),
        (
            "for comparison: the teacher in as few steps (DDIM)",
            trail(shelf, ladder, choice, ordinary(ladder, choice)),
        ),
    ]
    of = choice.condition.among(ladder, choice.index, 1)
    rows = [
        (
            name,
            [
                html.picture(line[k][None], f"noise {choice.noise}{of}, {html.steps_text(k)}, {name}")
                if k in line
                else ""
                for k in counts
            ],
        )
        for name, line in lines
    ]
    what = f"Noise {choice.noise} of {NOISES}"
    if ladder.classes:
        what += f", class {choice.condition.names(ladder, choice.index, 1)[0]}"
    if choice.condition.guidance:
        what += f", guidance {choice.condition.guidance:g}"
    what += f", from {html.steps_text(counts[0])} to {counts[-1]}."
    caption = Markup("{} {}").format(what, html.source(live))
    if choice.condition.guidance:
        caption += f" {TWICE}"
        if not ladder.guided:
            caption += " The first move holds that of learning the guidance, too."
    heads = [str(k) for k in counts]
    return html.sheet(heads, rows, caption), bars(drift(images), live), code(ladder, choice)


def is_live(shelf: Shelf, ladder: ShownLadder, line: Mapping[int, Cell]) -> bool:
    """Whether one of the cells was drawn on this machine."""
    found = (cells.drawn(shelf, ladder, cell) for cell in line.values())
    return any(drawn is not None and drawn.seconds is not None for drawn in found)


def draw(shelf: Shelf, ladder: ShownLadder, choice: NoiseChoice, show: Show) -> None:
    """Draw every rung, and the teacher in as many steps, now; shows (text, images, bars)."""
    chain, compared = rungs(ladder, choice), ordinary(ladder, choice)
    every = dict.fromkeys([*chain.values(), *compared.values()])
    todo = sorted((cell for cell in every if not cell.missing(ladder)), key=lambda cell: cell.nfe)
    for k, cell in enumerate(todo):
        show((f"Drawing {k + 1} of {len(todo)}: {KINDS[cell.kind]}, {html.steps_text(cell.steps)} …", "", ""))
        cells.draw(shelf, ladder, cell, show)
    show((f"{len(todo)} models and step counts drawn on this machine.", *view(shelf, ladder, choice)[:2]))


def drift(images: Mapping[int, Tensor]) -> Ledger:
    """The ledger of one noise: how far every halving moved its image."""
    return ledger({steps: to_float(image)[None] for steps, image in images.items()})


def bars(found: Ledger, live: bool) -> Markup:
    """The lengths of all moves, and of their sum, as bars and as a table."""
    lengths = {name: 127.5 * float(value) for name, value in found.lengths.items()}
    total = 127.5 * float(length(found.total))
    walked = sum(lengths.values())
    lines = [(name, f"{value:.2f}") for name, value in lengths.items()]
    lines += [("sum of the moves", f"{walked:.2f}"), ("from first to last", f"{total:.2f}")]
    told = (
        "The moves are vectors: those of two rounds may cancel, so the way from first to last is shorter than "
        "their sum."
    )
    return (
        Markup("<h3>How far each halving moved it {}</h3>").format(html.source(live))
        + Markup(chart.bars(lengths, "Move in each round", "grey levels a pixel, root mean square"))
        + html.table(("round", "grey levels a pixel"), lines, "Root mean square over pixels and colours, of 255")
        + html.note(told, "how")
    )


def nearest(shelf: Shelf, ladder: ShownLadder, choice: NoiseChoice, show: Show) -> None:
    """Shows (text, picture) of the training images nearest to the first and the last rung's image, in pixels."""
    show(("Reading the training images …", ""))
    source = ladder.images()
    if source is None:
        remedy = (
            f"The training images ({ladder.data_name}) are not on this machine: pdlab train … --download gets them."
        )
        show((remedy, ""))
        return
    images = trail(shelf, ladder, choice)
    if len(images) < 2:
        show(("There is nothing drawn to look for: press Draw live first.", ""))
        return
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
            + Markup("<small>image {}: {:.1f} grey levels a pixel away</small>").format(index, grey)
        )
    heads = [html.steps_text(k) for k in counts]
    picture = html.sheet(heads, [("sample, and the nearest training image", cells)], html.source(True))
    show((f"Nearest of {len(source.images):,} images of {source.name}, by pixels.", picture))


def code(ladder: ShownLadder, choice: NoiseChoice) -> str:
    """Python that computes the same drift."""
    chain = rungs(ladder, choice)
    line, expression = ladder.code(None)
    row = choice.index % PAGE
    told = "for name, length in found.lengths.items():\n    print(name, 127.5 * float(length))\n"
    if line == "from pdlab import zoo" and all(cells.stored(ladder, cell) for cell in chain.values()):
        name = expression.removeprefix("zoo.load(").removesuffix(")")
        weight = f", {choice.condition.guidance:g}" if ladder.most else ""
        first, *others = chain
        return (
            "from pdlab import zoo\nfrom pdlab.data import to_float\n"
            "from pdlab.distillation.ledger import ledger\n\n"
            f"drawn = zoo.samples({name}{weight})\nimages = {{{first}: drawn['ddim', {first}]}}\n"
            f"images |= {{k: drawn['distilled', k] for k in {others}}}\n"
            f"found = ledger({{k: to_float(v[{choice.index}:{choice.noise}]) for k, v in images.items()}})\n{told}"
        )
    first = choice.index - row
    labels, condition = choice.condition.code(ladder, first, PAGE)
    noises, imported = cells.noise_code(ladder)
    imports = {
        line,
        imported,
        "from pdlab.data import to_float, to_uint8",
        "from pdlab.diffusion.samplers import sample",
        "from pdlab.distillation.ledger import ledger",
    }
    draws = "".join(
        f"    {k}: sample({ladder.code(cell.which)[1]}, z, {k}{condition}),\n" for k, cell in chain.items()
    )
    return (
        ("import torch\n\n" if labels else "") + "\n".join(sorted(imports)) + "\n\n"
        f"z = {noises}[{first}:{first + PAGE}]\n{labels}images = {{\n{draws}}}\n"
        f"found = ledger({{k: to_float(to_uint8(v))[{row}:{row + 1}] for k, v in images.items()}})\n{told}"
    )
