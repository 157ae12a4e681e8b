"""The 2-D lab of the notebooks: a mixture whose denoiser is known, small networks, and ways to break a round.

Everything here runs in seconds on one thread. The method itself is `pdlab.distillation`; a `Recipe` names one
departure from it, and the recipe without any gives the very students that `pdlab.distillation.rounds` gives.
"""

import dataclasses
import itertools
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pdlab.data.source import Source
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.prediction import from_x
from pdlab.diffusion.samplers import ddim_step
from pdlab.diffusion.schedule import CosineSchedule, per_example
from pdlab.diffusion.weighting import WEIGHTINGS
from pdlab.distillation.rounds import ladder, round_settings
from pdlab.distillation.target import student_target
from pdlab.networks.mlp import MLPConfig
from pdlab.seeds import seed_for
from pdlab.training.checkpoint import build_network, conditioning
from pdlab.training.loop import fit
from pdlab.training.machine import Machine
from pdlab.training.objective import DiffusionObjective, stratified_times
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
        return Denoiser(build_network(NETWORK, output), output, schedule, bounded=False)


def new_guided_student(num_classes: int, guidance_max: float, seed: int = 0) -> Denoiser:
    """An untrained MLP denoiser of points (v) that is told a class and a guidance weight."""
    config = MLPConfig((2,), 1, 96, 3, 64, num_classes=num_classes, guidance_max=guidance_max)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "lab"))
        return Denoiser(build_network(config, "v"), "v", bounded=False, **conditioning(config))


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


@dataclass(frozen=True)
class Recipe:
    """How a student is taught. The defaults are the method's; each field is one way to break it.

    `output`: of teacher and student. `from_teacher`: the student starts from the teacher's weights. `swapped`: the
    teacher visits t'' before t'. `on_grid`: t = i/N, else t ~ U(0, 1]. `weighting`: "snr" takes the floor away.
    `effort`: the share of the updates that is done. `jump`: one round to the last student instead of halving.
    """

    output: str = "v"
    from_teacher: bool = True
    swapped: bool = False
    on_grid: bool = True
    weighting: str = "truncated"
    effort: float = 1.0
    jump: bool = False


RECIPES = {
    "as published": Recipe(),
    "ε student": Recipe(output="eps"),
    "not initialised from the teacher": Recipe(from_teacher=False),
    "midpoint swapped": Recipe(swapped=True),
    "t off the grid": Recipe(on_grid=False),
    "no SNR floor": Recipe(weighting="snr"),
    "a tenth of the updates": Recipe(effort=0.1),
    "one jump": Recipe(jump=True),
}


def hops_target(
    teacher: Denoiser, z: Tensor, t: Tensor, span: float, hops: int, *, swapped: bool = False
) -> Tensor:
    """x̃ `[B, …]` of one student step from `t` `[B]` to max(t − `span`, 0), the teacher taking `hops` steps for it.

    With 2 hops on the grid this is `pdlab.distillation.target.student_target`, solved in the published form. With
    `swapped` the teacher goes t -> t'' -> t', and where it ends is taken for z_t''.
    """
    schedule = teacher.schedule
    end = (t - span).clamp(min=0)
    times = [torch.lerp(t, end, k / hops) for k in range(hops + 1)]
    if swapped:
        times[1], times[-1] = times[-1], times[1]
    with torch.no_grad():
        here = z
        for a, b in itertools.pairwise(times):
            # The bounded schedule's sigma(0) is not 0: asked at t = 0, the sampler returns x instead.
            prediction = teacher(here, a.clamp(min=1e-3))
            step = ddim_step(schedule, here, per_example(a, z), per_example(b, z), prediction)
            here = torch.where(per_example(b, z) == 0, prediction.x, step)
        sigma_end = torch.where(end == 0, 0.0, schedule.sigma(end))
        alpha_end = torch.where(end == 0, 1.0, schedule.alpha(end))
        ratio = per_example(sigma_end / schedule.sigma(t), z)
        return (here - ratio * z) / (per_example(alpha_end, z) - ratio * per_example(schedule.alpha(t), z))


class RecipeObjective:
    """The loss of a student of `steps` steps by a recipe; `hops` teacher steps to one of the student's."""

    def __init__(self, teacher: Denoiser, steps: int, recipe: Recipe, hops: int = 2) -> None:
        self.teacher, self.steps, self.recipe, self.hops = teacher, steps, recipe, hops
        self.weighting = WEIGHTINGS[recipe.weighting]

    def __call__(self, denoiser: Denoiser, x: Tensor, labels: Tensor | None, generator: Generator) -> Tensor:
        """Losses `[B]` for data `x` `[B, …]`."""
        t = stratified_times(len(x), generator, x.device)
        i = torch.ceil(t * self.steps)
        if self.recipe.on_grid:
            t = i / self.steps
        eps = torch.randn(x.shape, generator=generator, device=x.device)
        alpha, sigma = per_example(denoiser.schedule.alpha(t), x), per_example(denoiser.schedule.sigma(t), x)
        z = alpha * x + sigma * eps
        if self.recipe.on_grid and not self.recipe.swapped and self.hops == 2:
            target = student_target(self.teacher, z, i, self.steps).prediction
        else:
            x_target = hops_target(self.teacher, z, t, 1 / self.steps, self.hops, swapped=self.recipe.swapped)
            target = from_x(z, alpha, sigma, x_target)
        return self.weighting.loss(target, denoiser(z, t))


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
    plan = [(steps, round_settings(settings, steps), 2) for steps in ladder(first, last)]
    if recipe.jump:
        total = sum(optimization.updates for _, optimization, _ in plan)
        plan = [(last, dataclasses.replace(settings, updates=total), first // last)]
    students: dict[int, Denoiser] = {}
    machine, before = Machine("cpu", "fp32"), teacher
    for steps, optimization, hops in plan:
        updates = max(1, round(recipe.effort * optimization.updates))
        student = _copy(before, steps, seed if recipe.from_teacher else seed + 1 + steps, recipe.from_teacher)
        objective = RecipeObjective(before, steps, recipe, hops)
        optimization = dataclasses.replace(optimization, updates=updates)
        fit(student, objective, source, optimization, machine, stage=f"student-{steps:04d}", seed=seed)
        students[steps] = before = student.requires_grad_(False)
    return students


def _copy(teacher: Denoiser, steps: int, seed: int, keep_weights: bool) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "lab student"))
        network = build_network(teacher.network.config, teacher.output)  # type: ignore[arg-type]
    if keep_weights:
        network.load_state_dict(teacher.network.state_dict())
    student = teacher.around(network)
    student.steps = steps
    return student
