"""What a run says while it works: a progress bar, a JSONL file, and TensorBoard where it is installed."""

import json
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pdlab import console, schema
from pdlab.errors import PdlabError, reason
from pdlab.files import atomic_file, open_regular, set_aside

MOST_LINE = 1 << 16  # bytes
MOST_FOREIGN = 256  # parts of this length, after which the rest of a log is not read: it may be terabytes of holes


class Log:
    """Lines of a run: `Log(path)` appends to `path/log.jsonl`; without a path nothing is written.

    `quiet` shows no progress bar.
    """

    def __init__(self, path: Path | None = None, quiet: bool = False) -> None:
        self._file = path / "log.jsonl" if path else None
        self._board = _tensorboard(path) if path else None
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[status]}", style="dim", markup=False),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console.errors(),
            disable=quiet,
            refresh_per_second=4,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Log":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._board is not None:
            self._board.close()

    def say(self, message: str) -> None:
        """A line above the bars."""
        console.say(message, self._progress.console)

    def advance(self, stage: str, done: int, total: int, status: str = "") -> None:
        """Move the bar of `stage` to `done` of `total`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, completed=done, status=status)
        self._progress.update(self._tasks[stage], completed=done, total=total, status=status)

    def write(self, stage: str, update: int, values: dict[str, float]) -> None:
        """Append a line of figures measured at `update` of `stage`."""
        self._append({"stage": stage, "update": update, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{stage}/{name}", value, update)

    def note(self, stage: str, update: int, text: str) -> None:
        """Say, and append, what happened to `update` of `stage` that no figure tells."""
        self.say(text)
        self._append({"stage": stage, "update": update, "note": text})
        if self._board is not None:
            self._board.add_text(f"{stage}/note", text, update)

    def _append(self, entry: dict[str, float | int | str]) -> None:
        if self._file is not None:
            try:
                with self._file.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
            except OSError as error:
                raise PdlabError(
                    f"cannot write {self._file}: {reason(error)}; put that right, then give the same command "
                    "again: it goes on from the last saved state"
                ) from error

    def rewind(self, stage: str, update: int) -> None:
        """Drop lines of `stage` after `update`: the run goes on from there and will write them again.

        A log that cannot be read is moved to RUN/damaged, and what can be read of it is kept.
        """
        if self._file is None or not os.path.lexists(self._file):
            return
        try:
            with atomic_file(self._file, "choose another --run") as kept:
                if not _copied(self._file, kept, stage, update):
                    aside = set_aside(self._file, self._file.parent / "damaged")
                    self.say(f"{self._file} is damaged and was moved to {aside}; what could be read of it is kept")
        except OSError as error:
            raise PdlabError(f"cannot move {self._file} aside: {reason(error)}") from error


def _copied(file: Path, kept: IO[bytes], stage: str, update: int) -> bool:
    """Write to `kept` the lines of `file` but those of `stage` after `update`; whether all could be read."""
    sound, half = True, False
    for line in _lines(file):
        sound = sound and not half  # a kill leaves half a line, but nothing after it
        try:
            entry = _entry(line)
            if entry["stage"] != stage or int(entry["update"]) <= update:
                kept.write(line.rstrip() + b"\n")
        except (PdlabError, KeyError, ValueError):
            half = not line.endswith(b"\n")
            sound = sound and half
    return sound


def figures(file: Path, stage: str) -> dict[str, dict[int, float]]:
    """What `stage` measured on its way, by name and update; of a file that is missing or damaged, what is whole."""
    found: dict[str, dict[int, float]] = {}
    for line in _lines(file):
        try:
            entry = _entry(line)
            if entry["stage"] == stage:
                for name, value in entry.items():
                    if name != "update" and not isinstance(value, str):
                        found.setdefault(name, {})[int(entry["update"])] = float(value)
        except (PdlabError, KeyError, ValueError):
            continue
    return found


def _entry(line: bytes) -> dict[str, float | int | str]:
    entry: dict[str, float | int | str] = schema.conform(
        schema.parse(line, "a line"), dict[str, float | int | str], "a line"
    )
    return entry


def _lines(file: Path) -> Iterator[bytes]:
    """The lines of `file`; where it cannot be read, one that is none."""
    try:
        with open_regular(file) as lines:
            foreign = 0
            while line := lines.readline(MOST_LINE):
                yield line
                foreign += len(line) == MOST_LINE  # a part of no line of ours
                if foreign > MOST_FOREIGN:
                    yield b"\n"
                    return
    except (OSError, PdlabError):
        yield b"\n"


def _tensorboard(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path / "tensorboard"))
