"""Train a teacher by a preset into a run folder."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pdlab.data.source import Source
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.errors import PdlabError
from pdlab.files import discard
from pdlab.networks.grow import grow
from pdlab.networks.registry import Own, build, conditioning
from pdlab.networks.unet import UNet
from pdlab.seeds import seed_for
from pdlab.training.checkpoint import Checkpoint, read_header, save
from pdlab.training.cost import Cost, check_memory, size, size_of, total_cost
from pdlab.training.log import Log
from pdlab.training.loop import CHANGEABLE, Trained, Upkeep, fit
from pdlab.training.machine import Machine
from pdlab.training.objective import DiffusionObjective
from pdlab.training.presets import Optimization, Preset, to_dict
from pdlab.training.run import Run

TEACHER = "teacher"
#: How the rounds will go may still change: it does not make another teacher.
_LATER = ("distill", "guide", "guidance_max", "first_steps")
_CHANGEABLE = ("preset.precision", *(f"preset.teacher.{name}" for name in ("updates", *CHANGEABLE)))


def train(
    preset: Preset,
    source: Source,
    run: Run,
    machine: Machine,
    *,
    denoiser: Denoiser | None = None,
    grow_from: Checkpoint | None = None,
    seed: int = 0,
    log: Log | None = None,
    upkeep: Upkeep = Upkeep(),
    snapshot_every: int = 0,
    picture: Callable[[Path], None] | None = None,
) -> Path:
    """Train the teacher of `preset` on `source`; returns its checkpoint folder, `run.path/teacher`.

    It starts as `denoiser`, or as that smaller one `grow_from` (see `networks.grow`), else at random. Every
    `snapshot_every` updates a checkpoint is left beside it, `teacher@UPDATES`, as usable as the last, and
    `picture` is called with it. A run that was interrupted goes on; one that is complete returns at once or, if
    `upkeep.change` allows and there are more updates than it had, goes on from where it ended, what it had made
    becoming the last snapshot. Raises PdlabError if `source` is not of the shape or classes that the network takes,
    if it cannot grow from that checkpoint, or the run was begun with other settings.
    """
    teaching = check_preset(preset, source)
    if denoiser is not None:
        denoiser = copy.deepcopy(denoiser)
        check_memory(size_of(denoiser), source.shape, teaching)
    else:
        denoiser = new_denoiser(preset, seed) if grow_from is None else grown_denoiser(preset, grow_from, seed)
    origin = None if grow_from is None else grow_from.sha256
    settings = to_dict(preset)
    denoiser = machine.place(denoiser)
    own = {name: value for name, value in settings.items() if name not in _LATER}
    own["precision"] = machine.precision_for(denoiser.network)
    claim = {"preset": own, "data": describe(source), "seed": seed, "grow_from": origin}
    claimed = run.claim("train", claim, machine.describe(), _CHANGEABLE, upkeep.change)
    if (done := run.checkpoint(TEACHER)) is not None:
        if not claimed.changed:
            run.drop_states(TEACHER, but_last=True)  # a kill may have come between the checkpoint and this
            return done
        _reopen(run, done, teaching.updates)
    run.check_free(TEACHER)
    if log is not None:
        for note in claimed.notes:
            log.say(note)
    source = source.to(machine.device)
    objective = DiffusionObjective(preset.weighting, teaching.label_drop, teaching.times)
    flops = size_of(denoiser).flops

    def keep(name: str, updates: int, trained: Trained) -> None:
        done = dataclasses.replace(teaching, updates=updates)
        info = {
            "model": TEACHER,
            "preset": settings,
            "data": describe(source),
            "ema": teaching.ema > 0,
            "seed": seed,
            "teacher": None,
            **({} if grow_from is None else {"grown_from": _origin(grow_from)}),
            "changes": trained.changes,
            "skipped": trained.skipped,
            "device": machine.describe(),
            "cost": dataclasses.asdict(Cost.of(done, flops, 0, trained.seconds)),
        }
        if run.checkpoint(name) is None:  # a run that goes on from before a snapshot comes by it again
            save(run.path / name, denoiser, info, trained.weights)

    def on_the_way(updates: int, trained: Trained) -> None:
        name = f"{TEACHER}@{updates}"
        keep(name, updates, trained)
        if picture is not None:
            picture(run.path / name)

    trained = fit(
        denoiser,
        objective,
        source,
        teaching,
        machine,
        stage=TEACHER,
        seed=seed,
        run=run,
        log=log,
        upkeep=upkeep,
        snapshot=on_the_way,
        snapshot_every=snapshot_every,
        keep_end=True,
    )
    keep(TEACHER, teaching.updates, trained)
    run.drop_states(TEACHER, but_last=True)
    return run.path / TEACHER


def _reopen(run: Run, done: Path, updates: int) -> None:
    """Let the teacher `done` become a snapshot of its run, which goes on to `updates`; PdlabError if it cannot."""
    header = read_header(done)
    had = header["info"]["preset"]["teacher"]["updates"] if header["info"] else 0
    if updates <= had:
        raise PdlabError(f"{done} is finished, with {had} updates: give more --updates, or choose another --run")
    if not run.holds_state(TEACHER, had):
        raise PdlabError(f"{done} is finished, and the state it ended in is gone: choose another --run")
    run.check_free(name := f"{TEACHER}@{had}")
    if (there := run.checkpoint(name)) is None:
        done.rename(run.path / name)
    elif read_header(there)["sha256"] == header["sha256"]:  # a kill came between the renaming and the first update
        discard(done)
    else:
        raise PdlabError(f"{there} is in the way: move it, or choose another --run")


def new_denoiser(preset: Preset, seed: int) -> Denoiser:
    """The untrained denoiser of `preset`, initialised from `seed`, on the CPU."""

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "initialization"))
        network = build(preset.network, preset.output, preset.teacher.dropout if preset.teacher else 0.0)
    schedule = CosineSchedule(preset.logsnr_min, preset.logsnr_max)
    bounded = len(preset.network.shape) == 3
    return Denoiser(network, preset.output, schedule, bounded=bounded, **conditioning(preset.network))


def grown_denoiser(preset: Preset, small: Checkpoint, seed: int) -> Denoiser:
    """The denoiser of `preset` that starts as `small`, enlarged; PdlabError where it cannot."""
    denoiser = new_denoiser(preset, seed)
    there, network = small.denoiser.network, denoiser.network
    if not isinstance(there, UNet) or not isinstance(network, UNet):
        raise PdlabError("only U-Nets grow: leave --grow-from out")
    if small.denoiser.output != preset.output:
        raise PdlabError(
            f"{small.path} predicts {small.denoiser.output}, this teacher {preset.output}: give "
            f"--output {small.denoiser.output}"
        )
    if preset.output != "x" and network.config.image_size != there.config.image_size:
        raise PdlabError(
            f"a network that predicts {preset.output} cannot start as one for smaller images: the noise in these "
            "is not theirs enlarged; grow with --output x"
        )
    grow(there, network)
    return denoiser


def _origin(small: Checkpoint) -> dict[str, Any]:
    whole = total_cost([small])  # with what it grew from itself
    return {"sha256": small.sha256, "data": small.info["data"]["name"], "cost": dataclasses.asdict(whole)}


def describe(source: Source) -> dict[str, Any]:
    """A data set as checkpoints record it."""
    return {
        "name": source.name,
        "split": source.split,
        "shape": list(source.shape),
        "num_classes": source.num_classes,
        "classes": list(getattr(source, "classes", ())),
        "digest": source.digest,
    }


def check_preset(preset: Preset, source: Source) -> Optimization:
    """How `preset` trains a teacher on `source`.

    Raises PdlabError unless its network takes the examples of `source`, and both fit into memory.
    """
    network, teaching = preset.network, preset.teaching
    taken = conditioning(network)
    check_fits(source, taken["shape"], taken["num_classes"], taken["condition"], f"preset {preset.name}")
    if not isinstance(network, Own):
        check_memory(size(network, preset.output), network.shape, teaching)
    return teaching


def check_fits(
    source: Source, shape: tuple[int, ...], num_classes: int, condition: tuple[int, ...] | None, what: str
) -> None:
    """Raise PdlabError unless `source` has examples of `shape` and, of a conditional network, its classes or
    conditions.
    """
    if tuple(source.shape) != tuple(shape):
        raise PdlabError(
            f"{what} takes examples of shape {_times(shape)}, but {source.name} has {_times(source.shape)}: "
            "choose the data set it was made for (--dataset), or override the network's size"
        )
    if num_classes and source.num_classes != num_classes:
        raise PdlabError(
            f"{what} is conditioned on {num_classes} classes, but {source.name} has {source.num_classes}: "
            f"give --set network.num_classes={source.num_classes}"
        )
    if condition is not None and source.condition != condition:
        there = f"of shape {_times(source.condition)}" if source.condition else "not there"
        raise PdlabError(
            f"{what} is told conditions of shape {_times(condition)}, and those of {source.name} are {there}: give "
            "conditions, one an example"
        )


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
