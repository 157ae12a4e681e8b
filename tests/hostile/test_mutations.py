"""Every field of every JSON and every 4 KiB of every file of a ladder and a run, through what reads them."""

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pdlab import data, files, zoo
from pdlab.training.log import Log
from pdlab.training.loop import Stopped, Upkeep
from pdlab.training.machine import Machine
from pdlab.training.objective import DiffusionObjective
from pdlab.training.presets import override, preset
from pdlab.training.run import Run
from pdlab.training.teacher import train
from tests.hostile import mutations
from tests.hostile.harness import attempt, examples, first_seed
from tests.hostile.mutations import Mutation, Sandbox
from tests.zoo.conftest import SMALL, build_digits

TINY = {"network.width": "8", "network.blocks": "1", "network.embedding_channels": "8", "teacher.batch": "4"}
CPU = ["--device", "cpu"]
EVALUATE = ["evaluate", "--features", "pixels", "--n", "65", "--steps", "1"]
OPTIONS = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]


def many(usual: int):  # type: ignore[no-untyped-def]
    """A test over that many cases, the same ones every time for a seed."""

    def decorate(test):  # type: ignore[no-untyped-def]
        quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
        chosen = settings(
            max_examples=examples(usual),
            phases=[Phase.generate],  # a case is small as it is
            deadline=None,
            database=None,
            suppress_health_check=quiet,
        )
        return seed(first_seed())(chosen(test))

    return decorate


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small ladder and of the run that made it."""
    return build_digits(tmp_path_factory.mktemp("hostile"), settings=SMALL).path.parent


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 2 of 3 updates, with the states after 1 and 2."""
    path = tmp_path_factory.mktemp("stopped") / "run"

    class StopAfterTwo(DiffusionObjective):
        left = 2

        def __call__(self, *args):  # type: ignore[no-untyped-def]
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
            return super().__call__(*args)

    stop = StopAfterTwo("snr+1")
    with pytest.MonkeyPatch.context() as patch, Run(path) as run, Log(path, quiet=True) as log:
        patch.setattr("pdlab.training.teacher.DiffusionObjective", lambda *_: stop)
        made = override(preset("digits"), {**TINY, "teacher.updates": "3"})
        with pytest.raises(Stopped):
            train(made, data.load("digits"), run, Machine("cpu", "fp32"), log=log, upkeep=Upkeep(save_every=0))
    return path


@pytest.fixture(scope="module")
def ladder(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(built / "ladder", tmp_path_factory.mktemp("sandbox") / "home" / "tiny")


@pytest.fixture(scope="module")
def run(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(stopped, tmp_path_factory.mktemp("sandbox") / "runs" / "run")


@pytest.fixture(scope="module")
def adapters(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A run of one LoRA student beside its base."""
    path = tmp_path_factory.mktemp("adapters") / "run"
    few = ["--from", "2", "--updates", "1", "--batch", "1", "--lora", "1"]
    outcome = attempt(["distill", str(built / "ladder" / "teacher"), "--run", str(path), *few, *CPU], path.parent)
    assert outcome.code == 0, outcome.err
    return Sandbox(path, tmp_path_factory.mktemp("sandbox") / "runs" / "run")


def check(sandbox: Sandbox, name: str, mutation: Mutation, args: list[str], may_read: bool) -> None:
    """`args` refuse the spoiled file, unless they never read it, or it may rightly be accepted."""
    try:
        mutation.apply(sandbox.path / name)
        outcome = attempt(args, sandbox.path.parent.parent)
        if may_read and not mutation.valid and not sandbox.same(name):
            assert outcome.code == 2, (name, mutation.words, args, outcome.out)
    except AssertionError as error:
        raise AssertionError(f"{name}: {mutation.words}: {error}") from error
    finally:
        sandbox.restore()


def reading(ladder: Sandbox, model: str) -> dict[str, list[str]]:
    """The commands that read a ladder or its checkpoint `model`, as little work as there can be."""
    home = ladder.path.parent.parent
    distill = ["distill", model, "--run", str(home / "r"), "--from", "2", "--updates", "1", "--batch", "1"]
    return {
        "sample": ["sample", model, "--n", "1", "--steps", "1", "--out", str(home / "out.npz"), *CPU],
        "evaluate": [*EVALUATE, model, "--out", str(home / "out.json"), *CPU],
        "distill": [*distill, *CPU],
        "zoo": ["zoo"],
    }


def resuming(run: Sandbox) -> list[str]:
    return ["train", "digits", "--run", str(run.path), "--updates", "3", "--save-every", "0", *CPU, *OPTIONS]


def drawing(adapters: Sandbox) -> list[str]:
    out = adapters.path.parent.parent / "out.npz"
    return ["sample", str(adapters.path / "student-0001"), "--n", "1", "--out", str(out), *CPU]


def forget(ladder: Sandbox) -> None:
    """Remove what a command made."""
    for made in ("out.npz", "out.json", "r"):
        files.discard(ladder.path.parent.parent / made)


def test_what_is_whole_is_accepted(
    ladder: Sandbox, run: Sandbox, adapters: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every refusal below would mean nothing."""
    monkeypatch.setattr(zoo, "HOME", ladder.path.parent)
    for model in ("tiny:2", "tiny:teacher", str(ladder.path / "student-0002")):
        for args in reading(ladder, model).values():
            outcome = attempt(args, ladder.path)
            assert outcome.code == 0, outcome.err
        forget(ladder)
    outcome = attempt(drawing(adapters), adapters.path)
    assert outcome.code == 0, outcome.err
    outcome = attempt(resuming(run), ladder.path)
    run.restore()
    assert outcome.code == 0, outcome.err
    assert "resuming teacher after update 2" in outcome.err


@many(1300)
@given(st.data())
def test_a_spoiled_ladder(ladder: Sandbox, draw: st.DataObject) -> None:
    command = draw.draw(st.sampled_from(["sample", "evaluate", "distill", "zoo"]))
    rung = draw.draw(st.sampled_from(["teacher", "student-0002"]))
    named = draw.draw(st.booleans())
    model = f"tiny:{rung.removeprefix('student-').lstrip('0')}" if named else str(ladder.path / rung)
    args = reading(ladder, model)[command]
    read = (
        {"manifest.json", "report.json"}
        if command == "zoo"
        else {f"{rung}/model.json", f"{rung}/model.safetensors"}
    )
    if named and command != "zoo":
        read.add("manifest.json")
    rarely = draw.draw(st.integers(0, 3)) == 0  # what a command never reads does nothing to it
    name = draw.draw(st.sampled_from(ladder.names() if rarely else sorted(read)))
    mutation = draw.draw(mutations.of_file(ladder.path / name))
    if command == "zoo" and mutation is mutations.GONE:
        read.remove("manifest.json")  # a folder without one is no ladder, and there is none to list
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "HOME", ladder.path.parent)
        check(ladder, name, mutation, args, name in read)
    forget(ladder)


@many(400)
@given(st.data())
def test_a_spoiled_run(run: Sandbox, draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from(run.names()))
    mutation = draw.draw(mutations.of_file(run.path / name))
    settings_spoiled = name == "train.json" and mutation is not mutations.GONE  # states and logs stop nothing
    check(run, name, mutation, resuming(run), settings_spoiled)


@many(200)
@given(st.data())
def test_a_spoiled_adapter(adapters: Sandbox, draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from(adapters.names()))
    mutation = draw.draw(mutations.of_file(adapters.path / name))
    read = name in {"student-0001/model.json", "student-0001/model.safetensors", "base/model.safetensors"}
    check(adapters, name, mutation, drawing(adapters), read)
    forget(adapters)
