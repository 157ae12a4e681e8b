"""What a run says while it works: a progress bar, a JSONL file, and TensorBoard where it is installed."""

import json
import types
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


class Log:
    """Lines of a run: `Log(path)` appends to `path/log.jsonl`; without a path nothing is written.

    `quiet` shows no progress bar.
    """

    def __init__(self, path: Path | None = None, quiet: bool = False) -> None:
        self._file = path / "log.jsonl" if path else None
        self._board = _tensorboard(path) if path else None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[status]}", style="dim"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
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
        self._progress.console.print(message, highlight=False)

    def advance(self, stage: str, done: int, total: int, status: str = "") -> None:
        """Move the bar of `stage` to `done` of `total`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, completed=done, status=status)
        self._progress.update(self._tasks[stage], completed=done, total=total, status=status)

    def write(self, stage: str, update: int, values: dict[str, float]) -> None:
        """Append a line of figures measured at `update` of `stage`."""
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps({"stage": stage, "update": update, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{stage}/{name}", value, update)

    def rewind(self, stage: str, update: int) -> None:
        """Drop lines of `stage` after `update`: the run goes on from there and will write them again."""
        if self._file is None or not self._file.exists():
            return
        kept = []
        for line in self._file.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the half of a line that a kill left
            if entry.get("stage") != stage or entry.get("update", 0) <= update:
                kept.append(line)
        temporary = self._file.with_name(".log.jsonl.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.replace(self._file)


def _tensorboard(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path / "tensorboard"))
