"""One round, and the ladder of them: 2N steps become N, again and again (algorithm 2)."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdlab.data.source import Source
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import Prediction
from pdlab.diffusion.schedule import diffuse
from pdlab.diffusion.weighting import WEIGHTINGS
from pdlab.distillation.conversion import CONVERTED, ConversionObjective, converted_student
from pdlab.distillation.guided import GUIDED, GuidedObjective, check_guidable, draw_guidance, guided_student
from pdlab.distillation.target import target_along, times_of
from pdlab.errors import PdlabError
from pdlab.networks import lora
from pdlab.networks.registry import twin
from pdlab.tensors import shapes_of
from pdlab.training.checkpoint import Checkpoint, Standing, copied, load, read_header, save
from pdlab.training.cost import Cost, check_memory, size_of
from pdlab.training.log import Log
from pdlab.training.loop import CHANGEABLE, Trained, Upkeep, fit, trainable
from pdlab.training.machine import Machine
from pdlab.training.objective import TIMES, Drawn, Objective, needed
from pdlab.training.presets import Optimization, Preset, to_dict
from pdlab.training.run import Run
from pdlab.training.teacher import check_fits, describe


def ladder(first: int, last: int = 1, hops: int = 2) -> list[int]:
    """The students' step counts from a teacher of `first` steps: first/hops, first/hops², …, `last`.

    Raises PdlabError unless dividing `first` by `hops` again and again reaches `last`.
    """
    rungs, steps = [], first
    while hops > 1 and steps > last > 0 and steps % hops == 0:
        steps //= hops
        rungs.append(steps)
    if not rungs or steps != last:
        if hops < 2:
            raise PdlabError(f"a student step replaces at least 2 of the teacher's, not {hops}")
        last, rounds = max(last, 1), 1
        while last * hops ** (rounds + 1) <= first:
            rounds += 1
        how = "halving" if hops == 2 else f"dividing by {hops}"
        raise PdlabError(
            f"{how} {first} steps again and again does not give {last}: take --from as --to times a power of "
            f"{hops}, e.g. --from {last * hops**rounds} --to {last}"
        )
    return rungs


def round_settings(settings: Optimization, steps: int) -> Optimization:
    """The settings of the round to `steps`: the paper doubles the updates of those to 2 and to 1 step."""
    return dataclasses.replace(settings, updates=settings.updates * (2 if steps <= 2 else 1))


class RoundObjective(Objective):
    """The student's: one DDIM step of a student of `steps` steps against `hops` of the `teacher`'s.

    Where both take a guidance weight, one is drawn for each example and given to both. `drawn_as` says how i is
    drawn (see `training.objective.TIMES`). A variant of the method overrides `times` or `target`.
    """

    def __init__(self, teacher: Denoiser, steps: int, weighting: str, hops: int = 2) -> None:
        self.teacher, self.steps, self.weighting, self.hops = teacher, steps, WEIGHTINGS[weighting], hops
        self.drawn_as = "stratified"

    def times(self, n: int, generator: torch.Generator, device: torch.device) -> list[Tensor]:
        """The teacher's times, `hops` + 1 of `[n]`, from the student's t = i/N, i ~ U{1, …, N}, to t − 1/N."""
        i = torch.ceil(TIMES[self.drawn_as](n, generator, device) * self.steps)
        return times_of(i, self.steps, self.hops)

    def target(self, z: Tensor, times: list[Tensor], labels: Tensor | None, guidance: Tensor | None) -> Prediction:
        """What the student is taught at `z` `[B, …]` and `times[0]`."""
        return target_along(self.teacher, z, times, labels, guidance).prediction

    def draw(self, denoiser: Denoiser, x: Tensor, labels: Tensor | None, generator: torch.Generator) -> Drawn:
        """See Objective."""
        times = torch.stack(self.times(len(x), generator, x.device), dim=1)
        eps = torch.randn(x.shape, generator=generator, device=x.device)
        w = draw_guidance(denoiser, len(x), generator, x.device)
        return {"x": x, "labels": labels, "times": times, "eps": eps, "w": w}

    def loss(self, denoiser: Denoiser, drawn: Drawn) -> Tensor:
        """See Objective."""
        (x, eps, stacked), labels, w = needed(drawn, "x", "eps", "times"), drawn["labels"], drawn["w"]
        times = list(stacked.unbind(1))
        z = diffuse(denoiser.schedule, x, times[0], eps)
        target = self.target(z, times, labels, w)
        return self.weighting.loss(target, denoiser(z, times[0], labels, w))


class Ladder:
    """A student and its teacher that climb down together: `descend(steps)` is one round.

    Two networks serve all rounds: the student starts a round as a copy of the teacher's weights, and its
    weights become the next teacher's, in place. The student is trained in evaluation mode: no dropout.

    With a `rank` the student is the teacher of the first round with an adapter (see `networks.lora`), which goes on
    from round to round, so that any student is that teacher and one adapter; the next round's teacher is the two
    merged.

    Args:
        teacher: any denoiser; left as it is.
        weighting: of the student's loss.
        hops: how many of the teacher's steps one of the student's replaces; the paper's 2.
        objective: what a round minimises: called at its beginning with (teacher, steps, weighting, hops).
        rank: of the adapter, drawn by `seed`; None for students that are trained whole.

    Attributes:
        adapter: its tensors, as files have them; empty without.
    """

    def __init__(
        self,
        teacher: Denoiser,
        source: Source,
        machine: Machine,
        *,
        weighting: str = "truncated",
        hops: int = 2,
        objective: Callable[[Denoiser, int, str, int], RoundObjective] = RoundObjective,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        self.machine, self.weighting, self.hops, self.objective = machine, weighting, hops, objective
        self.source = source.to(machine.device)
        self.teacher = machine.place(copy.deepcopy(teacher)).eval().requires_grad_(False)
        student = copy.deepcopy(teacher)
        if not any(p.requires_grad for p in student.parameters()):  # it was frozen as a whole, not in part
            student.requires_grad_(True)
        self.adapter: dict[str, nn.Parameter] = {}
        if rank is not None:
            self._base = copy.deepcopy(self.teacher.network.state_dict())
            self.adapter = lora.inject(student.network, rank, seed)
        self.student = machine.place(student)
        self._live_teacher = trainable(self.teacher, machine)
        self._live_student = trainable(self.student, machine)

    def descend(
        self,
        steps: int,
        settings: Optimization,
        *,
        seed: int = 0,
        start: Denoiser | None = None,
        run: Run | None = None,
        log: Log | None = None,
        upkeep: Upkeep = Upkeep(),
    ) -> Trained:
        """Distil the current teacher into a student of `steps` steps, `self.student`.

        The student starts as its teacher, or (trained whole) as `start`. With a moving average in `settings` it
        ends as that: the average is sampled, kept, and the next teacher.
        """
        if not self.adapter:  # else it is what its teacher is made of
            self.student.network.load_state_dict((start or self.teacher).network.state_dict())
        self.student.steps = steps
        objective = self.objective(self._live_teacher, steps, self.weighting, self.hops)
        objective.drawn_as = settings.times
        trained = fit(
            self.student,
            objective,
            self.source,
            settings,
            self.machine,
            stage=rung_name(steps),
            seed=seed,
            run=run,
            log=log,
            upkeep=upkeep,
            live=self._live_student,
            dropout=False,
        )
        self.student.network.load_state_dict(trained.weights)
        return trained

    @torch.no_grad()
    def promote(self, student: Denoiser | None = None, adapter: Mapping[str, Tensor] | None = None) -> None:
        """Make the student (or another denoiser of the same network) the teacher of the next round.

        Of a ladder of adapters another is given with its `adapter`.
        """
        student = student or self.student
        self.teacher.steps = student.steps
        if not self.adapter:
            self.teacher.network.load_state_dict(student.network.state_dict())
            return
        for name, tensor in (adapter or {}).items():
            self.adapter[name].copy_(tensor)
        self.teacher.network.load_state_dict(self._base)
        lora.merge(self.teacher.network, self.adapter)


def check_halvable(teacher: Denoiser) -> None:
    """Raise PdlabError for an eps network: the paper reports that distilling it did not work well."""
    if teacher.output == "eps":
        raise PdlabError(
            "an eps network is not halved: near alpha = 0 its x̂ is an error divided by alpha, and the paper "
            "reports that distillation did not work well with it; train with output x, v or both, or convert it "
            "first, as pdlab distill does"
        )


#: The name of what a run's adapters stand on, where it is not of the run.
BASE = "base"
#: The names of what may come between a teacher and its first student.
STAGES = (CONVERTED, GUIDED)


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
    hops: int = 2,
    objective: Callable[[Denoiser, int, str, int], RoundObjective] = RoundObjective,
    rank: int | None = None,
    seed: int = 0,
    log: Log | None = None,
    upkeep: Upkeep = Upkeep(),
) -> list[Path]:
    """All rounds from a teacher read at `first` steps down to a student of `last`; returns their checkpoints.

    The rounds go by `preset.distill`, each replacing `hops` steps by one and minimising `objective` (see `Ladder`);
    with `preset.guidance_max` a student that takes a guidance weight comes before them, by `preset.guide`, unless
    `teacher` is one, and before all a v network, by the same settings, if `teacher` predicts eps. Both change what
    the network takes or says, and are trained whole; with a `rank` the students are adapters (see `Ladder`) that
    stand on the last of them, or on `teacher`, of which the run then keeps a copy, RUN/base, unless it is its own.
    Finished rounds are kept and an interrupted one goes on. Every checkpoint names its teacher's sha256. Raises
    PdlabError for step counts that `hops` do not connect, other data, or a foreign run folder.
    """
    rungs = check_rounds(teacher, source, preset, first, last, hops, rank)
    settings, weighting, firsts = preset.distill, preset.weighting, _first_stages(teacher.denoiser, preset)
    # Not `last`: a run that stopped at 2 steps may go on to 1.
    claim = {
        "teacher": teacher.sha256,
        "settings": dataclasses.asdict(settings),
        "guide": dataclasses.asdict(preset.guide) if firsts else None,
        "guidance_max": preset.guidance_max,
        "first": first,
        "hops": hops,
        "objective": f"{objective.__module__}.{objective.__qualname__}",
        "lora": rank,
        "seed": seed,
        "data": describe(source),
        "precision": machine.precision_for(teacher.denoiser.network),
    }
    to_come = ["settings"] if any(run.checkpoint(name) for name in firsts) else ["settings", "guide"]
    changeable = ("precision", *(f"{part}.{name}" for part in to_come for name in CHANGEABLE))
    claimed = run.claim("distill", claim, machine.describe(), changeable, upkeep.change)
    if claimed.changed and all(run.checkpoint(rung_name(steps)) for steps in rungs):
        raise PdlabError(f"every round down to {last} steps is finished: leave --change out, or give another --to")
    for name in (*firsts, *map(rung_name, rungs)):
        run.check_free(name)
    if log is not None:
        for note in claimed.notes:
            log.say(note)
    now = to_dict(preset)
    own = {name: now[name] for name in ("distill", "guide", "guidance_max")}
    recorded = {**teacher.info["preset"], **own, "first_steps": first}
    paths = []
    for name in firsts:
        teacher = _first(name, teacher, source, preset, run, machine, recorded, seed=seed, log=log, upkeep=upkeep)
        paths.append(run.path / name)
    steps_down = Ladder(
        teacher.denoiser,
        source,
        machine,
        weighting=weighting,
        hops=hops,
        objective=objective,
        rank=rank,
        seed=seed,
    )
    flops = size_of(teacher.denoiser).flops
    standing, learning = None, 3 * flops
    if rank is not None:
        standing = _standing(teacher, run, rank)
        learning = 3 * size_of(steps_down.student, as_it_is=True).flops - flops  # no gradients of what stays
    parent = teacher.sha256
    for steps in rungs:
        path = run.path / rung_name(steps)
        if run.checkpoint(path.name) is not None:
            done = _load_rung(path, parent, steps_down.teacher)
            if shapes_of(done.adapter) != shapes_of(steps_down.adapter):
                raise PdlabError(f"{path} is no student of this run's --lora: remove it to distil it again")
            steps_down.promote(done.denoiser, done.adapter)
            parent = done.sha256
        else:
            optimization = round_settings(settings, steps)
            trained = steps_down.descend(steps, optimization, seed=seed, run=run, log=log, upkeep=upkeep)
            info = {
                **teacher.info,
                "preset": recorded,
                "model": "distilled",
                "ema": optimization.ema > 0,
                "seed": seed,
                "teacher": parent,
                "optimization": dataclasses.asdict(optimization),
                "hops": hops,
                "changes": trained.changes,
                "skipped": trained.skipped,
                "device": machine.describe(),
                "cost": dataclasses.asdict(Cost.of(optimization, flops, hops, trained.seconds, learning)),
            }
            parent = save(path, steps_down.student, info, steps_down.adapter, standing)
            steps_down.promote()
        run.drop_states(path.name)
        paths.append(path)
    return paths


def _first_stages(teacher: Denoiser, preset: Preset) -> list[str]:
    """What comes before the halvings: an eps network becomes a v network, then one that is told the guidance."""
    convert = [CONVERTED] if teacher.output == "eps" else []
    return convert + ([GUIDED] if preset.guidance_max and not teacher.guidance_max else [])


def _first(
    name: str,
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
    """The checkpoint RUN/`name` of a stage before the halvings, made from `teacher` or found finished."""
    path, before = run.path / name, teacher.denoiser
    student = converted_student(before) if name == CONVERTED else guided_student(before, preset.guidance_max, seed)
    objective: type[ConversionObjective] | type[GuidedObjective]
    objective = ConversionObjective if name == CONVERTED else GuidedObjective
    if run.checkpoint(name) is None:
        original = machine.place(copy.deepcopy(before)).eval().requires_grad_(False)
        student = machine.place(student)
        trained = fit(
            student,
            objective(trainable(original, machine), preset.weighting, preset.guide.times),
            source.to(machine.device),
            preset.guide,
            machine,
            stage=name,
            seed=seed,
            run=run,
            log=log,
            upkeep=upkeep,
            dropout=False,
        )
        cost = Cost.of(preset.guide, size_of(student).flops, objective.teacher_forwards, trained.seconds)
        info = {
            **teacher.info,
            "preset": recorded,
            "model": name,
            "ema": preset.guide.ema > 0,
            "seed": seed,
            "teacher": teacher.sha256,
            "optimization": dataclasses.asdict(preset.guide),
            "changes": trained.changes,
            "skipped": trained.skipped,
            "device": machine.describe(),
            "cost": dataclasses.asdict(cost),
        }
        save(path, student, info, trained.weights)
    run.drop_states(name)
    return _load_rung(path, teacher.sha256, student)


def check_rounds(
    teacher: Checkpoint,
    source: Source,
    preset: Preset,
    first: int,
    last: int,
    hops: int = 2,
    rank: int | None = None,
) -> list[int]:
    """The rungs of `distill` with these arguments; PdlabError, before anything is written, if it cannot be done."""
    rungs = ladder(first, last, hops)
    if rank is not None:
        lora.check(teacher.denoiser.network, rank)
        if teacher.adapter:
            raise PdlabError(
                f"{teacher.path} is an adapter itself: go on in its own run, or make it whole with "
                "pdlab.save(path, pdlab.load(…))"
            )
    for steps in rungs:
        round_settings(preset.distill, steps)
    if preset.guidance_max and not teacher.denoiser.guidance_max:
        check_guidable(teacher.denoiser, preset.guidance_max)
    if teacher.denoiser.steps not in (None, first):
        raise PdlabError(
            f"{teacher.path} was distilled for {teacher.denoiser.steps} steps: give --from {teacher.denoiser.steps}"
        )
    check_same_data(teacher, source)
    for settings in (preset.distill, *([preset.guide] if _first_stages(teacher.denoiser, preset) else [])):
        check_memory(size_of(teacher.denoiser), teacher.shape, settings)
    return rungs


def check_same_data(checkpoint: Checkpoint, source: Source) -> None:
    """Raise PdlabError unless `source` is the data set that `checkpoint` was trained on, by name or by content."""
    name = checkpoint.info["data"]["name"]
    if name != source.name and checkpoint.info["data"]["digest"] != source.digest:
        raise PdlabError(
            f"{checkpoint.path} was trained on {name}, not on {source.name}: leave --dataset out, or give {name}"
        )
    denoiser = checkpoint.denoiser
    check_fits(source, checkpoint.shape, denoiser.num_classes, denoiser.condition, str(checkpoint.path))


def _standing(teacher: Checkpoint, run: Run, rank: int) -> Standing:
    """On what the run's adapters stand: `teacher`, beside them."""
    assert teacher.path is not None
    place = teacher.path.resolve()
    if place.parent != run.path.resolve() or place.name.startswith("."):
        place = run.path / BASE
        if run.checkpoint(BASE) is None:
            run.check_free(BASE)
            copied(teacher.path, place)
        elif read_header(place)["sha256"] != teacher.sha256:
            raise PdlabError(f"{place} is another checkpoint than {teacher.path}: choose another --run")
    return {"rank": rank, "base": place.name, "sha256": teacher.sha256}


def _load_rung(path: Path, parent: str, like: Denoiser) -> Checkpoint:
    try:
        done = load(path, twin(like))
    except PdlabError as error:
        raise PdlabError(f"{error}; remove {path} to distil it again") from None
    if done.info.get("teacher") != parent:
        raise PdlabError(f"{path} has another teacher than this run's: choose another --run, or remove {path}")
    return done
