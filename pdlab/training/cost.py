"""What training costs, in network evaluations and FLOPs: the paper claims that distilling costs no more."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pdlab.networks.mlp import MLPConfig
from pdlab.networks.unet import UNetConfig
from pdlab.training.checkpoint import Checkpoint, build_network, data_shape
from pdlab.training.presets import Optimization


@lru_cache
def forward_flops(config: UNetConfig | MLPConfig, output: str) -> int:
    """FLOPs (2 per multiply-add) of one forward pass of one example; counted on the meta device."""
    with torch.device("meta"):
        network = build_network(config, output)
        z, logsnr = torch.zeros(1, *data_shape(config)), torch.zeros(1)
        labels = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
        guidance = torch.zeros(1) if config.guidance_max else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(z, logsnr, labels, guidance)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Cost:
    """Cost of a stage: examples seen, network evaluations (a backward counts as two forwards in FLOPs), time."""

    images: int
    forward_evaluations: int
    backward_evaluations: int
    flops: float
    seconds: float

    @staticmethod
    def of(settings: Optimization, flops: int, teacher_forwards: int, seconds: float) -> "Cost":
        """Cost of `settings.updates` updates; `teacher_forwards` an example: 0 for a teacher, 2 for a round."""
        images = settings.updates * settings.batch
        forward = images * (1 + teacher_forwards)
        return Cost(images, forward, images, float(flops) * (forward + 2 * images), seconds)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.images + other.images,
            self.forward_evaluations + other.forward_evaluations,
            self.backward_evaluations + other.backward_evaluations,
            self.flops + other.flops,
            self.seconds + other.seconds,
        )


def cost_report(teachers: list[Checkpoint], students: list[Checkpoint]) -> dict[str, Any]:
    """What the teachers cost, what the rounds cost, and the ratios that the paper makes a claim about."""
    costs = {"teacher": _total(teachers), "distillation": _total(students)}
    report: dict[str, Any] = {name: asdict(cost) for name, cost in costs.items()}
    if teachers and students:
        report["distillation_over_teacher"] = {
            unit: getattr(costs["distillation"], unit) / max(getattr(costs["teacher"], unit), 1e-9)
            for unit in ("images", "flops", "seconds")
        }
    return report


def cost_line(teacher: Checkpoint, students: list[Checkpoint]) -> str:
    """The cost of a ladder beside its teacher's, in one line."""
    before, after = _total([teacher]), _total(students)
    return (
        f"cost: teacher {before.images:,} images, {before.flops:.2e} FLOPs, {before.seconds:.0f} s; "
        f"distillation {after.images:,} images, {after.flops:.2e} FLOPs, {after.seconds:.0f} s"
    )


def _total(checkpoints: list[Checkpoint]) -> Cost:
    return sum((Cost(**c.info["cost"]) for c in checkpoints), Cost(0, 0, 0, 0.0, 0.0))
