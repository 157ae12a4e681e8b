"""What guidance buys and what it costs: in the plane exactly, for a ladder of images as its report has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdlab import zoo
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.samplers import sample
from pdlab.metrics.card import Kind, Row, by_sampler


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
    """Root mean square distance `[C]` of every class's samples `[B, D]` from their middle."""
    parts = [x[labels == c] for c in range(int(labels.max()) + 1)]
    return torch.stack([(part - part.mean(0)).square().sum(1).mean().sqrt() for part in parts])


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
    return GuidedLadder(name, teacher, students, tuple(zoo.classes(name)), tuple(made["data"]["shape"]))


def measured_shares(name: str, steps: Sequence[int]) -> dict[str, dict[float, Row]]:
    """Agreement and recall in the report of ladder `name`: `["recall, 4 steps"][w]`, for those that were measured.

    Of the students of `steps` steps, and of the teacher with the most evaluations: by DDIM, or by DPM-Solver++
    where only that was measured at every weight.
    """
    report = zoo.report(name)
    weights = sorted({Row.from_dict(row).card.guidance for row in report["rows"]})
    lines: dict[str, dict[float, Row]] = {}
    kinds: tuple[Kind, ...] = ("agreement", "recall")
    for kind in kinds:
        measured = {w: by_sampler(report, w, kind) for w in weights}
        everywhere = [s for s in ("ddim", "dpm-solver++") if all(s in rows for rows in measured.values())]
        for w, rows in measured.items():
            if everywhere:
                undistilled = rows[everywhere[0]]
                lines.setdefault(f"{kind}, teacher", {})[w] = undistilled[max(undistilled)]
            for n in steps:
                if n in rows.get("distilled", {}):
                    label = f"{kind}, {n} step{'s' if n > 1 else ''}"
                    lines.setdefault(label, {})[w] = rows["distilled"][n]
    return lines
