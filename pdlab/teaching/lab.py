"""The 2-D lab of the notebooks: a mixture whose denoiser is known, small networks, and ways to break a round.

Everything here runs in seconds on one thread. The method itself is `pdlab.distillation`; a `Recipe` names one
departure from it, and the recipe without any gives the very students that `pdlab.distillation.rounds` gives.
"""

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pdlab.data.source import Source
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.prediction import Prediction, from_x
from pdlab.diffusion.samplers import ddim_step
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.distillation.rounds import Ladder, RoundObjective, ladder, round_settings
from pdlab.networks.mlp import MLPConfig
from pdlab.networks.registry import build, conditioning, config_of
from pdlab.seeds import seed_for
from pdlab.training.loop import fit
from pdlab.training.machine import Machine
from pdlab.training.objective import TIMES, DiffusionObjective
from pdlab.training.presets import Optimization

NETWORK = MLPConfig(shape=(2,), width=64, blocks=2, embedding_channels=32)


def mixture() -> GaussianMixture:
    """Five clouds in the plane, unequal in weight and width; variance about 1 a coordinate."""
    means = torch.tensor([[1.3, 0.7], [-0.5, 1.2], [-1.3, -0.4], [0.1, -0.2], [0.8, -1.3]])
    return GaussianMixture(
        means, torch.tensor([0.12, 0.2, 0.12, 0.08, 0.15]), torch.tensor([0.25, 0.2, 0.2, 0.1, 0.25])
    )


def mixture_of_classes() -> GaussianMixture:
    """Three classes of two clouds each, which overlap near the middle; variance about 1 a coordinate."""
    means = torch.tensor([[0.2, 1.6], [0.2, 0.4], [-1.6, -0.4], [-0.4, -0.2], [1.3, -1.4], [0.5, -0.5]])
    return GaussianMixture(means, torch.full((6,), 0.45), classes=torch.tensor([0, 0, 1, 1, 2, 2]))


@dataclass(eq=False)
class MixtureSource(Source):
    """Fresh points `[n, 2]` of a Gaussian mixture, for training, with their classes where it has any."""

    points: GaussianMixture
    name: str = "mixture"
    split: str = "train"
    shape: tuple[int, ...] = (2,)
    num_classes: int = dataclasses.field(init=False)
    bounded: bool = False
    digest: str = "mixture"

    def __post_init__(self) -> None:
        self.num_classes = self.points.num_classes

    def to(self, device: torch.device | str) -> "MixtureSource":
        """Itself: the lab stays on the CPU."""
        return self

    def draw(self, n: int, generator: Generator, flip: bool = False) -> tuple[Tensor, Tensor | None]:
        """`n` points and their classes (None without)."""
        return self.points.labelled(n, generator)


def new_network(output: str, seed: int, schedule: CosineSchedule | None = None) -> Denoiser:
    """An untrained MLP denoiser of points; the same seed gives every output the same first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "lab"))
        return Denoiser(build(NETWORK, output), output, schedule, bounded=False, shape=NETWORK.shape)


def new_guided_student(num_classes: int, guidance_max: float, seed: int = 0) -> Denoiser:
    """An untrained MLP denoiser of points (v) that is told a class and a guidance weight."""
    config = MLPConfig((2,), 1, 96, 3, 64, num_classes=num_classes, guidance_max=guidance_max)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "lab"))
        return Denoiser(build(config, "v"), "v", bounded=False, **conditioning(config))


def train_teacher(
    output: str = "v",
    weighting: str = "truncated",
    updates: int = 1500,
    seed: int = 0,
    schedule: CosineSchedule | None = None,
) -> Denoiser:
    """A network trained on `mixture()`, with the moving average of its weights; about 3 ms an update."""
    denoiser = new_network(output, seed, schedule)
    settings = Optimization(updates, batch=256, lr=4e-3, warmup=min(50, updates), anneal=True, ema=0.99)
    source = MixtureSource(mixture())
    trained = fit(denoiser, DiffusionObjective(weighting), source, settings, Machine("cpu", "fp32"), seed=seed)
    denoiser.network.load_state_dict(trained.weights)
    return denoiser


class SwappedObjective(RoundObjective):
    """The teacher goes t -> t'' -> t', and where it ends is taken for z_t''."""

    def target(self, z: Tensor, times: list[Tensor], labels: Tensor | None, guidance: Tensor | None) -> Prediction:
        """See RoundObjective: the published quotient with the wrong z_t''."""
        schedule = self.teacher.schedule
        t, mid, end = (per_example(time, z) for time in times)
        # The bounded schedule's sigma(0) is not 0: asked at t = 0, the sampler returns x instead.
        start, turn = times[0], times[2].clamp(min=1e-3)
        with torch.no_grad():
            first = self.teacher(z, start, labels, guidance)
            there = torch.where(end == 0, first.x, ddim_step(schedule, z, t, end, first))
            back = ddim_step(schedule, there, end, mid, self.teacher(there, turn, labels, guidance))
            ratio = torch.where(end == 0, 0.0, schedule.sigma(end)) / schedule.sigma(t)
            alpha_end = torch.where(end == 0, 1.0, schedule.alpha(end))
            x = (back - ratio * z) / (alpha_end - ratio * schedule.alpha(t))
        return from_x(z, schedule.alpha(t), schedule.sigma(t), x)


class OffGridObjective(RoundObjective):
    """The student is taught at any t ~ U(0, 1], not only where it will be asked."""

    def times(self, n: int, generator: Generator, device: torch.device) -> list[Tensor]:
        """See RoundObjective."""
        t = TIMES[self.drawn_as](n, generator, device)
        end = (t - 1 / self.steps).clamp(min=0)
        return [torch.lerp(t, end, k / self.hops) for k in range(self.hops + 1)]


@dataclass(frozen=True)
class Recipe:
    """How a student is taught. The defaults are the method's; each field is one way to break it.

    `output`: of teacher and student. `from_teacher`: the student starts from the teacher's weights. `objective`:
    what a round minimises. `weighting`: "snr" takes the floor away. `effort`: the share of the updates that is
    done. `jump`: one round to the last student instead of halving.
    """

    output: str = "v"
    from_teacher: bool = True
    objective: type[RoundObjective] = RoundObjective
    weighting: str = "truncated"
    effort: float = 1.0
    jump: bool = False


RECIPES = {
    "as published": Recipe(),
    "ε student": Recipe(output="eps"),
    "not initialised from the teacher": Recipe(from_teacher=False),
    "midpoint swapped": Recipe(objective=SwappedObjective),
    "t off the grid": Recipe(objective=OffGridObjective),
    "no SNR floor": Recipe(weighting="snr"),
    "a tenth of the updates": Recipe(effort=0.1),
    "one jump": Recipe(jump=True),
}


def distil(
    recipe: Recipe,
    teacher: Denoiser,
    source: Source,
    settings: Optimization,
    first: int,
    last: int = 1,
    seed: int = 0,
) -> dict[int, Denoiser]:
    """The students by step count that `recipe` makes of `teacher`, read at `first` steps.

    `settings` are of one halving; those to 2 and to 1 step take twice the updates, and one jump as many as all
    halvings together, so that recipes but for `effort` do the same number of updates.
    """
    plan = {steps: round_settings(settings, steps).updates for steps in ladder(first, last)}
    if recipe.jump:
        plan = {last: sum(plan.values())}
    rounds = Ladder(
        teacher,
        source,
        Machine("cpu", "fp32"),
        weighting=recipe.weighting,
        hops=first // last if recipe.jump else 2,
        objective=recipe.objective,
    )
    students: dict[int, Denoiser] = {}
    for steps, updates in plan.items():
        optimization = dataclasses.replace(settings, updates=max(1, round(recipe.effort * updates)))
        start = None if recipe.from_teacher else _untrained(teacher, seed + 1 + steps)
        rounds.descend(steps, optimization, seed=seed, start=start)
        students[steps] = copy.deepcopy(rounds.student).requires_grad_(False)
        rounds.promote()
    return students


def _untrained(denoiser: Denoiser, seed: int) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "lab student"))
        return denoiser.around(build(config_of(denoiser), denoiser.output))
