"""One cell of a comparison: what a sampler, at a number of network calls, makes of a page of the fixed noises."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from pdlab.app.compute import Show
from pdlab.app.ladders import PAGE, Drawn, Ladder, Shelf, page_of, synchronized
from pdlab.data import to_uint8
from pdlab.diffusion.samplers import SAMPLERS, nfe
from pdlab.metrics.card import Row

#: What can be compared: the students, and every sampler of the undistilled teacher.
KINDS = {
    "ddim": "ordinary sampler (DDIM)",
    "distilled": "distilled",
    "ancestral": "ancestral",
    "heun": "Heun",
    "dpm-solver++": "DPM-Solver++(2M)",
}
#: The curve that each is drawn with.
STYLES = {"distilled": 0, "ddim": 1, "ancestral": 2, "heun": 3, "dpm-solver++": 4}


@dataclass(frozen=True)
class Cell:
    """`calls` is the number of network calls that a column allows; Heun's rule makes at most as many."""

    kind: str
    calls: int
    page: int = 0
    clip: bool = True
    nu: float = 0.0

    @property
    def sampler(self) -> str:
        """The sampler's name; students are sampled with DDIM."""
        return "ddim" if self.kind == "distilled" else self.kind

    @property
    def steps(self) -> int:
        """Steps of the sampler that `calls` suffice for."""
        return (self.calls + 1) // 2 if self.kind == "heun" else self.calls

    @property
    def student(self) -> int | None:
        """The student that draws it; None is the teacher."""
        return self.calls if self.kind == "distilled" else None

    @property
    def options(self) -> dict[str, Any]:
        """The sampler's own parameters."""
        return {"nu": self.nu} if self.kind == "ancestral" else {}

    @property
    def nfe(self) -> int:
        """Network calls that it makes."""
        return nfe(self.sampler, self.steps)

    def exists(self, ladder: Ladder) -> bool:
        """Whether the ladder has the student, if it takes one."""
        return self.student is None or self.student in ladder.steps


def drawn(shelf: Shelf, ladder: Ladder, cell: Cell) -> Drawn | None:
    """The cell's 16 images: drawn live on this machine, else precomputed, else None."""
    if live := shelf.drawn.get((ladder.name, cell)):
        return live
    stored = ladder.samples.get((cell.kind, cell.calls))
    if stored is None or not cell.clip or len(stored) < (cell.page + 1) * PAGE:
        return None
    return Drawn(page_of(stored, cell.page))


def draw(shelf: Shelf, ladder: Ladder, cell: Cell, show: Show) -> Drawn:
    """Draw the cell's 16 images now; `show(None)` is called at every step, so that it can be stopped."""
    model = shelf.model(ladder, cell.student)
    noise = page_of(ladder.noise, cell.page).to(model.device)
    options = cell.options
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


def figure(ladder: Ladder, cell: Cell) -> Row | None:
    """The Fréchet distance that was measured of exactly this, if it was."""
    for row in ladder.rows:
        card = row.card
        if (
            row.kind == "frechet"
            and (row.model == "distilled") == (cell.kind == "distilled")
            and card.sampler["name"] == cell.sampler
            and card.steps == cell.steps
            and card.clip == cell.clip
            and card.sampler.get("nu", 0.0) == cell.options.get("nu", 0.0)
        ):
            return row
    return None


def figure_text(row: Row) -> str:
    """A figure below a picture: "FD 163"; which features is said once beside them."""
    return f"{row.metric.partition('-')[0]} {row.value:.3g}"


def code(ladder: Ladder, cell: Cell) -> str:
    """Python that draws the cell with pdlab's public functions."""
    line, model = ladder.code(cell.student)
    options = f", {cell.sampler!r}" if cell.sampler != "ddim" else ""
    if not cell.clip:
        options += ", clip=False"
    if cell.kind == "ancestral":
        options += f", nu={cell.nu:g}, generator=torch.Generator().manual_seed({cell.page})"
    rows = f"[{cell.page * PAGE}:{(cell.page + 1) * PAGE}]"
    noises, imported = noise_code(ladder)
    imports = sorted(
        {line, imported, "from pdlab.data import to_uint8", "from pdlab.diffusion.samplers import sample"}
    )
    torch_line = "import torch\n\n" if "torch." in options else ""
    return (
        torch_line + "\n".join(imports) + f"\n\nnoise = {noises}{rows}\n"
        f"images = to_uint8(sample({model}, noise, {cell.steps}{options}))  # uint8 [16, C, H, W]\n"
    )


def noise_code(ladder: Ladder) -> tuple[str, str]:
    """The expression that gives the ladder's fixed noises, and its import."""
    line, expression = ladder.code(None)
    if line == "from pdlab import zoo":
        return expression.replace("zoo.load", "zoo.noise"), line
    return f"noise({ladder.shape}, 64, 0)", "from pdlab.metrics.evaluate import noise"
