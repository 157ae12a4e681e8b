"""2-D lab: distributions whose ideal denoiser is known, a teacher trained on the spot, and round after round."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from markupsafe import Markup
from torch import Generator, Tensor

from pdlab.app import chart, html, state
from pdlab.app.compute import Show
from pdlab.data.toys import TOYS
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.samplers import ddim, sample
from pdlab.diffusion.weighting import WEIGHTINGS
from pdlab.distillation.ledger import length, measure_ledger
from pdlab.distillation.rounds import Ladder, check_halvable, round_settings
from pdlab.errors import PdlabError
from pdlab.metrics.kernel import mmd2_unbiased, rbf_kernel
from pdlab.teaching import lab
from pdlab.training.loop import fit
from pdlab.training.machine import Machine
from pdlab.training.objective import DiffusionObjective
from pdlab.training.presets import Optimization

OWN = "own points"
DISTRIBUTIONS = ("five clouds", "ring of eight", "moons", "spiral", "checkerboard", OWN)
OUTPUTS = ("v", "x", "both", "eps")
FIRST = (4, 8, 16, 32)
MOST_POINTS, REACH = 40, 2.6
TEACHING = Optimization(updates=1200, batch=256, lr=4e-3, warmup=50, anneal=True, ema=0.99)
ROUND = Optimization(updates=300, batch=256, lr=2e-3, anneal=True)
_TOYS = {"ring of eight": "gaussians", "moons": "moons", "spiral": "spiral", "checkerboard": "checkerboard"}
_PATHS, _CLOUD, _EVERY = 16, 400, 0.4


@dataclass(frozen=True)
class Spec:
    """What is learned, and how: `first` is the number of steps that the teacher is read at."""

    distribution: str
    points: tuple[tuple[float, float], ...]
    output: str
    weighting: str
    first: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Spec":
        """From a link's or the controls' values, whatever they are."""
        return cls(
            distribution=state.one(given.get("distribution"), DISTRIBUTIONS, DISTRIBUTIONS[0]),
            points=parse_points(given.get("points")),
            output=state.one(given.get("output"), OUTPUTS, "v"),
            weighting=state.one(given.get("weighting"), tuple(WEIGHTINGS), "truncated"),
            first=state.one(given.get("first"), FIRST, 16),
        )

    def mixture(self) -> GaussianMixture:
        """The distribution: a Gaussian mixture, so that its ideal denoiser is known in closed form."""
        if self.distribution == "five clouds":
            return lab.mixture()
        if self.distribution == OWN:
            if len(self.points) < 2:
                raise PdlabError("draw at least 2 points: click into the picture, or write them as x y; x y")
            return GaussianMixture(torch.tensor(self.points), torch.full((len(self.points),), 0.1))
        centres = TOYS[_TOYS[self.distribution]](256, Generator().manual_seed(0))
        return GaussianMixture(centres, torch.full((256,), 0.1))


@dataclass
class Session:
    """What one visitor has trained so far."""

    spec: Spec
    teacher: Denoiser
    students: list[Denoiser] = field(default_factory=list)

    @property
    def next_steps(self) -> int:
        """The steps of the next student; 0 when the last has one step."""
        return (self.students[-1].steps or 0) // 2 if self.students else self.spec.first // 2


def why_not(session: Session | None, spec: Spec) -> str:
    """Why there is no next round for the controls as they are; empty if there is."""
    if session is None:
        return "There is no teacher yet: press Train a teacher."
    changed = [name for name in ("distribution", "output", "weighting") if _differ(session.spec, spec, name)]
    if session.spec.distribution == spec.distribution == OWN and _differ(session.spec, spec, "points"):
        changed.append("points")
    if not session.students and _differ(session.spec, spec, "first"):
        changed.append("number of steps")
    if not changed:
        return ""
    return f"The teacher was trained with another {' and '.join(changed)}: press Train a teacher, or go back to it."


def _differ(one: Spec, other: Spec, name: str) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def parse_points(value: object) -> tuple[tuple[float, float], ...]:
    """Points written as "x y; x y", each brought into the picture; what is no point is left out."""
    found = []
    for part in str(value or "").split(";")[:MOST_POINTS]:
        numbers = part.replace(",", " ").split()
        if len(numbers) == 2:
            x, y = (state.number(text, -REACH, REACH, float("nan")) for text in numbers)
            if x == x and y == y:
                found.append((round(x, 2), round(y, 2)))
    return tuple(found)


def points_text(points: tuple[tuple[float, float], ...]) -> str:
    """The inverse of `parse_points`."""
    return "; ".join(f"{x:g} {y:g}" for x, y in points)


def preview(spec: Spec) -> Markup:
    """The distribution before anything is trained, and where the perfect denoiser takes noises in few steps."""
    try:
        mixture = spec.mixture()
    except PdlabError as error:
        own = torch.tensor(spec.points).reshape(-1, 2)
        return html.note(str(error)) + Markup(chart.plane({"your points": (own, 0)}, {}, "Your points", REACH))
    return picture(mixture, spec, None, [])


def teach(spec: Spec, show: Show, keep: Callable[[Session], None]) -> None:
    """Train a teacher; shows (text, picture, tables) on the way, and hands `keep` the session at the end."""
    mixture = spec.mixture()
    denoiser = lab.new_network(spec.output, 0)
    with _one_thread():
        with _watched(
            mixture, TEACHING.updates, "Teacher", show, lambda: picture(mixture, spec, denoiser, [])
        ) as source:
            machine = Machine("cpu", "fp32")
            trained = fit(denoiser, DiffusionObjective(spec.weighting), source, TEACHING, machine, seed=0)
        denoiser.network.load_state_dict(trained.weights)
        session = Session(spec, denoiser.requires_grad_(False))
        keep(session)
        show((f"The teacher is trained. Next: distil it to {session.next_steps} steps.", *result(session)))


def halve(session: Session, show: Show) -> None:
    """One round; shows (text, picture, tables) on the way. The student joins the session at the end."""
    steps, spec, mixture = session.next_steps, session.spec, session.spec.mixture()
    if steps < 1:
        raise PdlabError("the last student has 1 step already: train another teacher to begin anew")
    settings = round_settings(ROUND, steps)
    with _one_thread():
        before = session.students[-1] if session.students else session.teacher
        check_halvable(before)
        held: list[Ladder] = []

        def now() -> str:
            student = [held[0].student] if held else []
            return picture(mixture, spec, session.teacher, [*session.students, *student])

        with _watched(mixture, settings.updates, f"Student of {html.steps_text(steps)}", show, now) as source:
            held.append(Ladder(before, source, Machine("cpu", "fp32"), weighting=spec.weighting))
            held[0].descend(steps, settings)
        session.students.append(held[0].student.eval().requires_grad_(False))
        after = f"Next: {session.next_steps}." if session.next_steps else "That was the last halving."
        show((f"The student of {html.steps_text(steps)} is trained. {after}", *result(session)))


def result(session: Session) -> tuple[str, str]:
    """The picture, and the tables of distances and of the ledger."""
    mixture = session.spec.mixture()
    drawn = picture(mixture, session.spec, session.teacher, session.students)
    return drawn, distances(session) + (ledger(session) if session.students else "")


def picture(mixture: GaussianMixture, spec: Spec, teacher: Denoiser | None, students: list[Denoiser]) -> Markup:
    """The data, and the paths from the same noises: of the perfect denoiser, the teacher, the newest student."""
    data = mixture.sample(_CLOUD, Generator().manual_seed(1))
    z = torch.randn(_PATHS, 2, generator=Generator().manual_seed(2))
    paths = {f"perfect denoiser, {spec.first} steps": (path(mixture.denoiser(), z, spec.first), 2)}
    if teacher is not None:
        paths[f"teacher, {spec.first} steps"] = (path(teacher, z, spec.first), 1)
    if students:
        steps = students[-1].steps or 1
        paths[f"student, {html.steps_text(steps)}"] = (path(students[-1], z, steps), 0)
    title = f"{spec.distribution}: paths of {_PATHS} noises to the data"
    origin = "" if teacher is None else html.source(True)
    return Markup(chart.plane({"data": (data, -1)}, paths, title, REACH)) + origin


@torch.no_grad()
def path(denoiser: Denoiser, z: Tensor, steps: int) -> Tensor:
    """The states `[steps + 1, n, 2]` of DDIM from noises `z`."""
    return torch.stack([z, *(step.z for step in ddim(denoiser, z, steps))])


def distances(session: Session, n: int = 1000) -> Markup:
    """MMD² to fresh data of everything trained so far, and of the data to themselves (the floor)."""
    spec, mixture = session.spec, session.spec.mixture()
    data = mixture.sample(n, Generator().manual_seed(3))
    z = torch.randn(n, 2, generator=Generator().manual_seed(4))
    exact = mixture.denoiser()
    made = {
        "data against data (floor)": ("", mixture.sample(n, Generator().manual_seed(5))),
        "perfect denoiser": (spec.first, sample(exact, z, spec.first)),
        "teacher": (spec.first, sample(session.teacher, z, spec.first)),
    }
    for student in session.students:
        made[f"student of {html.steps_text(student.steps or 1)}"] = (student.steps, sample(student, z))
    if session.students:
        steps = session.students[-1].steps or 1
        made["teacher in as few steps"] = (steps, sample(session.teacher, z, steps))
    kernel = rbf_kernel(0.5)
    lines = [(name, steps, f"{mmd2_unbiased(points, data, kernel):.2e}") for name, (steps, points) in made.items()]
    return html.table(
        ("points of", "steps", "MMD²"), lines, f"MMD² to {n:,} points of the data; Gaussian kernel, 0.5 wide"
    )


def ledger(session: Session) -> Markup:
    """Whose error is it: the terms that lead from the exact end to the last student's, averaged over noises."""
    z = torch.randn(256, 2, generator=Generator().manual_seed(6))
    found = measure_ledger(session.teacher, session.students, z, session.spec.mixture().denoiser(), flow_steps=128)
    lines = [(name, f"{float(values.mean()):.3f}") for name, values in found.lengths.items()]
    lines.append(("all together", f"{float(length(found.total).mean()):.3f}"))
    return html.table(
        ("error made by", "mean length"), lines, "The ledger, over 256 noises; the terms are vectors and may cancel"
    )


def code(spec: Spec) -> str:
    """Python that trains the same teacher and all its students."""
    if spec.distribution == "five clouds":
        imports, mixture = [], "lab.mixture()"
    elif spec.distribution == OWN:
        imports = ["import torch", "from pdlab.diffusion.mixture import GaussianMixture"]
        mixture = f"GaussianMixture(torch.tensor({list(spec.points)}), torch.full(({len(spec.points)},), 0.1))"
    else:
        name = _TOYS[spec.distribution]
        imports = [
            "import torch",
            "from pdlab.data.toys import TOYS",
            "from pdlab.diffusion.mixture import GaussianMixture",
        ]
        mixture = f"GaussianMixture(TOYS[{name!r}](256, torch.Generator().manual_seed(0)), torch.full((256,), 0.1))"
    imports += [
        "from pdlab.distillation.rounds import Ladder, ladder, round_settings",
        "from pdlab.teaching import lab",
        "from pdlab.training.loop import fit",
        "from pdlab.training.machine import Machine",
        "from pdlab.training.objective import DiffusionObjective",
        "from pdlab.training.presets import Optimization",
    ]
    t, r = TEACHING, ROUND
    return (
        "\n".join(imports) + f"\n\nsource, machine = lab.MixtureSource({mixture}), Machine('cpu', 'fp32')\n"
        f"teacher = lab.new_network({spec.output!r}, 0)\n"
        f"settings = Optimization({t.updates}, batch={t.batch}, lr={t.lr}, warmup={t.warmup}, anneal=True, "
        f"ema={t.ema})\n"
        f"trained = fit(teacher, DiffusionObjective({spec.weighting!r}), source, settings, machine, seed=0)\n"
        "teacher.network.load_state_dict(trained.weights)\n"
        f"rounds = Ladder(teacher, source, machine, weighting={spec.weighting!r})\n"
        f"settings = Optimization({r.updates}, batch={r.batch}, lr={r.lr}, anneal=True)\n"
        f"for steps in ladder({spec.first}):\n"
        "    rounds.descend(steps, round_settings(settings, steps))\n"
        "    print(steps, 'steps')\n"
        "    rounds.promote()\n"
    )


class _Watched(lab.MixtureSource):
    """A source that reports every draw: one draw is one update."""

    look: Callable[[], None]

    def draw(self, n: int, generator: Generator, flip: bool = False) -> tuple[Tensor, Tensor | None]:
        """See MixtureSource."""
        self.look()
        return super().draw(n, generator, flip)


@contextmanager
def _watched(
    mixture: GaussianMixture, updates: int, name: str, show: Show, now: Callable[[], str]
) -> Iterator[_Watched]:
    """A source of `mixture` that shows how training goes on, and at which it can be stopped."""
    source = _Watched(mixture)
    done, seen = 0, time.monotonic()

    def look() -> None:
        nonlocal done, seen
        show(None)
        if time.monotonic() - seen > _EVERY:
            show((f"{name}: update {done} of {updates} …", now(), ""))
            seen = time.monotonic()
        done += 1

    source.look = look
    yield source


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network is far slower on two
    try:
        yield
    finally:
        torch.set_num_threads(threads)
