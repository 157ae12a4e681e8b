"""What guidance buys and what it costs, as figures: in the plane exactly, for a ladder of images by a probe."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdlab import zoo
from pdlab.data.cifar10 import CLASSES
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.samplers import sample


class Tradeoff(NamedTuple):
    """Fidelity and variety of samples that were asked to be of certain classes.

    `agreement`: the share for which the asked class is the likeliest. `spread`: their root mean square distance
    from the middle of their class, relative to the class's own; the mean over classes. `beyond`: the share where
    the asked class is less dense than at 99 % of its own points.
    """

    agreement: float
    spread: float
    beyond: float


class PlaneRuler:
    """Measures labelled points against the mixture they should come from: `ruler(x [B, D], labels [B])`.

    Classes and spread are exact; the density that 1 % of a class's points lie below is taken of `n` draws.
    """

    def __init__(self, points: GaussianMixture, n: int = 50_000, seed: int = 0) -> None:
        self.points = points
        x, labels = points.labelled(n, torch.Generator().manual_seed(seed))
        assert labels is not None
        density = self._log_classes(x)
        self._edge = torch.stack([density[labels == c, c].quantile(0.01) for c in range(points.num_classes)])
        self._spread = torch.stack([self._own_spread(c) for c in range(points.num_classes)])

    def __call__(self, x: Tensor, labels: Tensor) -> Tradeoff:
        """The figures of `x` drawn for `labels`, every class of which occurs."""
        density = self._log_classes(x)
        asked = density[torch.arange(len(x)), labels]
        return Tradeoff(
            agreement=float((density[:, :-1].argmax(1) == labels).double().mean()),
            spread=float((class_spread(x, labels) / self._spread.to(x.dtype)).mean()),
            beyond=float((asked < self._edge[labels]).double().mean()),
        )

    def _log_classes(self, x: Tensor) -> Tensor:
        return self.points.log_classes(x, torch.full((len(x),), torch.inf, dtype=x.dtype))

    def _own_spread(self, label: int) -> Tensor:
        share = torch.softmax(self.points.log_weights.double() + self.points.log_member[label], 0)[:, None]
        means, stds = self.points.means.double(), self.points.stds.double()
        centre = (share * means).sum(0)
        return (share[:, 0] * ((means - centre).square().sum(1) + means.shape[1] * stds**2)).sum().sqrt()


def class_spread(x: Tensor, labels: Tensor) -> Tensor:
    """Root mean square distance `[C]` of every class's samples `[B, …]` from their middle."""
    parts = [x[labels == c].flatten(1) for c in range(int(labels.max()) + 1)]
    return torch.stack([(part - part.mean(0)).square().sum(1).mean().sqrt() for part in parts])


def linear_probe(features: Tensor, labels: Tensor, ridge: float = 0.5) -> Callable[[Tensor], Tensor]:
    """A classifier by least squares: standardised `features` `[N, F]` to classes `[N]`, `ridge` on the weights.

    So large a ridge does best where there are about as many features as images (0.79 of CIFAR-10's classes from
    1,000 images in EfficientNet's features, 0.59 with a ridge of 1e-3).
    """
    mean, scale = features.double().mean(0), features.double().std(0) + 1e-6

    def design(f: Tensor) -> Tensor:
        return torch.cat([(f.double() - mean) / scale, torch.ones(len(f), 1, dtype=torch.float64)], 1)

    a = design(features)
    goal = torch.nn.functional.one_hot(labels).double()
    weights = torch.linalg.solve(a.T @ a + ridge * len(a) * torch.eye(a.shape[1]).double(), a.T @ goal)
    return lambda f: (design(f) @ weights).argmax(1)


@dataclass(frozen=True)
class GuidedLadder:
    """A ladder with classes: a teacher that can be guided, and students that are told the weight.

    `students` by step count, the most steps first; `classes` are names.
    """

    name: str
    teacher: Denoiser
    students: dict[int, Denoiser]
    classes: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def guidance_max(self) -> float:
        """The largest weight that every student was made for."""
        return min(student.guidance_max for student in self.students.values())

    def draw(self, steps: int | None, noise: Tensor, labels: Tensor, guidance: float, teacher_steps: int) -> Tensor:
        """Samples of the student of `steps` steps; for None of the teacher: DDIM, `teacher_steps` steps."""
        if steps is None:
            return sample(self.teacher, noise, teacher_steps, labels=labels, guidance=guidance)
        return sample(self.students[steps], noise, labels=labels, guidance=guidance)


def guided_ladder(name: str, most_steps: int = 8) -> GuidedLadder | None:
    """Ladder `name` with its students of up to `most_steps`; None if it has no classes or was not guided."""
    made = zoo.manifest(name)
    teacher = zoo.load(name)
    counts = sorted((r["steps"] for r in made["rungs"] if r["steps"] and r["steps"] <= most_steps), reverse=True)
    students = {steps: zoo.load(name, steps) for steps in counts}
    if not teacher.null_class or not students or not all(s.guidance_max for s in students.values()):
        return None
    known = CLASSES if made["data"]["name"].startswith("cifar10") else tuple(map(str, range(teacher.num_classes)))
    return GuidedLadder(name, teacher, students, known[: teacher.num_classes], tuple(made["data"]["shape"]))
