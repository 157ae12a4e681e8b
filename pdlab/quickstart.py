"""The whole method on handwritten digits in minutes: a teacher, every halving, a measured report, two pictures."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pdlab import data
from pdlab.data.source import ImageSource, to_uint8
from pdlab.diffusion.samplers import sample
from pdlab.distillation.rounds import distill
from pdlab.errors import PdlabError
from pdlab.figures.charts import metric_curve
from pdlab.figures.grids import sample_grid
from pdlab.files import atomic_file
from pdlab.metrics.card import Row
from pdlab.metrics.evaluate import Yardstick, evaluate, noise
from pdlab.metrics.features import extractor
from pdlab.report import write_report
from pdlab.training.checkpoint import Checkpoint, load
from pdlab.training.cost import cost_report
from pdlab.training.log import Log
from pdlab.training.machine import Machine
from pdlab.training.presets import Preset, preset
from pdlab.training.run import Run
from pdlab.training.teacher import TEACHER, train
from pdlab.zoo import SAMPLES


def quickstart(
    out: Path, seed: int = 0, *, settings: Preset | None = None, n: int = 2000, log: Log | None = None
) -> dict[str, Any]:
    """Train, distil and measure into `out`; returns the report that it writes.

    Writes the checkpoints, `samples.png` and the samples themselves, `curve.png` and `report.json`. Interrupted, it
    goes on when called again. `settings` defaults to the preset "digits", `n` is the number of samples a figure is
    measured on.
    """
    settings = settings or preset("digits")
    log = log or Log(out)
    started = time.monotonic()
    machine = Machine("cpu", settings.precision)
    source = data.load(settings.data)
    assert isinstance(source, ImageSource)
    with Run(out) as run, log, _one_thread():
        if run.checkpoint(TEACHER) is None and (out / "distill.json").exists():
            raise PdlabError(f"{out} holds the rounds of another teacher: choose another --out")
        teacher = load(train(settings, source, run, machine, seed=seed, log=log))
        paths = distill(teacher, source, settings, run, machine, first=settings.first_steps, seed=seed, log=log)
        students = [load(path) for path in paths]
        yardstick = Yardstick(source, extractor("pixels"), n)
        counts = [settings.first_steps, *(s.denoiser.steps or 0 for s in students)]
        rows: list[Row] = []
        jobs = [(teacher, count) for count in counts] + [(s, s.denoiser.steps or 0) for s in students]
        for k, (checkpoint, count) in enumerate(jobs):
            rows += evaluate(checkpoint, count, yardstick, machine, seed=seed)
            log.advance("evaluation", k + 1, len(jobs), f"{rows[-1].metric} {rows[-1].value:.3f}")
    report = {
        "teacher_steps": settings.first_steps,
        "seed": seed,
        "rows": [row.to_dict() for row in rows],
        "real": yardstick.real["frechet"],
        "cost": cost_report([teacher], students),
        "seconds": time.monotonic() - started,
    }
    write_report(out / "report.json", report)
    _draw(out, rows, teacher, students, counts, yardstick, seed)
    return report


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """So small a network is no faster on two threads, and many times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _draw(
    out: Path,
    rows: list[Row],
    teacher: Checkpoint,
    students: list[Checkpoint],
    counts: list[int],
    yardstick: Yardstick,
    seed: int,
) -> None:
    figures = {model: {r.steps: r.value for r in rows if r.model == model} for model in ("teacher", "distilled")}
    z = noise(teacher.shape, 16, seed)
    samples = {
        "teacher": {n: to_uint8(sample(teacher.denoiser, z, n)) for n in counts},
        "distilled": {s.denoiser.steps or 0: to_uint8(sample(s.denoiser, z)) for s in students},
    }
    kinds = {"teacher": "ddim", "distilled": "distilled"}
    tensors = {f"{kinds[m]}/{k:04d}": images for m, cells in samples.items() for k, images in cells.items()}
    with atomic_file(out / SAMPLES) as file:  # as in the zoo, for the app
        file.write(safetensors.torch.save(tensors))
    metric, card = rows[0].metric, rows[0].card
    captions = {m: {k: f"{metric} {v:.2f}" for k, v in values.items()} for m, values in figures.items()}
    title = "The same 16 noises in every cell: only the training and the number of steps differ"
    floor = card.real["value"] if card.real else None
    note = (
        f"{teacher.info['data']['name']}, {card.n:,} samples against {len(yardstick.reference):,} training images"
    )
    for name, figure in (
        ("samples.png", sample_grid(samples, captions, title)),
        ("curve.png", metric_curve(figures, metric, floor, note)),
    ):
        with atomic_file(out / name) as file:
            figure.savefig(file, format="png")
