"""Absurd values for every option of every command, from the option's type."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import Enum
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import gradio
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdlab import bench, files, quickstart, zoo
from pdlab.metrics import gauge
from pdlab.metrics.features import extractor
from pdlab.networks.unet import UNetConfig
from pdlab.report import _fields
from pdlab.training.presets import Preset, preset
from pdlab.zoo import build, recipe
from pdlab.zoo.recipe import LadderRecipe
from tests.hostile.harness import COMMAND, Outcome, attempt
from tests.hostile.test_mutations import OPTIONS, many
from tests.zoo.conftest import SMALL, build_digits

NUMBERS = ["", "-1", "0", "1", "2", "3.5", "1e400", "nan", "-inf", "0x10", "1_0", "٣", "[/b]", "\udcff", "1 2"]
NUMBERS += ["1,2", "--", "1e-320", "-0.0", "+1", "1e5"]
LARGE = [str(10**k) for k in (10, 12, 18, 30)] + [str(2**63), str(2**70), "9" * 5000]
TEXTS = ["", "x", "[/b]", "../..", "a=b", "\x1b[2J", "\udcff", "é" * 200, "a" * 5000, "x\ny", "%s{0}", "-", "none"]
NAMES = ["toy", "cifar10", "cifar10-gpu", "imagenet64", "digits", "eps", "both", "snr", "3", "digits,3"]
INSIDE = ["folder", "file", "pipe", "loop", "socket", "file/below", "none", "[/b]", "\udcff.npz", "x" * 300, "a\nb"]
INSIDE += [
    "wrong.py",
    "new.json",
    "new.npz",
    "new.png",
    "pipe/x.json",
    "folder.json",
    "link.json",
    "ladder",
    "ladder-run",
]
INSIDE += ["ladder:2", f"ladder:{2**70}", "ladder:-1", "ladder/teacher", "ladder/student-0001"]
OUTSIDE = ["/dev/null", "/dev/full", "/dev/zero", "/proc/self/mem", "/proc/none", "~nosuch/x", "", ".", "x" * 5000]
OUTSIDE += ["/proc/x.json", "/dev/null/x.json"]
FIELDS = [field for field, _ in _fields({**asdict(preset("cifar10-gpu")), **asdict(preset("digits"))})]
FIELDS += ["network", "teacher", "distill.nothing", "network.channels", "", "."]

#: With as little work as there can be. What is left out of each command is given by its own options.
COMMANDS = {
    "train": ["digits", "--run", "{home}/run", "--updates", "1", "--device", "cpu", *OPTIONS],
    "distill": ["{teacher}", "--run", "{home}/run", "--from", "2", "--updates", "1", "--batch", "1"],
    "sample": ["{teacher}", "--out", "{home}/out.npz", "--steps", "1", "--n", "1"],
    "evaluate": ["{teacher}", "--out", "{home}/out.json", "--steps", "1", "--n", "65", "--features", "pixels"],
    "export torch": ["{teacher}", "{home}/out.pt2", "--steps", "1"],
    "export web": ["{home}/ladder", "{home}/page"],
    "export diffusers": ["{teacher}", "{home}/out", "--steps", "1"],
    "presets": [],
    "zoo": [],
    "zoo build": [
        *["digits", "--run", "{home}/run", "--n", "65", "--features", "pixels", "--device", "cpu", *OPTIONS],
        *["--set", "teacher.updates=1", "--set", "distill.updates=1", "--set", "first_steps=2"],
    ],
    "quickstart": ["--out", "{home}/run"],
    "bench": ["--batch", "1", "--repeats", "3", "--device", "cpu"],
    "app": ["--runs", "{home}/ladder"],
}
#: Most cases are of these: where the others have nothing to refuse, they work for half a second.
OFTEN = ["train", "distill", "sample", "evaluate"]
#: What only takes long: a compiler of C++, and a network of ImageNet's size.
LONG = {("features", "effnet-lite0"), ("compile", "--compile"), ("graphs", "--graphs")}


def parameters(name: str) -> list[Any]:
    """The options and arguments of a command."""
    command: Any = COMMAND
    for part in name.split():
        command = command.commands[part]
    return [option for option in command.params if option.name != "help"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ladder, the run that made it, and whatever a path may lead to."""
    home = tmp_path_factory.mktemp("options") / "in" / "side" / "home"  # a value may lead upwards
    build_digits(home, settings=SMALL)
    (home / "run").rename(home / "ladder-run")
    for name in ("folder", "folder.json"):
        (home / name).mkdir()
    for name in ("file", "wrong.py"):
        (home / name).write_text("x")
    os.mkfifo(home / "pipe")
    (home / "loop").symlink_to("loop")
    (home / "link.json").symlink_to("file")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(home)  # a socket's path must be short
        bound.bind("socket")
        os.chdir(here)
    return home


def values(option: Any, home: Path) -> list[str]:
    """Values for `option`, by its type: those that belong to it, their bounds, and what does not."""
    kind = option.type_descriptor.annotation
    if option.name == "set_":
        return [f"{field}={value}" for field in FIELDS for value in NUMBERS + LARGE + TEXTS] + TEXTS
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(choice.value) for choice in kind] + TEXTS + NUMBERS
    if kind in (int, float):
        bounds = [option.min, option.min and option.min - 1, option.max and option.max + 1]
        return NUMBERS + LARGE + [str(bound) for bound in bounds if bound is not None]
    if kind in (Path, list[Path]) or option.name.startswith("checkpoint") or option.name == "grow_from":
        return [str(home / name) for name in INSIDE] + OUTSIDE + TEXTS
    return TEXTS + NUMBERS + NAMES


def given_to(option: Any, home: Path, draw: st.DataObject) -> list[str]:
    """One option with a value, as it is typed."""
    if getattr(option, "is_flag", False):
        choices = [flag for flag in option.opts + option.secondary_opts if (option.name, flag) not in LONG]
        return [draw.draw(st.sampled_from(choices))] if choices else []
    allowed = [value for value in values(option, home) if (option.name, value) not in LONG]
    if torch.cuda.is_available() and option.name == "device":
        allowed = [value for value in allowed if value not in ("auto", "cuda")]  # its driver alone takes gigabytes
    value = draw.draw(st.sampled_from(allowed))
    return [value] if option.param_type_name == "argument" else [f"{max(option.opts, key=len)}={value}"]


def command_line(name: str, home: Path) -> list[str]:
    """The command with values that make sense."""
    model = home / "ladder" / "teacher"
    return [*name.split(), *(part.format(home=home, teacher=model) for part in COMMANDS[name])]


def run(args: list[str], home: Path) -> Outcome:
    """`attempt` in `home`, and away with what the command made there."""
    there = set(home.iterdir())
    with pytest.MonkeyPatch.context() as patch, little_work():
        patch.chdir(home)
        try:
            outcome = attempt(args, home)
            assert (home / "pipe").is_fifo(), (args, "replaced")
            assert (home / "socket").is_socket(), (args, "replaced")
            return outcome
        finally:
            for made in set(home.iterdir()) - there:
                files.discard(made)


@contextmanager
def little_work() -> Iterator[None]:
    """The commands that go on for minutes, or for ever, do all they do, but on less.

    What is checked before the work is the same: they check it themselves.
    """

    def small(name: str) -> Preset:
        settings = preset(name)
        if not isinstance(settings.network, UNetConfig) or settings.network.patch > 1:
            return settings
        shape = {"image_size": 8, "channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
        return replace(settings, network=replace(settings.network, **shape))

    def once(name: str, ours: Callable[[], object], peer: Callable[[], object], *_: object) -> bench.Ratio:
        ours(), peer()
        return bench.Ratio(name, 1, 1, 1, 1, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "HOME", Path("/nowhere"))
        patch.setattr(bench, "preset", small)
        patch.setattr(bench, "compare", once)
        patch.setattr(quickstart, "quickstart", partial(quickstart.quickstart, settings=SMALL, n=100))
        patch.setattr(recipe, "_RECIPES", {"digits": LadderRecipe(n=65, ddim=2, others=1, nus=(), pool=16)})
        patch.setattr(build, "build", partial(build.build, seconds=0.01))
        patch.setattr(build, "matrix_rate", lambda _: 1e9)
        patch.setattr(gauge, "extractor", lambda _, **how: extractor("pixels", **how))
        patch.setattr(gradio.Blocks, "block_thread", lambda app: app.close(verbose=False))  # as Ctrl-C does
        patch.setenv("PDLAB_DATA", "/nowhere")
        yield


@many(1400)
@given(st.data())
def test_absurd_options(home: Path, draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from(OFTEN * 12 + sorted(COMMANDS.keys() - {"zoo"})))
    args = command_line(name, home)
    options = st.sampled_from(parameters(name))
    for option in draw.draw(st.lists(options, min_size=1, max_size=2, unique_by=attrgetter("name"))):
        words = given_to(option, home, draw)
        if option.param_type_name == "argument":
            at = len(name.split())
            args[at : at + 1] = words
        else:
            args += words
    run(args, home)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_makes_sense_is_accepted(name: str, home: Path) -> None:
    """Else every refusal above would mean nothing."""
    outcome = run(command_line(name, home), home)
    assert outcome.code == 0, outcome.err


def test_every_command_is_asked() -> None:
    groups: Any = COMMAND
    inner = {f"{group} {name}" for group in ("zoo", "export") for name in groups.commands[group].commands}
    inner.remove("export onnx")  # takes what export torch does, and much longer
    hub = {"push", "pull"}  # which need one: see tests/hub
    assert {*groups.commands, *inner} - {"export"} - hub == set(COMMANDS)
    assert {option for name in COMMANDS for option in parameters(name) if option.type_descriptor is None} == set()


def test_a_port_that_is_taken_is_refused_in_words(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        outcome = run(["app", "--port", str(taken.getsockname()[1])], home)
    assert outcome.code == 2
    assert "--port" in outcome.err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--batch=1000000000", "GiB"),
        ("--out={home}/folder", "cannot write"),
        ("--out={home}/pipe", "not a file but a pipe"),
    ],
)
def test_a_benchmark_that_cannot_end_well_does_not_begin(option: str, message: str, home: Path) -> None:
    outcome = run([*command_line("bench", home), option.format(home=home)], home)
    assert outcome.code == 2
    assert message in outcome.err
    assert "repeats; load" not in outcome.out


@pytest.mark.parametrize("place", [".", "..", "/"])
@pytest.mark.parametrize("option", ["--run", "--out"])
def test_a_folder_without_a_name_is_no_traceback(option: str, place: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "here").mkdir(parents=True)
    args = command_line("zoo build", tmp_path / "in")
    with pytest.MonkeyPatch.context() as patch, little_work():
        patch.chdir(tmp_path / "in" / "here")
        outcome = attempt([*args, f"{option}={place}"], tmp_path)
    assert outcome.code == (0 if (option, place) in (("--run", "."), ("--run", "..")) else 2), outcome.err
