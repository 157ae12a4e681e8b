"""What training costs, in network evaluations and FLOPs: the paper claims that distilling costs no more."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pdlab import memory
from pdlab.networks.mlp import MLPConfig
from pdlab.networks.unet import UNetConfig
from pdlab.training.checkpoint import Checkpoint, build_network, data_shape
from pdlab.training.presets import Optimization

Config = UNetConfig | MLPConfig


def _example(config: Config, output: str) -> tuple[nn.Module, tuple[Tensor | None, ...]]:
    """The network of `config` and what it is called with for one example, on the meta device."""
    with torch.device("meta"):
        network = build_network(config, output)
        z, logsnr = torch.zeros(1, *data_shape(config)), torch.zeros(1)
        labels = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
        guidance = torch.zeros(1) if config.guidance_max else None
    return network, (z, logsnr, labels, guidance)


@lru_cache
def forward_flops(config: Config, output: str) -> int:
    """FLOPs (2 per multiply-add) of one forward pass of one example."""
    network, example = _example(config, output)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*example)
    return counter.get_total_flops()


@lru_cache
def activations(config: Config, output: str) -> int:
    """Bytes that the forward pass of one example keeps for its backward."""
    network, example = _example(config, output)
    weights = {id(p) for p in network.parameters()}
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size() if id(tensor) not in weights and tensor.ndim > 1 else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*example)
    return kept


def check_memory(config: Config, output: str, settings: Optimization) -> None:
    """Raise PdlabError, with the number, where training would need more memory than is free."""
    elements = torch.Size(data_shape(config)).numel()
    memory.check(16 * elements * settings.batch, f"a batch of {settings.batch:,}", "take a smaller --batch")
    # Weights, gradients, two moments, and the moving average or the teacher.
    held = 5 * sum(4 * p.numel() for p in _example(config, output)[0].parameters())
    memory.check(held, "the network with its optimizer", "take a smaller network")
    what = f"training with a batch of {settings.batch:,}"
    memory.check(held + activations(config, output) * settings.batch, what, "take a smaller --batch or network")


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
    costs = {"teacher": total_cost(teachers), "distillation": total_cost(students)}
    report: dict[str, Any] = {name: asdict(cost) for name, cost in costs.items()}
    if teachers and students:
        report["distillation_over_teacher"] = {
            unit: getattr(costs["distillation"], unit) / max(getattr(costs["teacher"], unit), 1e-9)
            for unit in ("images", "flops", "seconds")
        }
    return report


def cost_line(teacher: Checkpoint, students: list[Checkpoint]) -> str:
    """The cost of a ladder beside its teacher's, in one line."""
    before, after = total_cost([teacher]), total_cost(students)
    return (
        f"cost: teacher {before.images:,} images, {before.flops:.2e} FLOPs, {before.seconds:.0f} s; "
        f"distillation {after.images:,} images, {after.flops:.2e} FLOPs, {after.seconds:.0f} s"
    )


def total_cost(checkpoints: list[Checkpoint]) -> Cost:
    """What `checkpoints` cost, the smaller networks that they grew from included."""
    infos = [c.info for c in checkpoints]
    parts = [info["cost"] for info in infos] + [
        info["grown_from"]["cost"] for info in infos if "grown_from" in info
    ]
    return sum((Cost(**part) for part in parts), Cost(0, 0, 0, 0.0, 0.0))
