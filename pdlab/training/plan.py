"""What full-size training takes, on paper: memory, work and hours of a preset on GPUs that need not be there.

Nothing is allocated: the network goes forward and back on tensors without memory, and every tensor that PyTorch
would make and let go of is counted, for two batches, whose difference is what an example takes. What is not
PyTorch's is not in it: work space of the libraries below, the driver, and memory that lies in pieces (`USABLE`).
"""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pdlab.errors import PdlabError
from pdlab.networks.registry import build, conditioning
from pdlab.networks.unet import UNet
from pdlab.training.cost import kept, size
from pdlab.training.presets import Optimization, Preset


class Gpu(NamedTuple):
    """Memory in GiB, and the peak of dense bf16 products in TFLOP/s, as its maker says."""

    memory: float
    tflops: float


GPUS = {
    "h200": Gpu(141, 989),
    "h100": Gpu(80, 989),
    "a100": Gpu(80, 312),
    "l40s": Gpu(48, 362),
    "a10": Gpu(24, 125),
    "l4": Gpu(24, 121),
    "rtx4090": Gpu(24, 165),
}
#: Of a card's memory, what is for tensors: the rest is the driver's, kernels' work space and what lies in pieces.
USABLE = 0.9


#: Batches that are compared: with fewer examples the weights' gradients would be the peak.
BATCHES = (32, 48)


class Meter(TorchDispatchMode):
    """Counts, within its context, the bytes of tensors that PyTorch makes and holds: `now`, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, count = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held.add(key)
            self.now += count
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, count)

    def _gone(self, key: int, count: int) -> None:
        self._held.discard(key)
        self.now -= count


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak of a forward and backward pass: for `each` example, and `fixed` whatever the batch.

    The latter are the weights' gradients, and under autocast their copies in bf16; weights are not in it.
    """

    each: float
    fixed: float


@dataclass(frozen=True)
class Stage:
    """One stage of training on one process.

    `states` are the bytes of weights, moments, moving average and, in a round, the teacher;
    `activations` those of the pass, as they are and with stages computed again (None where they cannot be);
    `flops` of an update of the whole batch, without and with that.
    """

    name: str
    settings: Optimization
    updates: int
    states: int
    activations: tuple[Footprint, Footprint | None]
    flops: tuple[float, float]

    def micro_batch(self, memory: float, recompute: bool) -> int:
        """The most examples at a time in so many bytes; 0 if not one fits."""
        found = self.activations[recompute]
        if found is None:
            return 0
        return max(0, min(self.settings.batch, int((memory - self.states - found.fixed) // found.each)))

    def hours(self, flops_per_second: float, recompute: bool) -> float:
        """How long all updates take at this rate."""
        return self.updates * self.flops[recompute] / flops_per_second / 3600


def footprint(network: nn.Module, config: Any, bf16: bool, recompute: bool = False) -> Footprint:
    """The peak of `network` on this device's tensors, with memory or without, under its autocast if `bf16`."""
    if isinstance(network, UNet):
        network.recompute(recompute)
    few, many = (_peak(network, _example(config, n), bf16) for n in BATCHES)
    each = (many - few) / (BATCHES[1] - BATCHES[0])
    return Footprint(each, few - BATCHES[0] * each)


def _peak(network: nn.Module, example: list[Tensor], bf16: bool) -> int:
    network.zero_grad(set_to_none=True)
    meter = Meter()
    with meter:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            answer = network(*example)
        answer.float().square().mean().backward()
    return meter.peak


def stages(preset: Preset, bf16: bool = True, gpu: bool = True) -> list[Stage]:
    """The teacher's training and the rounds of `preset`. PdlabError for a network of one's own.

    Counted on the CPU's tensors; `gpu` adds what a GPU's autocast keeps more, which leaves norms in float32.
    """
    config = preset.network
    flops, weights = size(config, preset.output).flops, size(config, preset.output).weights
    more = _on_a_gpu(preset) if gpu else 1.0
    with FakeTensorMode():
        network = build(config, preset.output, preset.teacher.dropout if preset.teacher else 0.0).train()
        modes = (False, True) if isinstance(network, UNet) else (False,)
        plain, *again = (footprint(network, config, bf16, recompute) for recompute in modes)
    pair = _grown(plain, more), _grown(again[0], more) if again else None
    found = []
    if preset.teacher is not None:
        found.append(_stage("teacher", preset.teacher, preset.teacher.updates, weights, pair, flops, 0))
    if preset.guidance_max:
        found.append(_stage("guided", preset.guide, preset.guide.updates, weights, pair, flops, 2))
    rounds = max(1, round(math.log2(preset.first_steps)))
    updates = preset.distill.updates * (rounds + min(2, rounds))  # the last two are twice as long
    found.append(_stage(f"{rounds} rounds", preset.distill, updates, weights, pair, flops, 2))
    return found


def states_of(settings: Optimization, weights: int, teacher: bool) -> int:
    """Bytes of weights and moments, of a moving average and of a `teacher`, all float32.

    Muon holds one moment of a matrix where Adam holds two; this counts two of all.
    """
    return weights * (3 + (settings.ema > 0) + teacher)


def check_gpu(name: str) -> Gpu:
    """The GPU of this name; PdlabError lists those that are known."""
    if name not in GPUS:
        raise PdlabError(f"unknown GPU {name!r:.60}: choose one of {', '.join(GPUS)}")
    return GPUS[name]


def _stage(
    name: str,
    settings: Optimization,
    updates: int,
    weights: int,
    pair: tuple[Footprint, Footprint | None],
    flops: int,
    teacher_forwards: int,
) -> Stage:
    states = states_of(settings, weights, teacher_forwards > 0)
    work = float(flops) * settings.batch
    return Stage(
        name, settings, updates, states, pair, (work * (3 + teacher_forwards), work * (4 + teacher_forwards))
    )


def _grown(found: Footprint, by: float) -> Footprint:
    return Footprint(found.each * by, found.fixed)


def _on_a_gpu(preset: Preset) -> float:
    """How much more a GPU keeps of an example than the CPU, both under autocast: of the forward pass alone."""
    found = []
    for device in ("cuda", "cpu"):
        with _autocast_without_memory(device):
            network = build(preset.network, preset.output)
            two, three = (kept(network, _example(preset.network, n)) for n in (2, 3))
        found.append(three - two)
    return found[0] / max(1, found[1])


@contextmanager
def _autocast_without_memory(device: str) -> Iterator[None]:
    """Tensors without memory on a `device` that need not be there, under what its autocast would do."""
    was = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    with FakeTensorMode(), torch.device(device):
        torch.set_autocast_enabled(device, True)
        torch.set_autocast_dtype(device, torch.bfloat16)
        try:
            yield
        finally:
            torch.set_autocast_enabled(device, was[0])
            torch.set_autocast_dtype(device, was[1])
            torch.clear_autocast_cache()


def _example(config: Any, n: int) -> list[Tensor]:
    taken = conditioning(config)
    example = [torch.zeros(n, *config.shape), torch.zeros(n)]
    if taken["num_classes"]:
        example.append(torch.zeros(n, dtype=torch.int64))
    if taken["condition"]:
        example.append(torch.zeros(n, *taken["condition"]))
    if taken["guidance_max"]:
        example.append(torch.zeros(n))
    return example
