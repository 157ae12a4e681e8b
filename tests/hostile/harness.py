"""Runs a command in this process and asserts what must hold whatever it is given.

It ends with 0 or, in one line, with 2; it takes no more memory or work than there is; and where it refuses, nothing
on disk is other than before.
"""

import contextlib
import functools
import hashlib
import io
import os
import signal
import socket
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import sklearn.datasets
import typer

from pdlab import cli

MOST_MEMORY = 2 << 30
MOST_WORK = 10  # seconds of the processor, which do not depend on who else uses it
DEVICES = [path for path in ("/dev/null", "/dev/full", "/dev/zero") if Path(path).is_char_device()]
HANGS = 120  # seconds of the clock: it waits for something that will never come
COMMAND = typer.main.get_command(cli.app)  # as every call of `pdlab` would make it anew
_DIGITS = functools.cache(sklearn.datasets.load_digits)
_ADDRESSES = socket.getaddrinfo


class Outcome:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def refusals(self) -> list[str]:
        """The lines that say why."""
        return [line for line in self.err.splitlines() if line.startswith("pdlab: ") and ": note:" not in line]


def attempt(args: list[str], folder: Path) -> Outcome:
    """Run `pdlab *args` and assert all of the above; `folder` is what may not change if it is refused."""
    before = contents(folder)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    _forget_peak()
    already = _peak()
    with (
        mock.patch.object(sys, "argv", ["pdlab", *args]),
        mock.patch.object(warnings, "showwarning", warnings.showwarning),
        mock.patch.object(os, "fsync"),  # no power fails here, and it takes most of the time
        mock.patch.object(typer.main, "get_command", return_value=COMMAND),
        mock.patch.object(sklearn.datasets, "load_digits", _DIGITS),
        mock.patch.object(socket, "getaddrinfo", _unplugged),
        mock.patch("pdlab.data.download.RETRIES", 0),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _bounded(args),
    ):
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    assert _peak() - already < MOST_MEMORY, (args, already, _peak())
    outcome = Outcome(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]
    assert code in (0, 2), (args, code, outcome.err)
    assert "Traceback" not in outcome.err, (args, outcome.err)
    if code == 2:
        assert len(outcome.refusals) == 1, (args, outcome.err)
        if "not finite" not in outcome.err:  # a training that began, and went wrong
            assert contents(folder) == before, (args, outcome.err)
    assert all(Path(device).is_char_device() for device in DEVICES), (args, "replaced")
    left = list(folder.rglob(".pdlab-tmp-*"))
    assert not left, (args, left)
    return outcome


def contents(folder: Path) -> dict[str, object]:
    """Everything below `folder` by its name there: what kind it is, and the hash of what it holds."""
    found: dict[str, object] = {}
    waiting = [str(folder)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.name == ".lock":  # which is there for as long as a run's folder
                continue
            status = entry.stat(follow_symlinks=False)
            content: object = stat.S_IFMT(status.st_mode)
            if stat.S_ISREG(status.st_mode):
                content = _hash(entry.path, status) if status.st_size < 64 << 20 else status.st_size
            elif stat.S_ISDIR(status.st_mode):
                waiting.append(entry.path)
            found[entry.path[len(str(folder)) + 1 :]] = content
    return found


_hashes: dict[str, tuple[tuple[int, ...], str]] = {}


def _hash(path: str, status: os.stat_result) -> str:
    """The SHA-256 of a file, computed anew if it may have changed."""
    version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if path in _hashes and _hashes[path][0] == version:
        return _hashes[path][1]
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if time.time_ns() - status.st_ctime_ns > 10**9:  # else the next change may bear the same time
        _hashes[path] = version, digest
    return digest


def _unplugged(host: str, *args: Any, **options: Any) -> Any:
    if host not in ("localhost", "127.0.0.1"):
        raise socket.gaierror(socket.EAI_NONAME, "unplugged")
    return _ADDRESSES(host, *args, **options)


@contextlib.contextmanager
def _bounded(args: list[str]) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise AssertionError((args, "takes too long" if number == signal.SIGPROF else "hangs"))

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, MOST_WORK)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most memory that was resident since `_forget_peak`, in bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def examples(usual: int) -> int:
    """How many cases to try: `usual`, or $PDLAB_HOSTILE times as many, to be let run for hours."""
    return round(usual * float(os.environ.get("PDLAB_HOSTILE", "1")))


def first_seed() -> int:
    """$PDLAB_HOSTILE_SEED, of the generator of cases."""
    return int(os.environ.get("PDLAB_HOSTILE_SEED", "0"))
