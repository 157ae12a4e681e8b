"""Long runs: what goes wrong on the way can be put right in the same run, which can be extended and watched."""

import dataclasses
import itertools
import json
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pdlab import data
from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError
from pdlab.metrics import gauge
from pdlab.metrics.features import Pixels
from pdlab.metrics.gauge import Gauge
from pdlab.metrics.kernel import kernel_distance
from pdlab.seeds import seed_for
from pdlab.training import loop
from pdlab.training.checkpoint import load
from pdlab.training.log import Log
from pdlab.training.loop import Stopped, Trained, Upkeep, fit
from pdlab.training.machine import Machine
from pdlab.training.objective import DiffusionObjective
from pdlab.training.presets import Optimization
from pdlab.training.run import Run
from tests import sealed
from tests.command import refused
from tests.training.test_loop import TINY, StopAfter, equal, fresh, run_fit

CPU = ["--device", "cpu"]
SMALL = ["--set", "network.width=16", "--set", "network.blocks=1", "--batch", "8", *CPU]
CONSTANT = ["--set", "teacher.anneal=false", "--set", "teacher.warmup=4"]


class Poison(DiffusionObjective):
    """The losses of these updates (the first is 1) are not finite, however often they are met."""

    def __init__(self, *updates: int) -> None:
        super().__init__("truncated")
        self.streams = {seed_for(0, "teacher", update - 1) for update in updates}
        self.met = 0

    def __call__(self, denoiser, x, labels, generator):  # type: ignore[no-untyped-def]
        losses = super().__call__(denoiser, x, labels, generator)
        bad = generator.initial_seed() in self.streams
        self.met += bad
        return losses * float("nan") if bad else losses


def train_on(
    objective: DiffusionObjective, run: Run, upkeep: Upkeep, settings: Optimization = TINY.teacher
) -> Trained:
    machine = Machine("cpu", "fp32")
    with Log(run.path, quiet=True) as log:
        return fit(fresh(), objective, data.load("digits"), settings, machine, run=run, log=log, upkeep=upkeep)


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def without_updates(monkeypatch: pytest.MonkeyPatch, *updates: int) -> dict[str, Tensor]:
    """The weights of a run in which these updates change nothing."""
    now = [0]
    factor, step, follow = loop.lr_factor, loop.Optimizers.step, loop.EMA.update

    def count(settings: Optimization, k: int) -> float:
        now[0] = k + 1
        return factor(settings, k)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "lr_factor", count)
        patched.setattr(loop.Optimizers, "step", lambda self, f: None if now[0] in updates else step(self, f))
        patched.setattr(loop.EMA, "update", lambda self, k: None if k + 1 in updates else follow(self, k))
        return run_fit(TINY.teacher).weights


@pytest.mark.parametrize("save_every", [0.0, 1e9])
def test_a_bad_update_is_passed_over(save_every: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes back to its last state, or its beginning, and on as if that batch had not been drawn."""
    with Run(tmp_path) as run:
        trained = train_on(Poison(6, 17), run, Upkeep(save_every=save_every, skip_bad=2))
    assert trained.skipped == [6, 17]
    assert equal(trained.weights, without_updates(monkeypatch, 6, 17))
    assert [line["update"] for line in lines(tmp_path) if "passed over" in str(line.get("note"))] == [6, 17]
    updates = [line["update"] for line in lines(tmp_path)]
    assert updates == sorted(updates)


def test_no_more_updates_are_passed_over_than_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison = Poison(6, 17)
    with Run(tmp_path) as run:
        for skip, words in ((0, "update 6 .*--skip-bad 1;.*--change"), (1, "update 17 .*--skip-bad 2;")):
            for _ in range(2):  # the same command again meets the same batch
                with pytest.raises(PdlabError, match=words):
                    train_on(poison, run, Upkeep(save_every=0, skip_bad=skip))
        assert run.load_state("teacher")[1]["updates"] == 16
        trained = train_on(poison, run, Upkeep(save_every=0, skip_bad=2))
    assert equal(trained.weights, without_updates(monkeypatch, 6, 17))


def test_a_stop_while_a_bad_update_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StopThere(Poison):
        def __call__(self, *args):  # type: ignore[no-untyped-def]
            before = self.met
            losses = super().__call__(*args)
            if self.met > before == 0:
                signal.raise_signal(signal.SIGINT)
            return losses

    with Run(tmp_path) as run:
        with pytest.raises(Stopped):
            train_on(StopThere(6), run, Upkeep(save_every=0, skip_bad=1))
        trained = train_on(Poison(6), run, Upkeep(skip_bad=1))
    assert equal(trained.weights, without_updates(monkeypatch, 6))


def test_an_update_that_ruins_the_weights_is_not_blamed_on_the_next(tmp_path: Path) -> None:
    """Its own loss was finite: passing over the next one, and the one after it, would mend nothing."""
    settings = dataclasses.replace(TINY.teacher, lr=1e39, warmup=0)
    with Run(tmp_path) as run, pytest.raises(PdlabError, match=r"not finite after update 1 .*--change"):
        train_on(DiffusionObjective("truncated"), run, Upkeep(skip_bad=9), settings)


def test_a_bad_update_without_a_run_is_one_line() -> None:
    with pytest.raises(PdlabError, match="at update 6 of teacher, and nothing is kept: take a lower lr"):
        fit(
            fresh(), Poison(6), data.load("digits"), TINY.teacher, Machine("cpu", "fp32"), upkeep=Upkeep(skip_bad=3)
        )


def stop_after(k: int, run: Path, pdlab, monkeypatch: pytest.MonkeyPatch, *args: object) -> None:  # type: ignore[no-untyped-def]
    """`pdlab train digits`, interrupted in update `k`."""
    left = [k]

    class Stopping(DiffusionObjective):
        def __call__(self, *args):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGINT)
            return super().__call__(*args)

    with monkeypatch.context() as patched:
        patched.setattr("pdlab.training.teacher.DiffusionObjective", Stopping)
        assert pdlab("train", "digits", "--run", run, *SMALL, *args).code == 130


def test_lr_warmup_clip_and_precision_change_on_the_way(
    pdlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["--updates", 12, "--lr", 2e-3, *CONSTANT]
    stop_after(8, tmp_path / "r", pdlab, monkeypatch, *train)
    halved = ["--updates", 12, "--lr", 1e-3, *CONSTANT]
    before = (tmp_path / "r" / "train.json").read_bytes()
    refused(
        pdlab("train", "digits", "--run", tmp_path / "r", *SMALL, *halved), "lr was 0.002, is 0.001", "--change"
    )
    assert (tmp_path / "r" / "train.json").read_bytes() == before
    assert pdlab("train", "digits", "--run", tmp_path / "r", *SMALL, *halved, "--change").code == 0
    info = load(tmp_path / "r" / "teacher").info
    assert info["changes"] == [{"update": 9, "was": {"lr": 0.002}, "now": {"lr": 0.001}}]
    assert info["preset"]["teacher"]["lr"] == 0.001
    (note,) = [line for line in lines(tmp_path / "r") if "note" in line]
    assert note["update"] == 9
    assert "lr is 0.001, was 0.002" in str(note["note"])

    # As one run whose learning rate is halved there.
    factor = loop.lr_factor
    with monkeypatch.context() as patched:
        patched.setattr(loop, "lr_factor", lambda settings, k: factor(settings, k) * (0.5 if k >= 8 else 1))
        assert pdlab("train", "digits", "--run", tmp_path / "one", *SMALL, *train).code == 0
    assert load(tmp_path / "one" / "teacher").sha256 == load(tmp_path / "r" / "teacher").sha256

    stop_after(4, tmp_path / "s", pdlab, monkeypatch, *train)
    gentle = ["--set", "teacher.warmup=10", "--set", "teacher.clip=0.5", "--precision", "bf16", "--change"]
    assert pdlab("train", "digits", "--run", tmp_path / "s", *SMALL, *train, *gentle).code == 0
    (change,) = load(tmp_path / "s" / "teacher").info["changes"]
    assert change["now"] == {"warmup": 10, "clip": 0.5, "precision": "bf16"}
    assert change["was"] == {"warmup": 4, "clip": 1.0, "precision": "fp32"}


@pytest.mark.parametrize(
    "other",
    [
        ["--seed", 1],
        ["--batch", 9],
        ["--set", "network.width=24"],
        ["--output", "v"],
        ["--set", "teacher.anneal=true"],
        ["--set", "teacher.ema=0.5"],
        ["--lr", 1e-4, "--seed", 1],
    ],
)
def test_what_would_make_another_run_is_refused(
    other: list[object], pdlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["--updates", 12, *CONSTANT]
    stop_after(4, tmp_path / "r", pdlab, monkeypatch, *train)
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file() and p.name != "log.jsonl"}
    result = pdlab("train", "digits", "--run", tmp_path / "r", *SMALL, *train, *other, "--change")
    refused(result, "holds a run with other settings", "choose another --run")
    assert "add --change" not in result.err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_finished_teacher_is_extended(pdlab, tmp_path: Path) -> None:
    def train(run: str, updates: int, *more: object) -> object:
        return pdlab("train", "digits", "--run", tmp_path / run, *SMALL, *CONSTANT, "--updates", updates, *more)

    assert train("r", 10).code == 0
    short = load(tmp_path / "r" / "teacher").sha256
    refused(train("r", 16), "teacher.updates was 10, is 16", "--change")
    refused(train("r", 10, "--lr", 1e-9, "--change"), "finished, with 10 updates", "more --updates")
    refused(train("r", 9, "--change"), "finished, with 10 updates", "more --updates")
    assert train("r", 16, "--change").code == 0
    assert train("long", 16).code == 0
    extended = load(tmp_path / "r" / "teacher")
    assert extended.sha256 == load(tmp_path / "long" / "teacher").sha256  # bit for bit one run
    assert extended.info["changes"] == [{"update": 11, "was": {"updates": 10}, "now": {"updates": 16}}]
    assert extended.info["cost"]["images"] == 16 * 8
    assert load(tmp_path / "r" / "teacher@10").sha256 == short  # what it was stays, for what was made from it
    assert train("r", 16).code == 0  # complete: at once, and without --change
    assert train("r", 16, "--change").code == 0
    assert sorted(p.name for p in (tmp_path / "r").iterdir() if p.name[0] == "t") == [
        "teacher",
        "teacher@10",
        "train.json",
    ]

    (tmp_path / "r" / "progress" / "teacher-00000016").rename(tmp_path / "gone")
    refused(train("r", 20, "--change"), "the state it ended in is gone")
    assert load(tmp_path / "r" / "teacher").sha256 == extended.sha256


def test_an_extension_killed_before_its_first_update(pdlab, tmp_path: Path) -> None:
    """What the teacher was has its new name already: either command goes on from there."""
    train = ["train", "digits", "--run", tmp_path / "r", *SMALL, *CONSTANT]
    assert pdlab(*train, "--updates", 6).code == 0
    for again in (False, True):  # the extension again; the command of before, then the extension
        short = load(tmp_path / "r" / "teacher")
        done = short.info["preset"]["teacher"]["updates"]
        (tmp_path / "r" / "teacher").rename(tmp_path / "r" / f"teacher@{done}")
        if again:
            assert pdlab(*train, "--updates", done).code == 0
            assert load(tmp_path / "r" / "teacher").sha256 == short.sha256
        assert pdlab(*train, "--updates", done + 3, "--change").code == 0
        assert load(tmp_path / "r" / f"teacher@{done}").sha256 == short.sha256
    assert pdlab("train", "digits", "--run", tmp_path / "s", *SMALL, *CONSTANT, "--updates", 12).code == 0
    assert load(tmp_path / "s" / "teacher").sha256 == load(tmp_path / "r" / "teacher").sha256


def test_extending_an_annealed_teacher_says_what_lr_it_goes_on_at(pdlab, tmp_path: Path) -> None:
    train = ["train", "digits", "--run", tmp_path / "r", *SMALL, "--lr", 1e-3, "--set", "teacher.warmup=0"]
    assert pdlab(*train, "--updates", 10).code == 0
    result = pdlab(*train, "--updates", 20, "--change")
    assert result.code == 0
    assert "from update 11 of teacher on updates is 20, was 10; the learning rate there is 0.0005" in result.err


def test_a_ladder_goes_on_where_it_ended(pdlab, tmp_path: Path) -> None:
    assert pdlab("train", "digits", "--run", tmp_path / "r", *SMALL, "--updates", 5).code == 0

    def distill(run: str, last: int, *more: object) -> object:
        rounds = ["--from", 16, "--to", last, "--updates", 3, "--batch", 8, *CPU]
        return pdlab("distill", tmp_path / "r" / "teacher", "--run", tmp_path / run, *rounds, *more)

    assert distill("r", 8).code == 0
    first = (tmp_path / "r" / "student-0008" / "model.json").read_bytes()
    assert distill("r", 1).code == 0
    assert distill("whole", 1).code == 0
    assert (tmp_path / "r" / "student-0008" / "model.json").read_bytes() == first
    for steps in (8, 4, 2, 1):
        name = f"student-{steps:04d}"
        assert load(tmp_path / "r" / name).sha256 == load(tmp_path / "whole" / name).sha256
    # The rounds still to come may go at another rate, and say so; those made stay what they are.
    assert distill("other", 8).code == 0
    refused(distill("other", 4, "--lr", 1e-4), "settings.lr was", "--change")
    refused(distill("other", 4, "--updates", 9, "--change"), "settings.updates was 3, is 9")
    refused(distill("other", 8, "--lr", 1e-4, "--change"), "every round down to 8 steps is finished")
    assert distill("other", 4, "--lr", 1e-4, "--change").code == 0
    rates = [load(tmp_path / "other" / f"student-000{n}").info["optimization"]["lr"] for n in (8, 4)]
    assert rates == [1e-3, 1e-4]


def test_what_became_of_a_teacher_is_not_said_of_its_students(pdlab, tmp_path: Path) -> None:
    train = ["train", "digits", "--run", tmp_path / "r", *SMALL, *CONSTANT]
    assert pdlab(*train, "--updates", 3).code == 0
    assert pdlab(*train, "--updates", 5, "--change").code == 0
    teacher = tmp_path / "r" / "teacher"
    assert pdlab("distill", teacher, "--run", tmp_path / "r", "--from", 2, "--updates", 1, *CPU).code == 0
    assert load(teacher).info["changes"]
    assert load(tmp_path / "r" / "student-0001").info["changes"] == []


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick features, and few samples."""
    monkeypatch.setattr(gauge.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gauge, "SAMPLES", 20)


@pytest.mark.usefixtures("pixels")
def test_measuring_on_the_way_changes_no_bit(pdlab, tmp_path: Path) -> None:
    dropout = ["--set", "teacher.dropout=0.2", *SMALL, "--updates", 9]
    rounds = ["--from", 4, "--updates", 4, "--batch", 8, *CPU]
    for run, measure in (("plain", []), ("measured", ["--measure-every", 4, "--snapshot-every", 4])):
        assert pdlab("train", "digits", "--run", tmp_path / run, *dropout, *measure).code == 0
        teacher = tmp_path / run / "teacher"
        assert pdlab("distill", teacher, "--run", tmp_path / run, *rounds, *measure[:2]).code == 0
    for name in ("teacher", "student-0002", "student-0001"):
        assert load(tmp_path / "plain" / name).sha256 == load(tmp_path / "measured" / name).sha256
    found = [(entry["stage"], entry["update"], name) for entry in lines(tmp_path / "measured") for name in entry]
    assert [entry for entry in found if entry[2].startswith("KD")] == [
        (stage, update, f"KD-pixels_n20_steps{steps}")
        for stage, steps in (("teacher", 16), ("student-0002", 2), ("student-0001", 1))
        for update in (4, 8)
    ]
    refused(pdlab("train", "toy", "--run", tmp_path / "toy", "--measure-every", 4, *CPU), "moons is 2-D")
    assert not (tmp_path / "toy" / "train.json").exists()


@pytest.mark.usefixtures("pixels")
def test_the_quick_distance_is_the_kernel_distance_of_the_averaged_weights() -> None:
    source, machine = data.load("digits"), Machine("cpu", "fp32")
    measure, seen = Gauge(source, machine), []

    def watch(denoiser: Denoiser) -> dict[str, float]:
        weights = {name: value.clone() for name, value in denoiser.network.state_dict().items()}
        seen.append((weights, measure(denoiser)))
        return seen[-1][1]

    trained = run_fit(TINY.teacher, upkeep=Upkeep(measure=watch, measure_every=15))
    assert len(seen) == 2
    weights, figures = seen[-1]
    assert equal(weights, trained.weights)  # measured after the last update
    denoiser = fresh()
    denoiser.network.load_state_dict(weights)
    z = gauge.generate(denoiser.eval(), (1, 8, 8), 20, 16)
    samples = Pixels()(gauge.to_uint8(torch.cat(list(z))))
    reference = gauge.reference_features(source, Pixels(), 1000)
    (value,) = figures.values()
    one_by_one = kernel_distance(samples, reference, subsets=400, subset_size=20)
    assert value == pytest.approx(one_by_one[0], abs=4 * one_by_one[1] / 20)


def test_a_stop_while_it_is_measured_keeps_a_state(tmp_path: Path) -> None:
    def measure(denoiser: Denoiser) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return {}

    with Run(tmp_path) as run:
        with pytest.raises(Stopped, match="stopped after update 7 of 30"):
            train_on(DiffusionObjective("truncated"), run, Upkeep(measure=measure, measure_every=7))
        assert run.holds_state("teacher", 7)


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("takes", "share"), [(0.1, 0.1 / 60), (5.0, 0.02)])
def test_states_are_saved_every_minute_but_in_two_percent_of_the_time(takes: float, share: float) -> None:
    clock = Clock()
    pace, times, spent = loop._Pace(None, clock), [], 0.0
    while clock.now < 100_000:
        clock.now += 0.5  # an update
        if pace.is_due():
            times.append(clock.now)
            with pace.saving():
                clock.now += takes
            spent += takes
            assert len(times) < 2 or spent <= 0.02 * clock.now  # the first told what it takes
    assert 60 < times[0] < 61
    assert all(b - a > 60 for a, b in itertools.pairwise(times))
    assert 0.95 * share < spent / clock.now <= share


def test_the_user_s_own_interval_is_kept() -> None:
    clock = Clock()
    pace, saved = loop._Pace(10.0, clock), 0
    while clock.now < 1000:
        clock.now += 1
        if pace.is_due():
            saved += 1
            with pace.saving():
                clock.now += 9
    assert saved == 50


def test_states_of_before_this_was_recorded_are_taken_up(tmp_path: Path) -> None:
    """A state without settings and changes is one of a run in which nothing was changed."""
    with Run(tmp_path) as run:
        with pytest.raises(Stopped):
            train_on(StopAfter(4), run, Upkeep())
        state = run.path / "progress" / "teacher-00000004"
        sealed.edit(state / "state.json", lambda s: [s.pop(name) for name in ("settings", "changes", "skipped")])
        trained = train_on(DiffusionObjective("truncated"), run, Upkeep())
    assert trained.changes == []
    assert equal(trained.weights, run_fit(TINY.teacher).weights)
