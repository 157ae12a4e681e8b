"""A process that dies at any operation on a file: the same command again gives the same bits and leaves no trace.

The operations are counted where Python announces them (audit events: open to write, rename, remove, make a folder,
…) and where data are flushed; the process kills itself at the k-th.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from pdlab import cli
from pdlab.data import folder as image_folder
from pdlab.data.download import download
from pdlab.training.checkpoint import load
from tests.data.conftest import Server, server  # noqa: F401
from tests.hostile.harness import attempt, examples, first_seed
from tests.hostile.test_mutations import OPTIONS
from tests.zoo.conftest import SMALL, build_digits

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink"}


def child(work: Callable[[], object], die_at: int = 0) -> tuple[int, int]:
    """Run `work` in a process of its own that kills itself before its operation `die_at`, if any.

    Returns how it ended (0: all done, 2: refused) and how many operations it came to, if it was not killed.
    """
    come, go = os.pipe()
    pid = os.fork()
    if pid:
        os.close(go)
        with os.fdopen(come) as told:
            operations = told.read()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(operations or 0)
    done, code = 0, 1

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes and not str(arguments[0]).startswith("/dev/")) or event in CHANGES:
            count()

    try:
        for number in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        sys.addaudithook(hear)
        with mock.patch.object(os, "fsync", side_effect=count):
            work()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        os.write(go, str(done).encode())
        os._exit(code)


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What every child would import anew."""
    folder = tmp_path_factory.mktemp("warm")
    teacher, options = str(folder / "r" / "teacher"), ["--updates", "1", "--device", "cpu"]
    attempt(["train", "digits", "--run", str(folder / "r"), *options, *OPTIONS], folder)
    attempt(["distill", teacher, "--run", str(folder / "r"), "--from", "2", "--batch", "1", *options], folder)
    measure = ["--features", "pixels", "--n", "65", "--steps", "1", "--out", str(folder / "r.json")]
    attempt(["evaluate", teacher, *measure, "--device", "cpu"], folder)


def command(*args: object) -> Callable[[], object]:
    def work() -> None:
        torch.set_num_threads(1)
        with mock.patch.object(sys, "argv", ["pdlab", *map(str, args)]):
            cli.main()

    return work


def deaths(usual: int, total: int) -> list[int]:
    """At which operations to die: all of `total`, or as many of them as `usual` allows, by the seed."""
    if examples(usual) >= total:
        return list(range(1, total + 1))
    draw = torch.Generator().manual_seed(first_seed())
    return sorted((torch.randperm(total, generator=draw)[: examples(usual)] + 1).tolist())


def survives(
    make: Callable[[Path], Callable[[], object]], result: Callable[[Path], object], home: Path, usual: int
) -> None:
    """Kill what `make` gives at its operations, in a place of its own each time, and let it go on."""
    (home / "whole").mkdir()
    code, total = child(make(home / "whole"))
    assert code == 0
    expected = result(home / "whole")
    for k in deaths(usual, total):
        place = home / f"killed-{k}"
        (place / "mine").mkdir(parents=True)
        (place / "mine" / ".photos.tmp").write_text("mine")
        assert child(make(place), k)[0] in (0, -signal.SIGKILL)
        assert child(make(place))[0] == 0, k
        assert result(place) == expected, k
        assert (place / "mine" / ".photos.tmp").read_text() == "mine"
        ours = [path for path in place.rglob("*") if path.name.startswith(".") and path.parent.name != "mine"]
        assert [path for path in ours if path.name != ".lock"] == [], k


def hashes(*names: str) -> Callable[[Path], object]:
    return lambda place: [load(place / "run" / name).sha256 for name in names]


def test_training(tmp_path: Path) -> None:
    def make(place: Path) -> Callable[[], object]:
        options = ["--updates", 3, "--save-every", 0, "--device", "cpu", *OPTIONS]
        return command("train", "digits", "--run", place / "run", *options)

    survives(make, hashes("teacher"), tmp_path, 30)


def test_distilling(tmp_path: Path) -> None:
    options = ["--updates", 1, "--device", "cpu", *OPTIONS]
    assert child(command("train", "digits", "--run", tmp_path / "t", *options))[0] == 0

    def make(place: Path) -> Callable[[], object]:
        options = ["--from", 4, "--updates", 1, "--save-every", 0, "--batch", 4, "--device", "cpu"]
        return command("distill", tmp_path / "t" / "teacher", "--run", place / "run", *options)

    survives(make, hashes("student-0002", "student-0001"), tmp_path, 30)


def test_measuring(tmp_path: Path) -> None:
    options = ["--updates", 1, "--device", "cpu", *OPTIONS]
    assert child(command("train", "digits", "--run", tmp_path / "t", *options))[0] == 0

    def make(place: Path) -> Callable[[], object]:
        def work() -> None:
            os.environ["PDLAB_CACHE"] = str(place / "cache")
            options = ["--features", "pixels", "--n", 65, "--steps", 1, "--device", "cpu"]
            command("evaluate", tmp_path / "t" / "teacher", "--out", place / "report.json", *options)()

        return work

    survives(make, lambda place: (place / "report.json").exists(), tmp_path, 20)


@pytest.mark.slow
def test_building_a_ladder(tmp_path: Path) -> None:
    def result(place: Path) -> object:
        return [load(place / "ladder" / name).sha256 for name in ("teacher", "student-0004", "student-0001")]

    survives(lambda place: lambda: build_digits(place, settings=SMALL), result, tmp_path, 6)


def test_downloading(server: Server, tmp_path: Path) -> None:  # noqa: F811
    server.content = bytes(range(256)) * 20_000
    digest = hashlib.sha256(server.content).hexdigest()

    def make(place: Path) -> Callable[[], object]:
        return lambda: download(server.address, place / "file", sha256=digest)

    survives(make, lambda place: (place / "file").read_bytes(), tmp_path, 100)


def test_caching_a_folder(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for k in range(3):
        Image.new("RGB", (9, 8), (k, 0, 0)).save(tmp_path / "images" / f"{k}.png")

    def make(place: Path) -> Callable[[], object]:
        def work() -> None:
            os.environ["PDLAB_CACHE"] = str(place / "cache")
            image_folder.load(tmp_path / "images", 4)

        return work

    def result(place: Path) -> object:
        (cached,) = (place / "cache" / "folders").iterdir()
        return cached.read_bytes()

    survives(make, result, tmp_path, 100)
