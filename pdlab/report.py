"""Reports and sample files: what the command line writes and prints."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Column, Table
from torch import Tensor

from pdlab import console, memory, schema, zoo
from pdlab.data.source import ImageSource, Source, to_uint8
from pdlab.diffusion.samplers import Sampler
from pdlab.errors import PdlabError
from pdlab.figures.mosaic import mosaic
from pdlab.files import alone, atomic_file, check_place, read_bytes, write
from pdlab.metrics.card import Kind, Row, by_sampler
from pdlab.metrics.density import check_density, measure_density
from pdlab.metrics.evaluate import Decode, Yardstick, evaluate, labels_of, samples_of
from pdlab.metrics.features import extractor
from pdlab.training.checkpoint import Checkpoint, load
from pdlab.training.cost import cost_report, size
from pdlab.training.log import Log
from pdlab.training.machine import Machine
from pdlab.training.presets import PRESETS, preset

_COLUMNS = 40  # classes that a grid shows beside one another


def evaluate_checkpoints(
    models: list[Checkpoint],
    reference: Source,
    held_out: Source | None,
    machine: Machine,
    out: Path,
    *,
    counts: list[int] | None = None,
    features: str = "effnet-lite0",
    weights: Path | None = None,
    n: int = 5000,
    sampler: str | Sampler = "ddim",
    seed: int = 0,
    clip: bool | None = None,
    guidance: float = 0.0,
    classes: Sequence[str | int] | None = None,
    options: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Measure `models` at `counts` steps (default: their own, see `default_steps`); writes and returns the report.

    Both distances, precision and recall are measured, and the class agreement of models with classes. The report
    holds rows, the cost of teachers and students, and the seconds. Raises PdlabError for data that are not images,
    too few samples, or a guidance or classes that a model does not know.
    """
    for model in models:
        model.denoiser.check_guidance(guidance)
        model.class_numbers(classes)
    conditional = any(model.denoiser.num_classes for model in models)
    kinds: tuple[Kind, ...] = ("frechet", "kernel", "agreement", "precision", "recall")
    if not isinstance(reference, ImageSource):
        raise PdlabError(f"{reference.name} is 2-D: pdlab evaluate measures images only; draw with pdlab sample")
    check_place(out, "choose another --out")
    started = time.monotonic()
    rows: list[Row] = []
    by = extractor(features, weights, machine.device, reference.shape)
    memory.check(24 * n * by.dim, f"features of {n:,} samples", "take a smaller --n")
    names = {id(m): m.path.name if m.path else "model" for m in models}
    busy = f"another pdlab writes {out}: wait for it, or choose another --out"
    with alone(out, busy, "choose another --out"), Log() as log:
        yardstick = Yardstick(
            reference,
            by,
            n,
            held_out if isinstance(held_out, ImageSource) else None,
            kinds if conditional else [kind for kind in kinds if kind != "agreement"],
            partial(log.advance, "reference features"),
        )
        for model in models:
            for steps in counts or default_steps(model):
                show = partial(log.advance, f"{names[id(model)]}, {steps} steps")
                rows += evaluate(
                    model,
                    steps,
                    yardstick,
                    machine,
                    sampler=sampler,
                    seed=seed,
                    clip=clip,
                    guidance=guidance,
                    classes=classes,
                    progress=show,
                    options=options,
                )
        teachers = [m for m in models if m.denoiser.steps is None]
        students = [m for m in models if m.denoiser.steps is not None]
        report = {
            "teacher_steps": max((m.info["preset"]["first_steps"] for m in models), default=None),
            "rows": [row.to_dict() for row in rows],
            "cost": cost_report(teachers, students),
            "seconds": time.monotonic() - started,
        }
        write_report(out, report)
    return report


def evaluate_density(
    models: list[Checkpoint], images: Source, machine: Machine, out: Path, *, n: int, seed: int = 0
) -> dict[str, Any]:
    """Bits per dimension of the first `n` of `images` under each of `models`; writes and returns the report.

    Raises PdlabError for data that are not images, and for a model without a density, such as a student.
    """
    if not isinstance(images, ImageSource):
        raise PdlabError(f"{images.name} is 2-D: pdlab evaluate measures images only")
    for model in models:
        check_density(model.denoiser)
    check_place(out, "choose another --out")
    started, rows = time.monotonic(), []
    with alone(out, f"another pdlab writes {out}: wait for it, or choose another --out", "choose another --out"):
        with Log() as log:
            for model in models:
                show = partial(log.advance, f"{model.path.name if model.path else 'model'}, bits per dimension")
                rows += measure_density(model, images, n, machine, seed=seed, progress=show)
        report = {"rows": [row.to_dict() for row in rows], "seconds": time.monotonic() - started}
        write_report(out, report)
    return report


def print_density(report: dict[str, Any]) -> None:
    """The figures of `evaluate_density`, a line each."""
    for row in map(Row.from_dict, report["rows"]):
        of, how = row.card.reference, row.card.sampler["name"]
        console.say(
            f"{row.model}: {row.value:.3f} ± {row.spread:.3f} bits per dimension by the {how}; {row.card.n:,} "
            f"images of {of['name']}, {of['split']} split; {row.card.rounding}; {row.card.nfe} calls an image"
        )


def default_steps(model: Checkpoint) -> list[int]:
    """A student's own step count; for a teacher 1, 2, 4, … up to the steps it is first read at."""
    if model.denoiser.steps is not None:
        return [model.denoiser.steps]
    first = int(model.info["preset"]["first_steps"])
    return [2**k for k in range(first.bit_length()) if 2**k <= first]


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, whole or not at all."""
    write(out, json.dumps(report, indent=2, allow_nan=False).encode(), "choose another --out")


def read_rows(path: Path) -> list[Row]:
    """The figures of a report that `write_report`, or a ladder, wrote. PdlabError for another file."""
    try:
        found = schema.parse(read_bytes(path, schema.MOST_JSON), str(path))
        rows = [Row.from_dict(row) for row in found["rows"]]
    except (KeyError, TypeError, AttributeError):
        raise PdlabError(f"{path} is no report: give one of pdlab evaluate") from None
    return rows


def print_report(report: dict[str, Any]) -> None:
    """The figures of a report as a table: one line a model and step count, one column a metric."""
    rows = [Row.from_dict(row) for row in report["rows"]]
    metrics = {row.metric: row for row in rows}
    table = Table("model", "steps", *(metric.replace("-", "\n", 1) for metric in metrics))
    for model, steps in sorted(dict.fromkeys((row.model, row.steps) for row in rows), key=lambda line: -line[1]):
        values = {row.metric: row.value for row in rows if (row.model, row.steps) == (model, steps)}
        table.add_row(model, str(steps), *(f"{values[m]:.4g}" if m in values else "" for m in metrics))
    printer = console.output()
    printer.print(table)
    for metric, row in metrics.items():
        real = f"; real images {row.card.real['value']:.3g}" if row.card.real else ""
        guided = f", guidance {row.card.guidance:g}" if row.card.guidance else ""
        printer.print(f"{metric}: {row.better} is better; {row.card.n:,} samples{guided}{real}")
    ratio = report["cost"].get("distillation_over_teacher")
    took = f"{report['seconds']:.0f} s"
    if ratio:
        took += (
            f"; distillation cost {ratio['flops']:.2f} × the teacher's FLOPs, {ratio['seconds']:.2f} × its seconds"
        )
    printer.print(took)


def print_presets() -> None:
    """Every preset, a line each."""
    table = Table(Column("preset", no_wrap=True), "data", "weights", "GFLOPs", "teacher", "halving", "steps")
    for settings in PRESETS.values():
        found = size(settings.network, settings.output)
        jobs = (
            f"{job.updates / 1000:g}k×{job.batch}" if job else "" for job in (settings.teacher, settings.distill)
        )
        table.add_row(
            settings.name,
            settings.data,
            f"{found.weights / 4e6:.3g}M",
            f"{found.flops / 1e9:.2g}",
            *jobs,
            str(settings.first_steps),
        )
    console.output().print(table)


def print_preset(name: str) -> None:
    """One preset as lines FIELD=VALUE, each of which `--set` takes."""
    for field, value in _fields(asdict(preset(name))):
        console.say(f"{field}={value}")


def _fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def print_zoo() -> None:
    """What ships with the package: each ladder's rungs, their Fréchet distance and that of undistilled DDIM."""
    names = zoo.names()
    if not names:
        console.say(f"No ladder ships with this installation ({zoo.HOME}). pdlab quickstart makes one of digits.")
    printer = console.output()
    for name in names:
        made = zoo.manifest(name)
        kinds = by_sampler(zoo.report(name), made["guidance"]["shown"])
        found = {kind: {row.steps: row for row in rows.values()} for kind, rows in kinds.items()}
        row = next(row for rows in found.values() for row in rows.values())
        shape = "×".join(map(str, made["data"]["shape"]))
        table = Table("checkpoint", "steps", "DDIM", "distilled", "images seen", "MiB")
        for rung in made["rungs"]:
            steps = rung["steps"]
            values = [found.get(kind, {}).get(steps) for kind in ("ddim", "distilled")]
            size = made["files"][rung["file"]]["bytes"] / 2**20
            table.add_row(
                f"{name}:{steps or 'teacher'}",
                str(steps or "any"),
                *("" if value is None else f"{value.value:.3g}" for value in values),
                f"{rung['images']:,}",
                f"{size:.1f}",
            )
        printer.print(table)
        floor = zoo.report(name)["real"]["frechet"]["value"]
        printer.print(
            f"{name}: {made['data']['name']}, {shape}; {row.metric} of {row.card.n:,} samples of the undistilled "
            f"teacher (DDIM) and of the distilled student; real images {floor:.3g}\n"
            f"Draw: pdlab sample {name}:4 --out grid.png",
            soft_wrap=True,
        )


def write_samples(
    out: Path,
    model: Checkpoint,
    n: int,
    steps: int,
    machine: Machine,
    *,
    sampler: str | Sampler = "ddim",
    seed: int = 0,
    clip: bool | None = None,
    guidance: float = 0.0,
    classes: Sequence[str | int] | None = None,
    options: Mapping[str, float] | None = None,
    decode: Decode | None = None,
    quiet: bool = False,
) -> None:
    """`n` samples as a grid (.png) or as an array `arr_0` (.npz): uint8 `[N, H, W, C]`, or points `[N, 2]`.

    Latents are images once `decode` has made such of them; without, they are what the array holds, `[N, C, H, W]`.

    Sample k is of the (k mod m)-th of the m `classes`, by name or number (default: all): in a grid a column is a
    class, and the array `arr_1` `[N]` holds their numbers. Raises PdlabError, and writes nothing, for a guidance
    or a class that the model does not know.
    """
    check_place(out, "choose another --out")
    latent = not model.denoiser.bounded and len(model.shape) == 3
    if latent and decode is None and out.suffix != ".npz":
        raise PdlabError("these samples are latents: give --decode FOLDER of an autoencoder, or --out samples.npz")
    if decode is not None and not latent:
        raise PdlabError("these samples are no latents: leave --decode out")
    memory.check(24 * n * torch.Size(model.shape).numel(), f"{n:,} samples", "take a smaller --n")
    model.denoiser.check_guidance(guidance)
    labels = labels_of(model.denoiser, n, model.class_numbers(classes))
    how: dict[str, Any] = {"seed": seed, "clip": clip, "guidance": guidance, "classes": classes, "options": options}
    with Log(quiet=quiet) as log:
        parts = samples_of(model, n, steps, machine, sampler, progress=partial(log.advance, "sampling"), **how)
        samples = torch.cat([part.cpu() for part in parts])
    images = to_uint8(decode(samples) if decode else samples) if model.denoiser.bounded or decode else None
    with atomic_file(out) as file:
        if out.suffix == ".npz":
            array = samples if images is None else images.permute(0, 2, 3, 1)
            np.savez_compressed(file, array.numpy(), *([] if labels is None else [labels.numpy()]))
        elif images is None:
            _scatter(samples).savefig(file, format="png")
        else:
            _grid(images, 1 if labels is None else len(labels.unique())).save(file, format="png")


def draw_snapshot(path: Path, machine: Machine) -> None:
    """A grid of 64 samples of checkpoint `path` beside it, `path.png`: in the steps it is read at, at most 64."""
    out = path.with_name(f"{path.name}.png")
    if not out.exists():
        model = load(path)
        write_samples(out, model, 64, min(model.info["preset"]["first_steps"], 64), machine, quiet=True)


def _grid(images: Tensor, classes: int) -> Any:
    """A class a column; what has one class, or more than fit beside one another, about a square."""
    from PIL import Image

    columns = classes if 1 < classes <= _COLUMNS else max(1, round(len(images) ** 0.5))
    sheet = mosaic(images, columns=columns)
    # Small images are enlarged pixel by pixel, so that viewers do not smooth them.
    zoom = max(1, 512 // sheet.shape[1])
    sheet = sheet.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    return Image.fromarray(sheet.numpy())


def _scatter(points: Tensor) -> Any:
    from pdlab.figures.charts import scatter  # matplotlib, which only points need

    return scatter(points)
