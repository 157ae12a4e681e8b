"""The loop: it learns, resumes bit for bit, stops at NaN, and does what its settings say."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pdlab import data
from pdlab.diffusion.denoiser import Denoiser
from pdlab.errors import PdlabError
from pdlab.training.checkpoint import load
from pdlab.training.ema import EMA
from pdlab.training.log import Log
from pdlab.training.loop import Stopped, Trained, Upkeep, fit, lr_factor
from pdlab.training.machine import Machine
from pdlab.training.objective import DiffusionObjective
from pdlab.training.presets import Optimization, override, preset
from pdlab.training.run import Run
from pdlab.training.teacher import new_denoiser, train

TINY = override(
    preset("digits"),
    {"network.width": "32", "network.blocks": "1", "teacher.batch": "32", "teacher.updates": "30"},
)


def fresh() -> Denoiser:
    return new_denoiser(TINY, seed=0)


def run_fit(settings: Optimization, **options: object) -> Trained:
    denoiser = options.pop("denoiser", None) or fresh()
    machine, source = Machine("cpu", "fp32"), data.load("digits")
    return fit(denoiser, DiffusionObjective("truncated"), source, settings, machine, **options)  # type: ignore[arg-type]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_falls(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY.teacher, updates=300, batch=64, lr=2e-3)
    denoiser = fresh()
    objective, source = DiffusionObjective("truncated"), data.load("digits")
    generator = torch.Generator().manual_seed(1)
    x, _ = source.draw(512, generator)
    before = objective(denoiser, x, None, torch.Generator().manual_seed(2)).mean()
    trained = run_fit(settings, denoiser=denoiser)
    denoiser.network.load_state_dict(trained.weights)
    after = objective(denoiser, x, None, torch.Generator().manual_seed(2)).mean()
    assert after < 0.8 * before


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    settings = dataclasses.replace(TINY.teacher, updates=5, dropout=0.2)
    assert equal(run_fit(settings).weights, run_fit(settings).weights)
    assert not equal(run_fit(settings).weights, run_fit(settings, seed=1).weights)


class StopAfter(DiffusionObjective):
    """Sends this process SIGINT in update `k`, as Ctrl-C would."""

    def __init__(self, k: int) -> None:
        super().__init__("truncated")
        self.left = k

    def __call__(self, *args):  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().__call__(*args)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_stopped_run_goes_on_bit_for_bit(dropout: float, tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY.teacher, updates=20, dropout=dropout, warmup=5)
    preset_ = dataclasses.replace(TINY, teacher=settings)
    machine, source = Machine("cpu", "fp32"), data.load("digits")
    whole = run_fit(settings, denoiser=new_denoiser(preset_, 0))
    with Run(tmp_path) as run, Log(tmp_path, quiet=True) as log:
        for stop_at in (1, 7, 5):
            with pytest.raises(Stopped, match="stopped after update"):
                fit(new_denoiser(preset_, 0), StopAfter(stop_at), source, settings, machine, run=run, log=log)
        resumed = fit(
            new_denoiser(preset_, 0), DiffusionObjective("truncated"), source, settings, machine, run=run, log=log
        )
    assert equal(whole.weights, resumed.weights)
    updates = [json.loads(line)["update"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert updates == sorted(set(updates))
    assert updates[-1] == 20


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path: Path) -> None:
    machine, source = Machine("cpu", "fp32"), data.load("digits")
    with Run(tmp_path) as run:
        for stop_at in (4, 4):
            with pytest.raises(Stopped):
                fit(fresh(), StopAfter(stop_at), source, TINY.teacher, machine, run=run)
        states = sorted((tmp_path / "progress").iterdir())
        assert [path.name for path in states] == ["teacher-00000004", "teacher-00000008"]
        weights = states[-1] / "state.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8])
        tensors, header, problems = run.load_state("teacher")
        assert header["updates"] == 4
        assert tensors
        assert "damaged" in problems[0]
        resumed = fit(fresh(), DiffusionObjective("truncated"), source, TINY.teacher, machine, run=run)
    assert equal(resumed.weights, run_fit(TINY.teacher).weights)


def test_the_settings_say_how_the_average_begins() -> None:
    settings = dataclasses.replace(TINY.teacher, updates=3, ema=0.9999)
    begun = dict(fresh().network.named_parameters())
    moved = [
        max(float((trained.weights[name] - p.detach()).abs().max()) for name, p in begun.items())
        for trained in (run_fit(dataclasses.replace(settings, ema_warmup=warmup)) for warmup in (True, False))
    ]
    assert moved[0] > 100 * moved[1] > 0  # one goes with the weights, the other stays where they began


def test_nan_stops_the_run_with_the_update_and_a_hint(tmp_path: Path) -> None:
    class Poison(DiffusionObjective):
        def __init__(self) -> None:
            super().__init__("truncated")
            self.k = 0

        def __call__(self, *args):  # type: ignore[no-untyped-def]
            self.k += 1
            return super().__call__(*args) * (float("nan") if self.k == 6 else 1)

    with (
        Run(tmp_path) as run,
        pytest.raises(PdlabError, match=r"not finite at update 6 of teacher.*--skip-bad 1.*lower lr"),
    ):
        fit(
            fresh(),
            Poison(),
            data.load("digits"),
            TINY.teacher,
            Machine("cpu", "fp32"),
            run=run,
            upkeep=Upkeep(save_every=0),
        )
    assert run.load_state("teacher")[1]["updates"] == 5  # the last good one; no state is kept after it


def test_ruined_weights_are_not_kept(tmp_path: Path) -> None:
    """An update can ruin the weights after a loss that was finite."""
    settings = dataclasses.replace(TINY.teacher, updates=1, lr=1e39, warmup=0)
    with Run(tmp_path) as run:
        with pytest.raises(PdlabError, match="not finite after update 1"):
            run_fit(settings, run=run, upkeep=Upkeep(save_every=0))
        assert not run.load_state("teacher")[0]


def test_one_process_a_run(tmp_path: Path) -> None:
    with Run(tmp_path), pytest.raises(PdlabError, match="another pdlab works in"), Run(tmp_path):
        pass


def test_a_run_keeps_its_settings(tmp_path: Path) -> None:
    machine, source = Machine("cpu", "fp32"), data.load("digits")
    with Run(tmp_path) as run:
        path = train(TINY, source, run, machine)
        first = load(path)
        assert train(TINY, source, run, machine) == path  # complete: returns at once
        # How it will be distilled is not the teacher's.
        assert train(override(TINY, {"distill.updates": "7", "first_steps": "8"}), source, run, machine) == path
        with pytest.raises(PdlabError, match=r"teacher\.lr was 0\.002, is 0\.5.*another --run"):
            train(override(TINY, {"teacher.lr": "0.5"}), source, run, machine)
    assert first.info["data"]["name"] == "digits"
    assert first.info["ema"] is True
    assert first.info["cost"]["images"] == 30 * 32
    # The state it ended in stays, for more updates.
    assert [path.name for path in (tmp_path / "progress").iterdir()] == ["teacher-00000030"]


def test_other_data_is_refused(tmp_path: Path) -> None:
    with Run(tmp_path) as run, pytest.raises(PdlabError, match="takes examples of shape 1×8×8, but moons has 2"):
        train(TINY, data.load("moons"), run, Machine("cpu", "fp32"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Optimization(10, 1, 1.0), [1.0] * 10),
        (Optimization(4, 1, 1.0, warmup=2), [0.5, 1.0, 1.0, 1.0]),
        (Optimization(4, 1, 1.0, anneal=True), [1.0, 0.75, 0.5, 0.25]),
    ],
)
def test_learning_rate(settings: Optimization, expected: list[float]) -> None:
    assert [lr_factor(settings, k) for k in range(settings.updates)] == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_the_average_it_says(warmup: bool) -> None:
    weight = torch.zeros(3)
    ema, expected = EMA({"w": weight}, 0.9, warmup), torch.zeros(3)
    for k in range(200):
        weight += 1
        ema.update(k)
        decay = min(0.9, (1 + k) / (10 + k)) if warmup else 0.9
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(ema.shadow["w"], expected)
    assert (weight - ema.shadow["w"] - 9).abs().max() < 1e-2  # a lag of decay/(1 - decay)
