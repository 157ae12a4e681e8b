"""One halving, and the ladder of them: 2N steps become N, again and again (algorithm 2)."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdlab.data.source import Source
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import diffuse
from pdlab.diffusion.weighting import WEIGHTINGS
from pdlab.distillation.guided import GUIDED, GuidedObjective, draw_guidance, guided_student
from pdlab.distillation.target import student_target
from pdlab.errors import PdlabError
from pdlab.training.checkpoint import Checkpoint, build_network, load, save
from pdlab.training.cost import Cost, check_memory, forward_flops
from pdlab.training.log import Log
from pdlab.training.loop import CHANGEABLE, Trained, Upkeep, fit, trainable
from pdlab.training.machine import Machine
from pdlab.training.objective import stratified_times
from pdlab.training.presets import Optimization, Preset
from pdlab.training.run import Run
from pdlab.training.teacher import check_fits, describe, settings_of


def ladder(first: int, last: int = 1) -> list[int]:
    """The students' step counts from a teacher of `first` steps: first/2, first/4, …, `last`.

    Raises PdlabError unless halving `first` reaches `last`.
    """
    rungs, steps = [], first
    while steps > last > 0 and steps % 2 == 0:
        steps //= 2
        rungs.append(steps)
    if not rungs or steps != last:
        good = max(last, 1) * 2 ** max(1, (max(first, 1) // max(last, 1)).bit_length() - 1)
        raise PdlabError(
            f"halving {first} steps again and again does not give {last}: "
            f"take --from as --to times a power of two, e.g. --from {good} --to {max(last, 1)}"
        )
    return rungs


def round_settings(settings: Optimization, steps: int) -> Optimization:
    """The settings of the halving to `steps`: the paper doubles the updates of those to 2 and to 1 step."""
    return dataclasses.replace(settings, updates=settings.updates * (2 if steps <= 2 else 1))


class HalvingObjective:
    """The student's: one DDIM step of a student of `steps` steps against two of the `teacher`'s.

    `steps` is a 0-d integer tensor on the device, so that one compiled function serves every round. Where both
    take a guidance weight, one is drawn for each example and given to both.
    """

    teacher_forwards = 2

    def __init__(self, teacher: Denoiser, steps: Tensor, weighting: str) -> None:
        self.teacher, self.steps, self.weighting = teacher, steps, WEIGHTINGS[weighting]

    def __call__(self, denoiser: Denoiser, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Losses `[B]` for data `x` `[B, …]`, at i ~ U{1, …, N}, t = i/N."""
        i = torch.ceil(stratified_times(len(x), generator, x.device) * self.steps)
        t = i / self.steps
        eps = torch.randn(x.shape, generator=generator, device=x.device)
        w = draw_guidance(denoiser, len(x), generator, x.device)
        z = diffuse(denoiser.schedule, x, t, eps)
        target = student_target(self.teacher, z, i, self.steps, labels, w)
        return self.weighting.loss(target.prediction, denoiser(z, t, labels, w))


class Ladder:
    """A student and its teacher that climb down together: `halve(steps)` is one round.

    Two networks serve all rounds: the student starts a round as a copy of the teacher's weights, and its
    weights become the next teacher's, in place.
    """

    def __init__(self, teacher: Denoiser, weighting: str, source: Source, machine: Machine) -> None:
        check_distillable(teacher)
        self.machine = machine
        self.source = source.to(machine.device)
        self.teacher = machine.place(copy.deepcopy(teacher)).eval().requires_grad_(False)
        self.student = machine.place(_without_dropout(teacher))
        self._live_teacher = trainable(self.teacher, machine)
        self._live_student = trainable(self.student, machine)
        self._steps = torch.ones((), dtype=torch.int64, device=machine.device)
        self._objective = HalvingObjective(self._live_teacher, self._steps, weighting)

    def halve(
        self,
        steps: int,
        settings: Optimization,
        *,
        seed: int = 0,
        run: Run | None = None,
        log: Log | None = None,
        upkeep: Upkeep = Upkeep(),
    ) -> Trained:
        """Distil the current teacher into a student of `steps` steps, `self.student`.

        With a moving average in `settings` the student ends as that: it is sampled, kept, and the next teacher.
        """
        self.student.network.load_state_dict(self.teacher.network.state_dict())
        self.student.steps = steps
        self._steps.fill_(steps)
        trained = fit(
            self.student,
            self._objective,
            self.source,
            settings,
            self.machine,
            stage=rung_name(steps),
            seed=seed,
            run=run,
            log=log,
            upkeep=upkeep,
            live=self._live_student,
        )
        self.student.network.load_state_dict(trained.weights)
        return trained

    def promote(self, student: Denoiser | None = None) -> None:
        """Make the student (or another denoiser of the same network) the teacher of the next round."""
        student = student or self.student
        self.teacher.network.load_state_dict(student.network.state_dict())
        self.teacher.steps = student.steps


def check_distillable(teacher: Denoiser) -> None:
    """Raise PdlabError for an eps network: the paper reports that distilling it did not work well."""
    if teacher.output == "eps":
        raise PdlabError(
            "an eps network is not distilled: near alpha = 0 its x̂ is an error divided by alpha, and the "
            "paper reports that distillation did not work well with it; train with --output x, v or both"
        )


def rung_name(steps: int) -> str:
    """Name of a rung's checkpoint and stage."""
    return f"student-{steps:04d}"


def distill(
    teacher: Checkpoint,
    source: Source,
    preset: Preset,
    run: Run,
    machine: Machine,
    *,
    first: int,
    last: int = 1,
    seed: int = 0,
    log: Log | None = None,
    upkeep: Upkeep = Upkeep(),
) -> list[Path]:
    """All rounds from a teacher read at `first` steps down to a student of `last`; returns their checkpoints.

    The rounds go by `preset.distill`; with `preset.guidance_max` a student that takes a guidance weight comes
    before them, by `preset.guide`, unless `teacher` is one. Finished rounds are kept and an interrupted one goes
    on. Every checkpoint names its teacher's sha256. Raises PdlabError for step counts that halving does not
    connect, other data, or a foreign run folder.
    """
    rungs = check_rounds(teacher, source, preset, first, last)
    settings, weighting = preset.distill, preset.weighting
    # Not `last`: a run that stopped at 2 steps may go on to 1.
    claim = {
        "teacher": teacher.sha256,
        "settings": dataclasses.asdict(settings),
        "guide": dataclasses.asdict(preset.guide) if preset.guidance_max else None,
        "guidance_max": preset.guidance_max,
        "first": first,
        "seed": seed,
        "data": describe(source),
        "precision": machine.precision_for(teacher.denoiser.network),
    }
    to_come = ["settings"] if run.checkpoint(GUIDED) else ["settings", "guide"]
    changeable = ("precision", *(f"{part}.{name}" for part in to_come for name in CHANGEABLE))
    claimed = run.claim("distill", claim, machine.describe(), changeable, upkeep.change)
    if claimed.changed and all(run.checkpoint(rung_name(steps)) for steps in rungs):
        raise PdlabError(f"every round down to {last} steps is finished: leave --change out, or give another --to")
    for name in (GUIDED, *map(rung_name, rungs)):
        run.check_free(name)
    if log is not None:
        for note in claimed.notes:
            log.say(note)
    now = settings_of(preset)
    own = {name: now[name] for name in ("distill", "guide", "guidance_max")}
    recorded = {**teacher.info["preset"], **own, "first_steps": first}
    paths = []
    if preset.guidance_max and not teacher.denoiser.guidance_max:
        teacher = _guide(teacher, source, preset, run, machine, recorded, seed=seed, log=log, upkeep=upkeep)
        paths.append(run.path / GUIDED)
    steps_down = Ladder(teacher.denoiser, weighting, source, machine)
    network = teacher.denoiser.network.config
    flops = forward_flops(network, teacher.denoiser.output)
    parent = teacher.sha256
    for steps in rungs:
        path = run.path / rung_name(steps)
        if run.checkpoint(path.name) is not None:
            done = _load_rung(path, parent)
            steps_down.promote(done.denoiser)
            parent = done.sha256
        else:
            optimization = round_settings(settings, steps)
            trained = steps_down.halve(steps, optimization, seed=seed, run=run, log=log, upkeep=upkeep)
            info = {
                **teacher.info,
                "preset": recorded,
                "model": "distilled",
                "ema": optimization.ema > 0,
                "seed": seed,
                "teacher": parent,
                "optimization": dataclasses.asdict(optimization),
                "changes": trained.changes,
                "skipped": trained.skipped,
                "device": machine.describe(),
                "cost": dataclasses.asdict(Cost.of(optimization, flops, 2, trained.seconds)),
            }
            parent = save(path, steps_down.student, info)
            steps_down.promote()
        run.drop_states(path.name)
        paths.append(path)
    return paths


def _guide(
    teacher: Checkpoint,
    source: Source,
    preset: Preset,
    run: Run,
    machine: Machine,
    recorded: dict[str, Any],
    *,
    seed: int,
    log: Log | None,
    upkeep: Upkeep,
) -> Checkpoint:
    """Stage one: the checkpoint RUN/guided, made from `teacher` or found finished."""
    path = run.path / GUIDED
    if run.checkpoint(GUIDED) is None:
        original = machine.place(copy.deepcopy(teacher.denoiser)).eval().requires_grad_(False)
        student = machine.place(guided_student(teacher.denoiser, preset.guidance_max, seed))
        trained = fit(
            student,
            GuidedObjective(trainable(original, machine), preset.weighting),
            source.to(machine.device),
            preset.guide,
            machine,
            stage=GUIDED,
            seed=seed,
            run=run,
            log=log,
            upkeep=upkeep,
        )
        flops = forward_flops(student.network.config, student.output)
        info = {
            **teacher.info,
            "preset": recorded,
            "model": GUIDED,
            "ema": preset.guide.ema > 0,
            "seed": seed,
            "teacher": teacher.sha256,
            "optimization": dataclasses.asdict(preset.guide),
            "changes": trained.changes,
            "skipped": trained.skipped,
            "device": machine.describe(),
            "cost": dataclasses.asdict(
                Cost.of(preset.guide, flops, GuidedObjective.teacher_forwards, trained.seconds)
            ),
        }
        save(path, student, info, trained.weights)
    run.drop_states(GUIDED)
    return _load_rung(path, teacher.sha256)


def check_rounds(teacher: Checkpoint, source: Source, preset: Preset, first: int, last: int) -> list[int]:
    """The rungs of `distill` with these arguments; PdlabError, before anything is written, if it cannot be done."""
    rungs = ladder(first, last)
    for steps in rungs:
        round_settings(preset.distill, steps)
    check_distillable(teacher.denoiser)
    if teacher.denoiser.steps not in (None, first):
        raise PdlabError(
            f"{teacher.path} was distilled for {teacher.denoiser.steps} steps: give --from {teacher.denoiser.steps}"
        )
    check_same_data(teacher, source)
    for settings in (preset.distill, *([preset.guide] if preset.guidance_max else [])):
        check_memory(teacher.denoiser.network.config, teacher.denoiser.output, settings)  # type: ignore[arg-type]
    return rungs


def check_same_data(checkpoint: Checkpoint, source: Source) -> None:
    """Raise PdlabError unless `source` is the data set that `checkpoint` was trained on."""
    name = checkpoint.info["data"]["name"]
    if name != source.name:
        raise PdlabError(
            f"{checkpoint.path} was trained on {name}, not on {source.name}: leave --dataset out, or give {name}"
        )
    check_fits(source, checkpoint.shape, checkpoint.denoiser.num_classes, str(checkpoint.path))


def _load_rung(path: Path, parent: str) -> Checkpoint:
    try:
        done = load(path)
    except PdlabError as error:
        raise PdlabError(f"{error}; remove {path} to distil it again") from None
    if done.info.get("teacher") != parent:
        raise PdlabError(f"{path} has another teacher than this run's: choose another --run, or remove {path}")
    return done


def _without_dropout(denoiser: Denoiser) -> Denoiser:
    network = build_network(denoiser.network.config, denoiser.output)  # type: ignore[arg-type]
    network.load_state_dict(denoiser.network.state_dict())
    return denoiser.around(network)
