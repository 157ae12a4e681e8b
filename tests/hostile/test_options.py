"""Absurd values for every option of every command, from the option's type."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from pdlab import cli, files
from tests.hostile.harness import attempt
from tests.hostile.test_mutations import OPTIONS, many
from tests.zoo.conftest import SMALL, build_digits

NUMBERS = [
    "",
    "-1",
    "0",
    "1",
    "2",
    "3.5",
    "1e400",
    "nan",
    "-inf",
    "0x10",
    "1_0",
    "٣",
    "[/b]",
    "\udcff",
    "1 2",
    "1,2",
    "--",
]
LARGE = [str(10**k) for k in (10, 12, 18, 30)] + [str(2**63), str(2**70), "9" * 5000]
TEXTS = ["", "x", "[/b]", "../..", "a=b", "\x1b[2J", "\udcff", "é" * 200, "a" * 5000, "x\ny", "%s{0}", "-", "none"]
FIELDS = [
    *["name", "data", "output", "weighting", "precision", "first_steps", "size", "logsnr_min", "logsnr_max"],
    *["network.width", "network.blocks", "network.embedding_channels", "network.dropout", "network.shape"],
    *["network.num_classes", "teacher.lr", "teacher.batch", "teacher.updates", "teacher.ema", "teacher.dropout"],
    *[
        "teacher.weight_decay",
        "teacher.clip",
        "teacher.warmup",
        "teacher.flip",
        "distill.lr",
        "distill.batch",
        "network",
    ],
]
COMMANDS = {
    "train": ["train", "digits", "--run", "{home}/run", "--updates", "1", "--device", "cpu", *OPTIONS],
    "distill": ["distill", "{teacher}", "--run", "{home}/run", "--from", "2", "--updates", "1", "--batch", "1"],
    "sample": ["sample", "{teacher}", "--out", "{home}/out.npz", "--steps", "1", "--n", "1"],
    "evaluate": [
        "evaluate",
        "{teacher}",
        "--out",
        "{home}/out.json",
        "--steps",
        "1",
        "--n",
        "65",
        "--features",
        "pixels",
    ],
    "presets": ["presets"],
    "zoo": ["zoo"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and whatever a path may lead to."""
    home = tmp_path_factory.mktemp("options") / "in" / "side" / "home"  # a value may lead upwards
    build_digits(home, settings=SMALL)
    (home / "run").rename(home / "ladder-run")
    (home / "folder").mkdir()
    (home / "file").write_text("x")
    os.mkfifo(home / "pipe")
    (home / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(home)  # a socket's path must be short
        bound.bind("socket")
        os.chdir(here)
    return home


def paths(home: Path) -> list[str]:
    """Values for an option that takes a path."""
    inside = [
        "folder",
        "file",
        "pipe",
        "loop",
        "socket",
        "file/below",
        "none",
        "[/b]",
        "\udcff.npz",
        "x" * 300,
        "a\nb",
    ]
    outside = [
        "/dev/null",
        "/dev/full",
        "/dev/zero",
        "/proc/self/mem",
        "/proc/none",
        "~nosuch/x",
        "",
        ".",
        "x" * 5000,
    ]
    return [str(home / name) for name in inside] + outside


def values(option: Any, home: Path) -> list[str]:
    """Values for `option`, by its type."""
    if option.name == "set_":
        return [f"{field}={value}" for field in FIELDS for value in NUMBERS + LARGE + TEXTS]
    if option.name in ("run", "out", "data", "weights", "checkpoint", "checkpoints"):
        return [*paths(home), *TEXTS, str(home / "ladder"), f"{home / 'ladder'}:2", f"{home / 'ladder'}:{2**70}"]
    if getattr(option, "min", None) is not None or option.name in ("steps", "lr"):
        return NUMBERS + LARGE
    return TEXTS + NUMBERS


@many(300)
@given(st.data())
def test_absurd_options(home: Path, draw: st.DataObject) -> None:
    command = draw.draw(st.sampled_from([name for name in COMMANDS if name != "zoo"]))
    known = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]
    options = [option for option in known.params if option.name not in ("help", "download", "compile", "device")]
    args = [part.format(home=home, teacher=home / "ladder" / "teacher") for part in COMMANDS[command]]
    for option in draw.draw(st.lists(st.sampled_from(options), min_size=1, max_size=2, unique_by=lambda o: o.name)):
        value = draw.draw(st.sampled_from(values(option, home)))
        if option.param_type_name == "argument":
            args[1:2] = [value]
        elif getattr(option, "is_flag", False):
            args += [draw.draw(st.sampled_from(option.opts + option.secondary_opts))]
        else:
            args += [f"{max(option.opts, key=len)}={value}"]
    there = set(home.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        there = set(home.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        try:
            attempt(args, home)
        finally:
            for made in set(home.iterdir()) - there:
                files.discard(made)


def test_what_makes_sense_is_accepted(home: Path) -> None:
    """Else every refusal above would mean nothing."""
    for args in COMMANDS.values():
        args = [part.format(home=home, teacher=home / "ladder" / "teacher") for part in args]
        outcome = attempt(args, home / "ladder")
        assert outcome.code == 0, outcome.err
    for made in ("run", "out.npz", "out.json"):
        files.discard(home / made)


def test_every_command_is_asked() -> None:
    """But for those that serve or measure for minutes; their numbers are of the same types."""
    commands = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert commands - set(COMMANDS) == {"quickstart", "bench", "app"}
