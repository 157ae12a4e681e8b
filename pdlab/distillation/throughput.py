"""How fast a machine trains and distils a preset, beside how fast it multiplies matrices."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pdlab.data.source import ImageSource, Source
from pdlab.distillation.rounds import Ladder
from pdlab.training.cost import Cost, size
from pdlab.training.loop import fit, trainable
from pdlab.training.machine import Machine
from pdlab.training.objective import DiffusionObjective
from pdlab.training.presets import Preset
from pdlab.training.teacher import new_denoiser


@dataclass(frozen=True)
class Throughput:
    """Images a second of one kind of update, and the share of the machine's matrix rate that its FLOPs are."""

    preset: str
    step: str  # "training" or "distillation"
    batch: int
    images_per_second: float
    flops_per_image: float
    share: float


def throughput(
    settings: Preset, machine: Machine, batch: int, rate: float, seconds: float = 5.0
) -> list[Throughput]:
    """Measure both kinds of update of `settings` for about `seconds` each; `rate` is `matrix_rate(machine)`."""
    shape = settings.network.shape
    images = torch.randint(
        0, 256, (2 * batch, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    source = ImageSource(images).to(machine.device)
    flops = size(settings.network, settings.output).flops
    found = []
    for name, make, forwards in (("training", training_step, 0), ("distillation", distillation_step, 2)):
        work = make(settings, source, machine, batch)
        _seconds(work, 4, machine)  # compiles, and finds the fastest kernels
        updates = max(4, round(4 * seconds / _seconds(work, 4, machine)))
        speed = updates * batch / _seconds(work, updates, machine)
        cost = Cost.of(replace(settings.teaching, updates=1, batch=1), flops, forwards, 0.0).flops
        found.append(Throughput(settings.name, name, batch, speed, cost, speed * cost / rate))
    return found


def matrix_rate(machine: Machine, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of the best of 5 products of square matrices of `dtype`: reached, not read in a data sheet."""
    size = 8192 if machine.device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=machine.device).to(dtype) for _ in range(2))
    machine.wait()
    best = float("inf")
    for _ in range(5):
        before = time.perf_counter()
        a @ b
        machine.wait()
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


def training_step(settings: Preset, source: Source, machine: Machine, batch: int) -> Callable[[int], object]:
    """`work(k)`: k updates of the real loop; its set-up (optimizer, EMA) is counted too."""
    denoiser = machine.place(new_denoiser(settings, 0))
    live = trainable(denoiser, machine)
    objective = DiffusionObjective(settings.weighting)
    optimization = replace(settings.teaching, batch=batch)
    return lambda k: fit(denoiser, objective, source, replace(optimization, updates=k), machine, live=live)


def distillation_step(settings: Preset, source: Source, machine: Machine, batch: int) -> Callable[[int], object]:
    """`work(k)`: k updates of a round."""
    rounds = Ladder(new_denoiser(settings, 0), source, machine, weighting=settings.weighting)
    return lambda k: rounds.descend(8, replace(settings.distill, batch=batch, updates=k))


def _seconds(work: Callable[[int], object], updates: int, machine: Machine) -> float:
    machine.wait()
    before = time.perf_counter()
    work(updates)
    machine.wait()
    return time.perf_counter() - before
