"""kill -9 at random moments, then the same command: the same weights, bit for bit, as if nothing had happened."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pdlab.training.checkpoint import load

COMMON = ["--batch", "32", "--device", "cpu", "--save-every", "0"]  # a state after every update
TRAIN = [
    *["train", "digits", "--updates", "400", "--set", "network.width=32", "--set", "network.blocks=1"],
    *["--set", "teacher.dropout=0.1", *COMMON],
]
DISTILL = ["--from", "8", "--updates", "80", *COMMON]
KILLS = 10


def start(args: list[str], run: Path) -> subprocess.Popen[bytes]:
    program = "import torch; torch.set_num_threads(1); from pdlab.cli import main; main()"
    command = [sys.executable, "-c", program, *args, "--run", str(run)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(args: list[str], run: Path) -> None:
    assert start(args, run).wait(300) == 0


def kill_until_done(args: list[str], run: Path, seed: int) -> list[str]:
    """Kill the command again and again after random amounts of work; returns what was on disk each time.

    At least once it is killed at the moment a round's checkpoint appears, i.e. between two rounds.
    """
    moments: list[str] = []
    draw, between = random.Random(seed), "distill" not in args
    while len(moments) < KILLS:
        process, seen, work = start(args, run), states(run), draw.randint(1, 40)
        while process.poll() is None and work > 0:
            now = states(run)
            work -= now != seen
            if not between and "student-0004" in now:
                between, work = True, 0
            seen = now
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.01))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        moments.append(str(seen))
    finish(args, run)
    return moments


def states(run: Path) -> list[str]:
    """The unfinished and finished stages on disk."""
    return sorted(p.name for p in (*run.glob("progress/*"), *run.glob("student-*")) if not p.name.startswith("."))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_an_unkilled_one(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(TRAIN, whole)
    moments = kill_until_done(TRAIN, killed, seed=1)
    assert len(moments) >= KILLS, moments
    assert len(set(moments)) > KILLS / 2, moments
    assert load(killed / "teacher").sha256 == load(whole / "teacher").sha256

    finish(["distill", str(whole / "teacher"), *DISTILL], whole)
    moments = kill_until_done(["distill", str(killed / "teacher"), *DISTILL], killed, seed=2)
    assert len(moments) >= KILLS, moments
    rounds = {sum(f"student-000{n}'" in moment for n in (4, 2, 1)) for moment in moments}
    assert len(rounds) >= 2, moments  # within more than one round
    for name in ("student-0004", "student-0002", "student-0001"):
        assert load(killed / name).sha256 == load(whole / name).sha256
    assert [path.name for path in (killed / "progress").iterdir()] == ["teacher-00000400"]
    assert not list(killed.glob(".*.tmp"))
