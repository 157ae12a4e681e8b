"""What training costs, in network evaluations and FLOPs: the paper claims that distilling costs no more."""

import copy
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pdlab import memory
from pdlab.diffusion.denoiser import Denoiser
from pdlab.networks.registry import Own, build, conditioning, config_of
from pdlab.training.checkpoint import Checkpoint
from pdlab.training.presets import Optimization


class Size(NamedTuple):
    """Of a network: FLOPs (2 a multiply-add) of one forward pass of one example, and bytes.

    `activations` are what that pass keeps for its backward, `weights` those of the parameters in float32.
    """

    flops: int
    activations: int
    weights: int


@lru_cache
def size(config: Any, output: str) -> Size:
    """The size of a registered network, found without memory."""
    with torch.device("meta"):
        return _size(build(config, output), config)


def size_of(denoiser: Denoiser, as_it_is: bool = False) -> Size:
    """The size of `denoiser`'s network; one's own, or one that is to be measured `as_it_is`, is run once for it."""
    config = config_of(denoiser)
    if not isinstance(config, Own) and not as_it_is:
        return size(config, denoiser.output)
    network = copy.deepcopy(denoiser.network).eval()
    with torch.device(denoiser.device):
        return _size(network, config)


def _size(network: nn.Module, config: Any) -> Size:
    """Run `network` on an example of zeros on the default device."""
    taken = conditioning(config)
    example: list[Tensor] = [torch.zeros(1, *config.shape), torch.zeros(1)]
    if taken["num_classes"]:
        example.append(torch.zeros(1, dtype=torch.int64))
    if taken["condition"]:
        example.append(torch.zeros(1, *taken["condition"]))
    if taken["guidance_max"]:
        example.append(torch.zeros(1))
    weights = {id(p) for p in network.parameters()}
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size() if id(tensor) not in weights and tensor.ndim > 1 else 0
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        network(*example)
    return Size(counter.get_total_flops(), kept, sum(4 * p.numel() for p in network.parameters()))


def check_memory(size: Size, shape: tuple[int, ...], settings: Optimization) -> None:
    """Raise PdlabError, with the number, where training on examples of `shape` needs more memory than is free."""
    elements = torch.Size(shape).numel()
    memory.check(16 * elements * settings.batch, f"a batch of {settings.batch:,}", "take a smaller --batch")
    held = 5 * size.weights  # with gradients, two moments, and the moving average or the teacher
    memory.check(held, "the network with its optimizer", "take a smaller network")
    what = f"training with a batch of {settings.batch:,}"
    at_once = min(settings.batch, settings.micro_batch or settings.batch)
    needed = held + size.activations * at_once
    memory.check(needed, what, "give --micro-batch, or take a smaller --batch or network")


@dataclass(frozen=True)
class Cost:
    """Cost of a stage: examples seen, network evaluations (a backward counts as two forwards in FLOPs), time."""

    images: int
    forward_evaluations: int
    backward_evaluations: int
    flops: float
    seconds: float

    @staticmethod
    def of(
        settings: Optimization, flops: int, teacher_forwards: int, seconds: float, student: int | None = None
    ) -> "Cost":
        """Cost of `settings.updates` updates; `teacher_forwards` an example: 0 for a teacher, 2 for a round.

        `flops` are a forward pass's, `student` those of one that learns, forward and backward: 3 times as many,
        unless given.
        """
        images = settings.updates * settings.batch
        forward, student = images * (1 + teacher_forwards), 3 * flops if student is None else student
        return Cost(images, forward, images, float(images) * (teacher_forwards * flops + student), seconds)

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
    """What `checkpoints` cost, the smaller networks that teachers grew from included."""
    infos = [c.info for c in checkpoints]
    parts = [info["cost"] for info in infos if "cost" in info] + [
        info["grown_from"]["cost"] for info in infos if "grown_from" in info and info["model"] == "teacher"
    ]
    return sum((Cost(**part) for part in parts), Cost(0, 0, 0, 0.0, 0.0))
