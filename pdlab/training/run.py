"""A run on disk: settings that must not change, a log, and states from which an interrupted run goes on.

    RUN/train.json, distill.json   the settings each was begun with or, later, changed to, and on what
    RUN/log.jsonl           one line every so many updates
    RUN/progress/STAGE-K/   weights, EMA and optimizer after K updates of a stage; the last two are kept, and the
                            one that a teacher ended in, from which more updates can go on
    RUN/damaged/            what was found damaged: moved here, never removed
    RUN/teacher/, RUN/student-0032/, …   finished checkpoints; RUN/teacher@K/ one on the way
    RUN/base/               the teacher from elsewhere that students of this run are adapters of

A state is a checkpoint-like folder (safetensors, sealed JSON, hash), renamed into place, so that `kill -9` at any
moment leaves either the old or the new one. Randomness is not stored: every update draws from a stream named by
its number.
"""

import contextlib
import json
import re
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import filelock
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from pdlab import schema
from pdlab.errors import Damaged, PdlabError, reason
from pdlab.files import discard, set_aside, sweep, write
from pdlab.tensors import Shapes, read_tensors, write_folder
from pdlab.training.checkpoint import REMEDY, Change


class State(TypedDict):
    """state.json without its seal."""

    sha256: schema.Sha256
    updates: schema.Whole
    seconds: schema.NotNegative
    settings: NotRequired[dict[str, float | int | str]]  # those that may change, as they were last
    changes: NotRequired[list[Change]]
    skipped: NotRequired[list[schema.Updates]]


class Claim(TypedDict):
    """train.json or distill.json without its seal."""

    settings: dict[str, Any]
    machine: str


class Claimed(NamedTuple):
    """What there is to say of a job that is taken up, and whether its settings are others than before."""

    notes: list[str]
    changed: bool


class Run:
    """A run folder, locked for as long as the context lasts. One in which nothing was begun is not left behind.

    Raises PdlabError when another process holds it or the folder cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = filelock.FileLock(self.path / ".lock")
        self._claims: dict[str, Claim] = {}

    def __enter__(self) -> "Run":
        try:
            self._new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise PdlabError(f"another pdlab works in {self.path}: wait for it, or choose another --run") from None
        except OSError as error:
            raise PdlabError(
                f"cannot write to {self.path}: {reason(error)}; choose another folder with --run"
            ) from None
        for folder in (self.path, *(self.path / name for name in ("progress", "packed", "figures"))):
            sweep(folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            if self._new and [entry.name for entry in self.path.iterdir()] == [".lock"]:
                (self.path / ".lock").unlink()
                self.path.rmdir()
        self._lock.release()

    def claim(
        self,
        job: str,
        settings: dict[str, Any],
        machine: str,
        changeable: Iterable[str] = (),
        change: bool = False,
    ) -> Claimed:
        """Take up `job` ("train", "distill") on `machine`.

        Raises PdlabError if it was begun with other settings, but for the fields `changeable` (dotted names) if
        `change` is asked for. Nothing is written before `begin`.
        """
        file = self.path / f"{job}.json"
        settings = json.loads(json.dumps(settings))
        try:
            before = schema.read(file, Claim)
        except FileNotFoundError:
            self._claims[job] = {"settings": settings, "machine": machine}
            return Claimed([], False)
        except (OSError, Damaged) as error:
            raise PdlabError(
                f"{file} cannot be read ({reason(error)}): choose another --run, or move the file away if you know "
                "that the settings are the same"
            ) from None
        differences = _differences(before["settings"], settings)
        changed = "; ".join(differences.values())
        may_change = differences.keys() <= set(changeable)
        if differences and not (may_change and change):
            way = "add --change to go on with these, " if may_change else ""
            raise PdlabError(
                f"{self.path} holds a run with other settings ({changed}): give those to resume it, {way}or "
                "choose another --run"
            )
        notes = []
        if differences:
            self._claims[job] = {"settings": settings, "machine": machine}
            notes.append(f"going on with other settings: {changed}")
        if before["machine"] != machine:
            notes.append(
                f"begun on {before['machine']}, going on with {machine}: the result is as good, but not the same "
                "bits"
            )
        return Claimed(notes, bool(differences))

    def begin(self) -> None:
        """Write down what was claimed: the first update is about to run."""
        for job, claim in self._claims.items():
            write(self.path / f"{job}.json", schema.sealed(claim), "choose another --run")
        self._claims = {}

    def checkpoint(self, name: str) -> Path | None:
        """The finished checkpoint `name` of this run, if there is one."""
        path = self.path / name
        return path if (path / "model.json").exists() else None

    def check_free(self, name: str) -> None:
        """Raise PdlabError, before any work, where something else stands in the place of checkpoint `name`."""
        path = self.path / name
        if path.exists() and self.checkpoint(name) is None:
            raise PdlabError(f"{path} is in the way and is no checkpoint: move it away, or choose another --run")

    def save_state(self, stage: str, k: int, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Keep the state after `k` updates of `stage`; older ones but the one before go."""
        if not (self.path / ".lock").exists():
            raise PdlabError(f"{self.path} was moved or removed meanwhile: put it back, then give the same command")
        path = self._state(stage, k)
        if not path.exists():
            write_folder(path, "state", tensors, {"updates": k, **header}, REMEDY)
        for old in self._states(stage)[:-2]:
            discard(old)

    def load_state(
        self, stage: str, expected: Shapes | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
        """The newest sound state of `stage` (empty if none) and what was wrong with newer ones.

        A state that is proved to be damaged is moved to RUN/damaged. Raises PdlabError for one that cannot be
        read for another reason, or is of other shapes than `expected`, and changes nothing.
        """
        problems: list[str] = []
        for path in reversed(self._states(stage)):
            try:
                return *_read_state(path, stage, expected), problems
            except Damaged as error:
                aside = set_aside(path, self.path / "damaged")
                problems.append(f"{error}; moved to {aside}")
            except OSError as error:
                raise PdlabError(
                    f"{error.filename or path} cannot be read: {reason(error)}; put that right and give the same "
                    "command again, nothing was changed"
                ) from None
        return {}, {}, problems

    def drop_states(self, stage: str, but_last: bool = False) -> None:
        """Remove the states of a stage whose checkpoint is written."""
        for path in self._states(stage)[: -1 if but_last else None]:
            discard(path)

    def holds_state(self, stage: str, k: int) -> bool:
        """Whether the state after `k` updates of `stage` is kept."""
        return self._state(stage, k).exists()

    def _state(self, stage: str, k: int) -> Path:
        return self.path / "progress" / f"{stage}-{k:08d}"

    def _states(self, stage: str) -> list[Path]:
        pattern = re.compile(rf"{re.escape(stage)}-\d{{8}}")
        return sorted(path for path in (self.path / "progress").glob(f"{stage}-*") if pattern.fullmatch(path.name))


def _read_state(path: Path, stage: str, expected: Shapes | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        header = schema.read(path / "state.json", State)
        if path.name != f"{stage}-{header['updates']:08d}":
            raise Damaged(path, f"its state.json is that of update {header['updates']}")
        tensors = read_tensors(path / "state.safetensors", header["sha256"], expected)
    except FileNotFoundError as error:
        raise Damaged(path, f"it has no {Path(error.filename).name}") from None
    return tensors, header


def _differences(before: Any, now: Any, path: str = "") -> dict[str, str]:
    """In words what is other `now`, by the dotted name of the field."""
    if isinstance(before, dict) and isinstance(now, dict):
        found: dict[str, str] = {}
        for name in sorted({*before, *now}):
            found |= _differences(before.get(name), now.get(name), f"{path}.{name}".lstrip("."))
        return found
    return {} if before == now else {path: f"{path} was {before}, is {now}"}
