"""Sampler bench: one model, one sampler, now, with every step's prediction and its time."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from pdlab.app import html, state
from pdlab.app.compute import Show
from pdlab.app.condition import TWICE, Condition
from pdlab.app.ladders import NOISES, PAGE, Shelf, ShownLadder, Which, synchronized
from pdlab.app.views.cells import noise_code
from pdlab.app.views.compare import PAGES
from pdlab.data import to_uint8
from pdlab.diffusion.samplers import SAMPLERS, nfe
from pdlab.distillation.guided import GUIDED
from pdlab.metrics.evaluate import noise

IMAGES = (1, 4, 16, 64)
MOST_STEPS, MOST_SEED = 256, 2**31 - 1
_STRIP, _FILM = 12, 4  # frames of the film strip, images in each
TEACHER = "teacher"


@dataclass(frozen=True)
class Sampling:
    """What is sampled; `steps` is the sampler's, `page` 0 takes the noise of `seed` instead of fixed ones."""

    model: str
    sampler: str
    steps: int
    nu: float
    page: int
    seed: int
    images: int
    condition: Condition

    @classmethod
    def of(cls, ladder: ShownLadder, given: Mapping[str, Any]) -> "Sampling":
        """From a link's or the controls' values, whatever they are."""
        default = str(4 if 4 in ladder.steps else ladder.steps[-1] if ladder.steps else TEACHER)
        model = state.one(given.get("model"), models(ladder), default)
        own = int(model) if model.isdecimal() else 8
        return cls(
            model=model,
            sampler=state.one(given.get("sampler"), tuple(SAMPLERS), "ddim"),
            steps=state.whole(given.get("steps"), 1, MOST_STEPS, own),
            nu=state.number(given.get("nu"), 0.0, 1.0, 0.0),
            page=state.whole(given.get("page"), 0, PAGES, 1),
            seed=state.whole(given.get("seed"), 0, MOST_SEED, 0),
            images=state.one(given.get("images"), IMAGES, 16),
            condition=Condition.of(ladder, given, ladder.takes(which(model))),
        )

    @property
    def which(self) -> Which:
        """The model that is sampled."""
        return which(self.model)

    @property
    def first(self) -> int:
        """The number of the first noise."""
        return max(self.page - 1, 0) * PAGE

    @property
    def each(self) -> int:
        """Network calls of a prediction: two of a guided model, unless its guidance was distilled."""
        return 2 if self.condition.guidance and self.which is None else 1


def which(model: str) -> Which:
    """The model that a choice of `models` names."""
    return int(model) if model.isdecimal() else None if model == TEACHER else model


def models(ladder: ShownLadder) -> tuple[str, ...]:
    """The models to choose from: the teacher, stage one where it is there, and every student."""
    return (TEACHER, *([GUIDED] if ladder.guided else []), *(str(steps) for steps in ladder.steps))


def start(ladder: ShownLadder, run: Sampling) -> Tensor:
    """The noise `[n, C, H, W]`: that of the seed, or fixed ones from the page on."""
    if run.page == 0:
        return noise(ladder.shape, run.images, run.seed)
    rolled = torch.cat([ladder.noise, ladder.noise])[run.first :]
    return rolled[: min(run.images, NOISES)]


def work(shelf: Shelf, ladder: ShownLadder, run: Sampling, show: Show) -> None:
    """Samples; shows (text, pictures, table) after every step."""
    show(("Loading the model …", "", ""))
    model = shelf.model(ladder, run.which)
    z = start(ladder, run).to(model.device)
    options = run.condition.arguments(ladder, run.first, run.images, model.device)
    if run.sampler == "ancestral":
        options |= {"nu": run.nu, "generator": torch.Generator(model.device).manual_seed(run.seed)}
    film: list[tuple[float, Tensor]] = []
    started = time.perf_counter()
    drawing = 0.0  # time spent on showing, which is not sampling's
    with torch.inference_mode():
        for k, step in enumerate(SAMPLERS[run.sampler](model, z, run.steps, **options)):
            synchronized(step.z)
            seconds = time.perf_counter() - started - drawing
            paused = time.perf_counter()
            film.append((step.t, to_uint8(step.prediction.x[:_FILM]).cpu()))
            last = k + 1 == run.steps
            state_now = to_uint8(step.z).cpu()
            show(
                (
                    progress(run, k + 1, seconds),
                    pictures(ladder, run, step.t, state_now, film, last),
                    latency(run, k + 1, seconds),
                )
            )
            drawing += time.perf_counter() - paused


def progress(run: Sampling, done: int, seconds: float) -> str:
    """One line: how far, how long."""
    verb = "Done" if done == run.steps else "Step"
    return f"{verb}: {done} of {run.steps}, {seconds:.2f} s"


def pictures(
    ladder: ShownLadder, run: Sampling, t: float, now: Tensor, film: list[tuple[float, Tensor]], last: bool
) -> Markup:
    """The state after this step, and every step's x̂ so far (of the first images; 12 steps at most)."""
    what = "The samples" if last else f"z at t = {t:.3f}"
    asked = run.condition.text(ladder)
    among = run.condition.among(ladder, run.first, run.images)
    side = html.picture(now, f"{what}: {len(now)} images{among} after {len(film)} of {run.steps} steps")
    every = range(len(film))
    if len(film) > _STRIP:
        every = [round(k * (len(film) - 1) / (_STRIP - 1)) for k in range(_STRIP)]  # type: ignore[assignment]
    frame = Markup("<figure>{}<figcaption>{}</figcaption></figure>")
    frames = (frame.format(html.picture(film[k][1], f"x̂ of step {k + 1}", 1), k + 1) for k in every)
    return Markup(
        '<div class="bench"><figure class="now">{side}<figcaption>{told} {badge}</figcaption></figure>'
        '<div><p class="how">x̂, what the model expects, step by step (first {n} images):</p>'
        '<div class="film">{frames}</div></div></div>'
    ).format(
        side=side,
        told=", ".join(filter(None, (f"{what} of {made_by(run)}", asked))),
        badge=html.source(True),
        n=len(film[0][1]),
        frames=Markup().join(frames),
    )


def made_by(run: Sampling) -> str:
    """The model, the sampler and its steps, in words."""
    model = f"the student of {html.steps_text(run.which)}" if isinstance(run.which, int) else f"the {run.model}"
    if run.which == GUIDED:
        model = "the teacher, its guidance distilled"
    return f"{model}, {run.sampler} in {html.steps_text(run.steps)}"


def latency(run: Sampling, done: int, seconds: float) -> Markup:
    """What it took so far, as a table."""
    calls = nfe(run.sampler, done, run.each)
    if run.sampler == "heun" and done < run.steps:  # only the last step does without its second prediction
        calls += run.each
    lines = [
        ("network calls", calls),
        ("seconds", f"{seconds:.3f}"),
        ("milliseconds a call", f"{1000 * seconds / calls:.1f}"),
        ("images a second, when done", f"{run.images * done / run.steps / seconds:.1f}" if seconds else ""),
    ]
    return html.table(
        ("", f"{run.images} image{'' if run.images == 1 else 's'}"), lines, "Latency on this machine, live"
    )


def warning(run: Sampling) -> str:
    """What to know of a choice: what it costs, and whether the student was made for it."""
    if run.which == GUIDED:
        return "Undistilled but for its guidance: any sampler and number of steps, one network call a prediction."
    if not isinstance(run.which, int):
        return TWICE if run.condition.guidance else ""
    if run.which == run.steps and run.sampler == "ddim":
        return ""
    own = html.steps_text(run.which)
    return f"This student was distilled for {own} of DDIM; anything else asks it for what it has not learned."


def code(ladder: ShownLadder, run: Sampling) -> str:
    """Python that draws the same images."""
    line, model = ladder.code(run.which)
    labels, condition = run.condition.code(ladder, run.first, run.images)
    options = "" if run.sampler == "ddim" else f", {run.sampler!r}"
    torch_line = "import torch\n\n" if labels else ""
    if run.sampler == "ancestral":
        options += f", nu={run.nu:g}, generator=torch.Generator().manual_seed({run.seed})"
        torch_line = "import torch\n\n"
    if run.page == 0:
        imported, noises = (
            "from pdlab.metrics.evaluate import noise",
            f"noise({ladder.shape}, {run.images}, {run.seed})",
        )
    else:
        first = run.first
        expression, imported = noise_code(ladder)
        noises = f"{expression}[{first}:{first + run.images}]"
        if first + run.images > NOISES:
            torch_line = "import torch\n\n"
            noises = f"torch.cat([{expression}] * 2)[{first}:{first + run.images}]"
    imports = sorted(
        {line, imported, "from pdlab.data import to_uint8", "from pdlab.diffusion.samplers import sample"}
    )
    return (
        torch_line + "\n".join(imports) + f"\n\nz = {noises}\n{labels}"
        f"images = to_uint8(sample({model}, z, {run.steps}{options}{condition}))\n"
    )
