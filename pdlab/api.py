"""What `import pdlab` gives: one's own network, on one's own images, in a few lines.

    model = pdlab.Denoiser(MyNetwork(), output="v")                  network(z [B, …], logsnr [B]) -> [B, …]
    teacher = pdlab.train(model, images, "runs/mine", updates=10_000)
    students = pdlab.distill(teacher, images, "runs/mine", first=64)   {32: …, 16: …, 8: …, 4: …, 2: …, 1: …}
    pdlab.sample(students[4], 16)

The command line does the same with presets; what both give is the same kind of run.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdlab import memory
from pdlab.data import Source, checked_conditions, source_of
from pdlab.data.source import ImageSource
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import Sampler
from pdlab.distillation.rounds import RoundObjective, check_rounds, rung_name
from pdlab.distillation.rounds import distill as distill_into
from pdlab.errors import PdlabError
from pdlab.metrics.card import Row
from pdlab.metrics.evaluate import Decode, Yardstick, samples_of
from pdlab.metrics.evaluate import evaluate as measure
from pdlab.metrics.features import FeatureExtractor, extractor
from pdlab.networks.registry import config_of, twin
from pdlab.training import checkpoint as files
from pdlab.training.checkpoint import Checkpoint
from pdlab.training.log import Log
from pdlab.training.loop import Upkeep
from pdlab.training.machine import Machine
from pdlab.training.presets import Optimization, Preset, to_dict
from pdlab.training.run import Run
from pdlab.training.teacher import TEACHER, check_fits, describe
from pdlab.training.teacher import train as train_into

Model = Denoiser | Checkpoint


def train(
    denoiser: Denoiser,
    data: Source | Tensor,
    run: Path | str,
    *,
    updates: int,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    conditions: Tensor | None = None,
    batch: int = 128,
    lr: float = 1e-3,
    ema: float = 0.999,
    weighting: str = "truncated",
    first_steps: int = 64,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    upkeep: Upkeep = Upkeep(),
    quiet: bool = False,
    **more: Any,
) -> Checkpoint:
    """Train `denoiser`, left as it is, on `data`, and return the teacher, which is kept in `run`/teacher.

    Args:
        data: images `[N, C, H, W]`, uint8 or in [−1, 1], with their `labels` `[N]`, named `classes`, or their
            `conditions` `[N, …]`, if the denoiser is told any; or what `pdlab.data.load` or `Codec.latents` gives.
        run: a folder. Interrupted, the same call goes on from there.
        updates, batch, lr, ema, more: fields of `pdlab.training.presets.Optimization`.
        first_steps: how many steps it is meant to be read at first, when it is distilled.
        upkeep: how often states are saved, what may change on the way, and so on.
        quiet: show no progress.

    Raises PdlabError, before anything is written, for data that do not fit.
    """
    source = _fitting(denoiser, data, labels, classes, conditions)
    settings = _optimization(updates=updates, batch=batch, lr=lr, ema=ema, **{"warmup": min(200, updates), **more})
    preset = _preset(denoiser, source, weighting, settings, None, first_steps, precision)
    machine = Machine(device, precision)
    with Run(run) as folder, Log(folder.path, quiet=quiet) as log:
        own = _shaped(denoiser, source)
        path = train_into(preset, source, folder, machine, denoiser=own, seed=seed, log=log, upkeep=upkeep)
    return files.load(path, twin(own))


def distill(
    teacher: Model,
    data: Source | Tensor,
    run: Path | str,
    *,
    first: int,
    last: int = 1,
    hops: int = 2,
    updates: int | None = None,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    conditions: Tensor | None = None,
    batch: int | None = None,
    lr: float | None = None,
    weighting: str | None = None,
    guidance_max: float | None = None,
    objective: Callable[[Denoiser, int, str, int], RoundObjective] = RoundObjective,
    lora: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    upkeep: Upkeep = Upkeep(),
    quiet: bool = False,
    **more: Any,
) -> dict[int, Checkpoint]:
    """Distil `teacher`, read at `first` steps, round by round to `last`: the students by their step count.

    Args:
        teacher: any denoiser, trained here or elsewhere; left as it is. What is not a checkpoint is first kept as
            `run`/teacher.
        data: what it was trained on, as for `train`.
        run: a folder, `run`/student-0004 and so on. Interrupted, the same call goes on from there; with a smaller
            `last` it goes further down.
        hops: how many of the teacher's steps one of the student's replaces; the paper's 2.
        updates, batch, lr, more: fields of `pdlab.training.presets.Optimization` for one round (default: what the
            teacher's preset says, or 2,000 updates of 128 at 5e-4); twice the updates for those to 2 and to 1.
        weighting: of the loss, "truncated", "snr+1" or "snr" (default: the teacher's, or "truncated").
        guidance_max: above 0, the ladder begins with a student that is told a guidance weight up to this
            (`run`/guided, by the same settings); the network needs a way in for it (default: the teacher's, or 0).
        objective: what a round minimises, called at its beginning with (teacher, steps, weighting, hops).
        lora: the rank of the adapters that the students are, of a few percent of the weights; needs pdlab[lora].

    An eps network becomes a v network first (`run`/converted, by the same settings).

    Raises PdlabError, before anything is written, for step counts that `hops` do not connect, or data that do not
    fit.
    """
    denoiser = teacher.denoiser if isinstance(teacher, Checkpoint) else teacher
    source = _fitting(denoiser, data, labels, classes, conditions)
    known = isinstance(teacher, Checkpoint) and bool(teacher.info)
    given = {"updates": updates, "batch": batch, "lr": lr, **more}
    given = {name: value for name, value in given.items() if value is not None}
    if known:
        assert isinstance(teacher, Checkpoint)
        preset = teacher.preset
        preset = dataclasses.replace(
            preset,
            distill=_optimization(**(dataclasses.asdict(preset.distill) | given)),
            guide=_optimization(**(dataclasses.asdict(preset.guide) | given)),
            weighting=weighting or preset.weighting,
        )
    else:
        settings = _optimization(**({"updates": 2000, "batch": 128, "lr": 5e-4, "anneal": True} | given))
        preset = _preset(denoiser, source, weighting or "truncated", None, settings, first, precision)
    if guidance_max is not None:
        preset = dataclasses.replace(preset, guidance_max=guidance_max)
    machine = Machine(device, precision)
    shaped = _shaped(denoiser, source)
    if isinstance(teacher, Checkpoint) and known:
        candidate = teacher
    else:
        candidate = _candidate(shaped, source, preset, machine, seed)
    rungs = check_rounds(candidate, source, preset, first, last, hops, lora)
    with Run(run) as folder, Log(folder.path, quiet=quiet) as log:
        candidate = kept(candidate, folder)
        distill_into(
            candidate,
            source,
            preset,
            folder,
            machine,
            first=first,
            last=last,
            hops=hops,
            objective=objective,
            rank=lora,
            seed=seed,
            log=log,
            upkeep=upkeep,
        )
        paths = {steps: folder.path / rung_name(steps) for steps in rungs}
    return {steps: files.load(path, twin(shaped)) for steps, path in paths.items()}


def save(path: Path | str, model: Model) -> str:
    """Write `model` as a new folder `path`; returns the sha256 of its weights.

    Raises PdlabError when it cannot be written (nothing is left then), and for a network of one's own whose
    examples' shape is not known: give `Denoiser(…, shape=…)`.
    """
    if isinstance(model, Checkpoint):
        return files.save(Path(path), model.denoiser, model.info)
    return files.save(Path(path), model)


def load(path: Path | str, network: nn.Module | None = None) -> Checkpoint:
    """The checkpoint `path`, or one of `pdlab zoo` ("LADDER:STEPS"); `network` takes the weights of one's own.

    Nothing that a file names is run. Raises PdlabError for what is missing, damaged or of another network.
    """
    from pdlab.zoo import find

    return find(str(path)) if network is None else files.load(path, network)


def sample(
    model: Model,
    n: int = 16,
    steps: int | None = None,
    sampler: str | Sampler = "ddim",
    *,
    seed: int = 0,
    classes: Sequence[str | int] | None = None,
    conditions: Tensor | None = None,
    guidance: float = 0.0,
    clip: bool | None = None,
    device: str = "auto",
    precision: str | None = None,
    batch: int = 1000,
    options: Mapping[str, float] | None = None,
) -> Tensor:
    """`n` samples float32 `[n, *shape]` on the CPU, images in [−1, 1]; sample k depends on `seed` and k alone.

    `steps` defaults to a student's own. Sample k is of the (k mod m)-th of the m `classes`, by name or number
    (default: all in turn), `guidance` beyond it; or it is told the (k mod m)-th of the `conditions` `[m, …]`, which
    a model that takes such needs. `options` go to the sampler, a name or a function.
    """
    checkpoint = _checkpoint(model)
    steps = checkpoint.step_count(steps)
    if conditions is not None:
        conditions = checked_conditions(conditions, len(conditions))
    if n < 1:
        raise PdlabError(f"n must be at least 1, not {n}")
    memory.check(8 * n * torch.Size(checkpoint.shape).numel(), f"{n:,} samples", "take a smaller n")
    machine = Machine(device, precision or checkpoint.precision)
    how: dict[str, Any] = {"seed": seed, "clip": clip, "guidance": guidance, "classes": classes, "options": options}
    how |= {"conditions": conditions, "batch": batch}
    return torch.cat([part.cpu() for part in samples_of(checkpoint, n, steps, machine, sampler, **how)])


def evaluate(
    model: Model,
    data: Source | Tensor,
    steps: int | None = None,
    sampler: str | Sampler = "ddim",
    *,
    labels: Tensor | None = None,
    conditions: Tensor | None = None,
    decode: Decode | None = None,
    n: int = 5000,
    features: str | FeatureExtractor = "effnet-lite0",
    seed: int = 0,
    guidance: float = 0.0,
    clip: bool | None = None,
    device: str = "auto",
    precision: str | None = None,
    options: Mapping[str, float] | None = None,
) -> list[Row]:
    """Measure `n` samples of `model` against `data`: distances, precision and recall, each with its card.

    With `labels` (or data that have them) and a model with classes, class agreement too. `features`: "pixels",
    "effnet-lite0" or an extractor of one's own. `data` are images: samples of latents are measured as what `decode`
    makes of them. A model that is told `conditions` `[m, …]` is told these in turn (default: those of `data`).
    Raises PdlabError for data that are not images, or too small an n.
    """
    source = source_of(data, labels)
    if not isinstance(source, ImageSource):
        raise PdlabError(f"{source.name} are no images: only images are measured")
    checkpoint = _checkpoint(model)
    steps = checkpoint.step_count(steps)
    machine = Machine(device, precision or checkpoint.precision)
    by = extractor(features, None, machine.device, source.shape) if isinstance(features, str) else features
    kinds = ["frechet", "kernel", "precision", "recall"]
    if checkpoint.denoiser.num_classes and source.num_classes:
        kinds.append("agreement")
    yardstick = Yardstick(source, by, n, None, kinds)  # type: ignore[arg-type]
    how: dict[str, Any] = {"sampler": sampler, "seed": seed, "clip": clip, "guidance": guidance, "options": options}
    if checkpoint.denoiser.condition is not None and conditions is None:
        conditions = source.conditions
    how |= {"conditions": conditions, "decode": decode}
    return measure(checkpoint, steps, yardstick, machine, **how)


def _checkpoint(model: Model) -> Checkpoint:
    return model if isinstance(model, Checkpoint) else Checkpoint(model)


def _shaped(denoiser: Denoiser, source: Source) -> Denoiser:
    """`denoiser`, told the shape of the examples of `source`, and that they are not bounded if they are not."""
    shaped = denoiser.around(denoiser.network)
    shaped.shape = tuple(source.shape)
    shaped.bounded = denoiser.bounded and source.bounded
    return shaped


def _fitting(
    denoiser: Denoiser,
    data: Source | Tensor,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    conditions: Tensor | None = None,
) -> Source:
    """`data` as a source that `denoiser` can be trained on; its network is asked once."""
    if not isinstance(denoiser, Denoiser):
        raise PdlabError(
            f"give a pdlab.Denoiser, not {type(denoiser).__name__}: Denoiser(network, output=…) makes one"
        )
    if labels is not None and classes is None and denoiser.num_classes:  # some of them may not occur
        classes = [str(k) for k in range(denoiser.num_classes)]
    source = source_of(data, labels, classes, conditions)
    shape, condition = denoiser.shape or source.shape, denoiser.condition
    check_fits(source, shape, denoiser.num_classes, condition, "the denoiser")
    zeros = torch.zeros(2, *source.shape, device=denoiser.device)
    told = torch.zeros(2, dtype=torch.int64, device=denoiser.device) if denoiser.num_classes else None
    if condition is not None:
        told = torch.zeros(2, *condition, device=denoiser.device)
    try:
        with torch.no_grad():
            copy.deepcopy(denoiser).eval()(zeros, 0.5, told)  # a norm would count this batch
    except PdlabError:
        raise
    except Exception as error:  # whatever a network of one's own raises
        takes = "(z, logsnr" + (", labels" if denoiser.num_classes else ", condition" if condition else "") + ")"
        raise PdlabError(
            f"{type(denoiser.network).__name__}{takes} fails on a batch of {list(source.shape)}: "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    return source


def _optimization(**fields: Any) -> Optimization:
    try:
        return Optimization(**fields)
    except TypeError:
        known = {field.name for field in dataclasses.fields(Optimization)}
        wrong = next(name for name in fields if name not in known)
        raise PdlabError(f"unknown setting {wrong!r}: there are {', '.join(sorted(known))}") from None


def _preset(
    denoiser: Denoiser,
    source: Source,
    weighting: str,
    teacher: Optimization | None,
    rounds: Optimization | None,
    first_steps: int,
    precision: str,
) -> Preset:
    """What checkpoints and runs record of a model of one's own."""
    schedule = denoiser.schedule
    rounds = rounds or Optimization(updates=2000, batch=128, lr=5e-4, anneal=True)
    return Preset(
        name="own",
        data=source.name,
        network=config_of(_shaped(denoiser, source)),
        output=denoiser.output,
        weighting=weighting,
        teacher=teacher,
        distill=rounds,
        guide=rounds,
        first_steps=first_steps,
        logsnr_min=schedule.logsnr_min,
        logsnr_max=schedule.logsnr_max,
        precision=precision,  # type: ignore[arg-type]
    )


def foreign(denoiser: Denoiser, source: Source, first_steps: int = 64) -> Checkpoint:
    """`denoiser`, trained elsewhere on `source`, as a checkpoint that is not kept anywhere yet.

    Raises PdlabError for data that do not fit.
    """
    source = _fitting(denoiser, source)
    preset = _preset(denoiser, source, "truncated", None, None, first_steps, "auto")
    return _candidate(_shaped(denoiser, source), source, preset, Machine("auto"), 0)


def _candidate(denoiser: Denoiser, source: Source, preset: Preset, machine: Machine, seed: int) -> Checkpoint:
    """With what is known of a teacher from elsewhere."""
    info: dict[str, Any] = {
        "model": TEACHER,
        "preset": to_dict(preset),
        "data": describe(source),
        "ema": False,
        "seed": seed,
        "teacher": None,
        "device": machine.describe(),
    }
    return Checkpoint(denoiser, info)


def kept(teacher: Checkpoint, run: Run) -> Checkpoint:
    """`teacher`, as RUN/teacher unless it lies somewhere already; PdlabError where another stands there."""
    if teacher.path is not None:
        return teacher
    run.check_free(TEACHER)
    path, network = run.path / TEACHER, twin(teacher.denoiser)
    if run.checkpoint(TEACHER) is None:
        files.save(path, teacher.denoiser, teacher.info)
        return files.load(path, network)
    there = files.load(path, network)
    mine, theirs = (model.denoiser.network.state_dict() for model in (teacher, there))
    if any(not torch.equal(value.cpu().float(), theirs[name].float()) for name, value in mine.items()):
        raise PdlabError(f"{path} is another teacher: choose another run")
    return there
