"""One cell of a comparison: what a sampler, at a number of network calls, makes of a page of the fixed noises."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from pdlab.app.compute import Show
from pdlab.app.condition import PLAIN, Condition
from pdlab.app.ladders import PAGE, Drawn, Shelf, ShownLadder, Which, page_of, synchronized
from pdlab.data import to_uint8
from pdlab.diffusion.samplers import SAMPLERS, nfe
from pdlab.distillation.guided import GUIDED
from pdlab.metrics.card import Kind, Row

#: What can be compared: the students, every sampler of the undistilled teacher, and it with its guidance distilled.
KINDS = {
    "ddim": "ordinary sampler (DDIM)",
    "distilled": "distilled",
    GUIDED: "only its guidance distilled (DDIM)",
    "ancestral": "ancestral",
    "heun": "Heun",
    "dpm-solver++": "DPM-Solver++(2M)",
}
#: The curve that each is drawn with.
STYLES = {"distilled": 0, "ddim": 1, "ancestral": 2, "heun": 3, "dpm-solver++": 4, GUIDED: 5}


@dataclass(frozen=True)
class Cell:
    """`calls` is the number of network calls that a column allows; some samplers cannot use them all."""

    kind: str
    calls: int
    page: int = 0
    clip: bool = True
    nu: float = 0.0
    condition: Condition = PLAIN

    @property
    def sampler(self) -> str:
        """The sampler's name; students, and stage one, are sampled with DDIM."""
        return "ddim" if self.kind in ("distilled", GUIDED) else self.kind

    @property
    def each(self) -> int:
        """Network calls of a prediction: two of a guided model, unless its guidance was distilled."""
        return 2 if self.condition.guidance and self.which is None else 1

    @property
    def steps(self) -> int:
        """Steps of the sampler that `calls` suffice for; there may be none."""
        predictions = self.calls // self.each
        return (predictions + 1) // 2 if self.kind == "heun" else predictions

    @property
    def which(self) -> Which:
        """The model that draws it."""
        return self.calls if self.kind == "distilled" else GUIDED if self.kind == GUIDED else None

    @property
    def options(self) -> dict[str, Any]:
        """The sampler's own parameters."""
        return {"nu": self.nu} if self.kind == "ancestral" else {}

    @property
    def nfe(self) -> int:
        """Network calls that it makes."""
        return nfe(self.sampler, self.steps, self.each)

    @property
    def first(self) -> int:
        """The number of its first noise."""
        return self.page * PAGE

    def missing(self, ladder: ShownLadder) -> str:
        """Why the ladder cannot draw it; empty where it can."""
        if self.kind == "distilled" and self.calls not in ladder.steps:
            return "no such student"
        if self.kind == GUIDED and not ladder.guided:
            return "no such model"
        if self.condition.guidance > (most := ladder.takes(self.which)):
            return f"made for guidance up to {most:g}" if most else "takes no guidance"
        return "" if self.steps else "guided, a step takes two calls"


def kinds(ladder: ShownLadder) -> dict[str, str]:
    """Those of `KINDS` that the ladder has, with their names."""
    return {kind: name for kind, name in KINDS.items() if kind != GUIDED or ladder.guided}


def drawn(shelf: Shelf, ladder: ShownLadder, cell: Cell) -> Drawn | None:
    """The cell's 16 images: drawn live on this machine, else precomputed, else None."""
    return shelf.drawn.get((ladder.name, cell)) or stored(ladder, cell)


def stored(ladder: ShownLadder, cell: Cell) -> Drawn | None:
    """The cell's 16 images as they were precomputed, else None."""
    images = ladder.samples.get((cell.kind, cell.steps, cell.condition.guidance))
    whole = cell.clip and cell.condition.label is None
    if images is None or not whole or len(images) < (cell.page + 1) * PAGE:
        return None
    return Drawn(page_of(images, cell.page))


def draw(shelf: Shelf, ladder: ShownLadder, cell: Cell, show: Show) -> Drawn:
    """Draw the cell's 16 images now; `show(None)` is called at every step, so that it can be stopped."""
    model = shelf.model(ladder, cell.which)
    noise = page_of(ladder.noise, cell.page).to(model.device)
    options = cell.options | cell.condition.arguments(ladder, cell.first, PAGE, model.device)
    if cell.kind == "ancestral":
        options["generator"] = torch.Generator(model.device).manual_seed(cell.page)
    started, z = time.perf_counter(), noise
    with torch.inference_mode():
        for step in SAMPLERS[cell.sampler](model, noise, cell.steps, clip=cell.clip, **options):
            z = step.z
            show(None)
    images = to_uint8(synchronized(z)).cpu()
    result = Drawn(images, time.perf_counter() - started)
    shelf.drawn.put((ladder.name, cell), result, images.numel())
    return result


def kind_of(row: Row) -> str:
    """The kind of model and sampler that a figure is of."""
    return row.model if row.model in ("distilled", GUIDED) else str(row.card.sampler["name"])


def figure(ladder: ShownLadder, cell: Cell, kind: Kind = "frechet") -> Row | None:
    """The figure of this kind that was measured of exactly this, if it was."""
    for row in ladder.rows:
        card = row.card
        if (
            row.kind == kind
            and kind_of(row) == cell.kind
            and card.sampler["name"] == cell.sampler
            and card.steps == cell.steps
            and card.clip == cell.clip
            and card.sampler.get("nu", 0.0) == cell.options.get("nu", 0.0)
            and card.guidance == cell.condition.guidance
            and (card.classes or []) == ladder.classes
            and cell.condition.label is None
        ):
            return row
    return None


def figure_text(row: Row) -> str:
    """A figure below a picture: "FD 163", "agreement 0.71"; which features is said once beside them."""
    return f"{row.metric.partition('-')[0]} {row.value:.3g}"


def figures_text(ladder: ShownLadder, cell: Cell) -> str:
    """Its distance and, of a ladder with classes, its agreement, as far as they were measured."""
    rows = (figure(ladder, cell), figure(ladder, cell, "agreement"))
    return ", ".join(figure_text(row) for row in rows if row)


def code(ladder: ShownLadder, cell: Cell) -> str:
    """Python that draws the cell with pdlab's public functions."""
    line, model = ladder.code(cell.which)
    options = f", {cell.sampler!r}" if cell.sampler != "ddim" else ""
    if not cell.clip:
        options += ", clip=False"
    if cell.kind == "ancestral":
        options += f", nu={cell.nu:g}, generator=torch.Generator().manual_seed({cell.page})"
    labels, condition = cell.condition.code(ladder, cell.first, PAGE)
    rows = f"[{cell.first}:{cell.first + PAGE}]"
    noises, imported = noise_code(ladder)
    imports = sorted(
        {line, imported, "from pdlab.data import to_uint8", "from pdlab.diffusion.samplers import sample"}
    )
    torch_line = "import torch\n\n" if "torch." in options + labels else ""
    call = f"sample({model}, noise, {cell.steps}{options}{condition})"
    return (
        torch_line + "\n".join(imports) + f"\n\nnoise = {noises}{rows}\n{labels}"
        f"images = to_uint8({call})  # uint8 [16, C, H, W]\n"
    )


def noise_code(ladder: ShownLadder) -> tuple[str, str]:
    """The expression that gives the ladder's fixed noises, and its import."""
    line, expression = ladder.code(None)
    if line == "from pdlab import zoo":
        return expression.replace("zoo.load", "zoo.noise"), line
    return f"noise({ladder.shape}, 64, 0)", "from pdlab.metrics.evaluate import noise"
