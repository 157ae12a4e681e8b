"""A run on disk: settings that must not change, a log, and states from which an interrupted run goes on.

    RUN/run.json            the settings the run was begun with
    RUN/log.jsonl           one line every so many updates
    RUN/progress/STAGE-K/   weights, EMA and optimizer after K updates of a stage; the last two are kept
    RUN/teacher/, RUN/student-0032/, …   finished checkpoints

A state is a checkpoint-like folder (safetensors, JSON, hash), renamed into place, so that `kill -9` at any
moment leaves either the old or the new one. Randomness is not stored: every update draws from a stream named by
its number.
"""

import json
import shutil
import types
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor

from pdlab.errors import PdlabError
from pdlab.files import atomic_file
from pdlab.training.checkpoint import read_folder, write_folder


class Run:
    """A run folder, locked for as long as the context lasts.

    Raises PdlabError when another process holds it or the folder cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = filelock.FileLock(self.path / ".lock")

    def __enter__(self) -> "Run":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise PdlabError(f"another pdlab works in {self.path}: wait for it, or choose another --run") from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise PdlabError(f"cannot write to {self.path}: {reason}; choose another folder with --run") from None
        for leftover in [*self.path.glob(".*.tmp"), *self.path.glob("progress/.*.tmp")]:
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._lock.release()

    def claim(self, job: str, settings: dict[str, Any]) -> None:
        """Record `settings` of `job` ("train", "distill") or check that they are those it was begun with."""
        file = self.path / f"{job}.json"
        settings = json.loads(json.dumps(settings))
        if file.exists():
            before = _read_json(file)
            if before != settings:
                changed = "; ".join(_differences(before, settings))
                raise PdlabError(
                    f"{self.path} holds a run with other settings ({changed}): give those to resume it, or "
                    "choose another --run"
                )
            return
        with atomic_file(file) as stream:
            stream.write(json.dumps(settings, indent=2).encode())

    def checkpoint(self, name: str) -> Path | None:
        """The finished checkpoint `name` of this run, if there is one."""
        path = self.path / name
        return path if (path / "model.json").exists() else None

    def save_state(self, stage: str, k: int, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Keep the state after `k` updates of `stage`; older ones but the one before go."""
        path = self.path / "progress" / f"{stage}-{k:08d}"
        if not path.exists():
            write_folder(path, "state", tensors, {"updates": k, **header})
        for old in self._states(stage)[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def load_state(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
        """The newest sound state of `stage` (empty if none) and what was wrong with newer ones."""
        problems: list[str] = []
        for path in reversed(self._states(stage)):
            try:
                return *read_folder(path, "state"), problems
            except PdlabError as error:
                problems.append(str(error))
                shutil.rmtree(path, ignore_errors=True)
        return {}, {}, problems

    def drop_states(self, stage: str) -> None:
        """Remove the states of a stage whose checkpoint is written."""
        for path in self._states(stage):
            shutil.rmtree(path, ignore_errors=True)

    def _states(self, stage: str) -> list[Path]:
        return sorted((self.path / "progress").glob(f"{stage}-*"))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(file.read_text())
        return value
    except (OSError, ValueError):
        raise PdlabError(f"{file} cannot be read: choose another --run, or remove that folder") from None


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted({*before, *now})
        return [d for n in names for d in _differences(before.get(n), now.get(n), f"{path}.{n}".lstrip("."))]
    return [] if before == now else [f"{path} was {before}, is {now}"]
