"""The figures of a ladder: every sampler at every step count, each kept on disk as soon as it is measured."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from typing_extensions import NotRequired, TypedDict

from pdlab import schema
from pdlab.diffusion.samplers import nfe
from pdlab.errors import PdlabError
from pdlab.files import write
from pdlab.metrics.card import Row
from pdlab.metrics.evaluate import Yardstick, rows_of, sample_features
from pdlab.metrics.reference import nearest_distances
from pdlab.training.checkpoint import load
from pdlab.training.log import Log
from pdlab.training.machine import Machine
from pdlab.zoo.recipe import LadderRecipe

#: Samples whose nearest training images are looked for, and the quantiles of the distances that are kept.
NEAREST, QUANTILES = 1000, (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)


class Measured(TypedDict):
    """The figures of a reading."""

    rows: list[Row]
    nearest: NotRequired[dict[str, float]]


@dataclass(frozen=True)
class Reading:
    """One model with one sampler at one step count."""

    model: Path
    sampler: str
    steps: int
    nu: float | None = None
    guidance: float = 0.0

    def file(self, yardstick: Yardstick) -> str:
        """The name that its figures by `yardstick` are kept under."""
        nu = "" if self.nu is None else f"-nu{self.nu:g}"
        nu += f"-w{self.guidance:g}" if self.guidance else ""
        by = f"{yardstick.n}-{yardstick.extractor.name}-{'-'.join(yardstick.kinds)}"
        return f"{self.model.name}-{self.sampler}{nu}-{self.steps:04d}-{by}.json"


def own_readings(models: Sequence[Path], recipe: LadderRecipe) -> list[Reading]:
    """Every student with its own number of steps, at every guidance."""
    counts = [(path, load(path).denoiser.steps) for path in models]
    return [
        Reading(path, "ddim", steps, guidance=w)
        for w in recipe.guidances
        for path, steps in counts
        if steps is not None
    ]


def teacher_readings(teacher: Path, recipe: LadderRecipe) -> list[Reading]:
    """The deterministic samplers of the undistilled teacher at powers of two.

    At one step Heun's rule and DPM-Solver++ are DDIM. Heun's takes 2 evaluations a step but the last: N/2 steps
    for at most N evaluations.
    """
    readings = []
    for w in recipe.guidances:
        if recipe.briefly and w != recipe.shown:
            readings.append(Reading(teacher, "dpm-solver++", powers(recipe.others)[-1], guidance=w))
            continue
        readings += [Reading(teacher, "ddim", steps, guidance=w) for steps in powers(recipe.ddim)]
        for steps in powers(recipe.others)[1:]:
            readings.append(Reading(teacher, "dpm-solver++", steps, guidance=w))
            if steps > 2 and not recipe.briefly:
                readings.append(Reading(teacher, "heun", steps // 2, guidance=w))
    return readings


def nu_readings(teacher: Path, recipe: LadderRecipe) -> list[Reading]:
    """The ancestral sampler at every candidate variance, at the guidance that is shown."""
    counts, w = powers(recipe.others), recipe.shown
    return [Reading(teacher, "ancestral", steps, nu, w) for steps in counts for nu in recipe.nus]


def powers(most: int) -> list[int]:
    """1, 2, 4, … up to `most`."""
    return [2**k for k in range(most.bit_length()) if 2**k <= most]


def best_nus(results: Sequence[tuple[Reading, dict[str, Any]]]) -> list[Reading]:
    """For each step count the reading with the least Fréchet distance."""
    best: dict[int, tuple[float, Reading]] = {}
    for reading, result in results:
        value = Row.from_dict(result["rows"][0]).value
        if reading.steps not in best or value < best[reading.steps][0]:
            best[reading.steps] = (value, reading)
    return [reading for _, (_, reading) in sorted(best.items())]


def measure(
    readings: Sequence[Reading], yardstick: Yardstick, machine: Machine, folder: Path, log: Log, seed: int = 0
) -> list[tuple[Reading, dict[str, Any]]]:
    """The figures of `readings`, in their order: {"rows": […], "nearest": quantiles by name}.

    What lies in `folder` already, undamaged, is read from there. On a CPU with several threads, as many readings
    are measured at a time, each in one.
    """
    files = [folder / reading.file(yardstick) for reading in readings]
    todo = [(reading, file) for reading, file in zip(readings, files, strict=True) if found(file, Measured) is None]
    # Longest first, so that no thread is left alone with one.
    todo.sort(key=lambda pair: -nfe(pair[0].sampler, pair[0].steps))
    threads = torch.get_num_threads()
    workers = threads if machine.device.type == "cpu" else 1

    stop = threading.Event()

    def work(pair: tuple[Reading, Path]) -> str:
        reading, file = pair
        kept(file, Measured, lambda: _measure(reading, yardstick, machine, seed, stop))
        return file.stem

    each = max(1, threads // workers)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
        try:
            for done, name in enumerate(pool.map(work, todo)):
                log.advance(f"{len(todo)} figures, n = {yardstick.n}", done + 1, len(todo), name)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
    return [(reading, schema.read(file, Measured)) for reading, file in zip(readings, files, strict=True)]


def found(file: Path, kind: Any) -> dict[str, Any] | None:
    """What `kept` keeps in `file`; None if it is not there or is damaged, and is to be made anew."""
    try:
        return schema.read(file, kind)
    except (FileNotFoundError, PdlabError):
        return None


def kept(file: Path, kind: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` makes, a `kind`: made once and kept in `file`."""
    there = found(file, kind)
    if there is None:
        there = make()
        write(file, schema.sealed(there), "choose another --run")
    return there


def quantiles(distances: torch.Tensor) -> dict[str, float]:
    """The `QUANTILES` of nearest distances, as JSON."""
    return {str(q): float(torch.quantile(distances, q)) for q in QUANTILES}


def _measure(
    reading: Reading, yardstick: Yardstick, machine: Machine, seed: int, stop: threading.Event
) -> dict[str, Any]:
    checkpoint = load(reading.model)  # a copy of its own: sampling changes the weights' precision in place
    how: dict[str, Any] = {"sampler": reading.sampler, "seed": seed, "guidance": reading.guidance}
    if reading.nu is not None:
        how["options"] = {"nu": reading.nu}

    def progress(done: int, n: int) -> None:
        if stop.is_set():
            raise InterruptedError("the build was stopped")

    # Small enough for a CPU's caches; a GPU wants thousands.
    batch = 250 if machine.device.type == "cpu" else 2500
    features = sample_features(checkpoint, reading.steps, yardstick, machine, batch=batch, progress=progress, **how)
    rows = rows_of(features, checkpoint, reading.steps, yardstick, machine, **how)
    result: dict[str, Any] = {"rows": [row.to_dict() for row in rows]}
    if yardstick.features is not None and reading.sampler == "ddim":
        result["nearest"] = quantiles(
            nearest_distances(features[:NEAREST].to(yardstick.device), yardstick.features)
        )
    return result
