"""Ladders to show and their models: the zoo's and the user's runs, nothing else, within a bound on memory."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from pdlab import data, schema, zoo
from pdlab.data import ImageSource
from pdlab.diffusion.denoiser import Denoiser
from pdlab.distillation.conversion import CONVERTED
from pdlab.distillation.guided import GUIDED
from pdlab.errors import PdlabError, reason
from pdlab.files import read_bytes
from pdlab.metrics.card import Row
from pdlab.metrics.evaluate import noise
from pdlab.networks import registry
from pdlab.training.checkpoint import Checkpoint, checkpoints_in, load, read_header
from pdlab.training.machine import Machine

NOISES, PAGE = 64, 16  # fixed noises of a ladder, and how many of them are shown at a time
QUICKSTART = Path("pdlab-quickstart")
#: The most that an undistilled teacher is guided with here; it was made for no weight in particular.
MOST_GUIDANCE = 4.0

T = TypeVar("T")
#: A model of a ladder: a student's steps, `GUIDED` for stage one of guided distillation, None for the teacher.
Which = int | str | None


class ShownLadder:
    """A teacher and its students, what they draw from fixed noises, and their report.

    `name` is what a link says. `steps` are the students' step counts, most first; `first` is how many steps the
    teacher is read at. `classes` are the names of its classes, if it has any; `shown` is the guidance that it is
    shown in first. `guided` says whether stage one of guided distillation is there to draw with.
    """

    name: str
    steps: list[int]
    first: int
    classes: list[str]
    shown: float = 0.0
    guided: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        raise NotImplementedError

    @property
    def data_name(self) -> str:
        """The data set that it was trained on."""
        raise NotImplementedError

    @property
    def noise(self) -> Tensor:
        """The fixed noises, float32 `[64, C, H, W]`."""
        raise NotImplementedError

    @property
    def samples(self) -> dict[tuple[str, int, float], Tensor]:
        """What is drawn of them already, of all classes in turn: uint8 `[n, C, H, W]` by (kind, steps, guidance).

        The kind is "distilled" or "ddim".
        """
        raise NotImplementedError

    @property
    def report(self) -> dict[str, Any]:
        """The measured report; without one, {"rows": []}."""
        raise NotImplementedError

    def takes(self, which: Which) -> float:
        """The largest guidance that a model of it is drawn with; 0 for one that cannot be guided."""
        raise NotImplementedError

    def checkpoint(self, which: Which) -> Checkpoint:
        """A model of it; PdlabError for one that it does not have."""
        raise NotImplementedError

    def code(self, which: Which) -> tuple[str, str]:
        """The import and the expression that give the denoiser in Python."""
        raise NotImplementedError

    def images(self) -> ImageSource | None:
        """Its training images where they are at hand, else None."""
        raise NotImplementedError

    @property
    def most(self) -> float:
        """The largest guidance to compare at: the students', or the teacher's where they take none."""
        return max((self.takes(steps) for steps in self.steps), default=0.0) or self.takes(None)

    @property
    def counts(self) -> list[int]:
        """The network calls to compare at, most first: every student's and the teacher's first, guided or not."""
        twice = {2 * self.first} if self.takes(None) else set()
        return sorted({self.first, *twice, *self.steps}, reverse=True)

    @cached_property
    def rows(self) -> list[Row]:
        """The figures of the report."""
        return [Row.from_dict(row) for row in self.report["rows"]]

    def described(self) -> str:
        """Its data set and the size of an image, in words."""
        return f"{self.data_name}, {' × '.join(str(side) for side in self.shape[1:])} pixels"


class ZooLadder(ShownLadder):
    """A ladder in the zoo's format, by its name or by the path of its folder."""

    def __init__(self, name: str, key: str) -> None:
        self.name, self._key = name, key
        self._manifest = zoo.manifest(key)
        self.steps = sorted((r["steps"] for r in self._manifest["rungs"] if r["steps"]), reverse=True)
        self.first = int(self._manifest["first_steps"])
        self.classes = zoo.classes(key)
        self.shown = float(self._manifest["guidance"]["shown"])

    @property
    def shape(self) -> tuple[int, ...]:
        """See ShownLadder."""
        return tuple(self._manifest["data"]["shape"])

    @property
    def data_name(self) -> str:
        """See ShownLadder."""
        return str(self._manifest["data"]["name"])

    @cached_property
    def noise(self) -> Tensor:
        """See ShownLadder."""
        return zoo.noise(self._key)

    @cached_property
    def samples(self) -> dict[tuple[str, int, float], Tensor]:
        """See ShownLadder."""
        stored = {float(w): zoo.samples(self._key, w) for w in self._manifest["guidance"]["stored"]}
        return {(kind, n, w): images for w, drawn in stored.items() for (kind, n), images in drawn.items()}

    @cached_property
    def report(self) -> dict[str, Any]:
        """See ShownLadder."""
        return zoo.report(self._key)

    def takes(self, which: Which) -> float:
        """See ShownLadder."""
        if which is None:
            return MOST_GUIDANCE if self._manifest["settings"]["network"].get("null_class") else 0.0
        return float(self._manifest["guidance"]["most"])

    def checkpoint(self, which: Which) -> Checkpoint:
        """See ShownLadder."""
        assert not isinstance(which, str)  # stage one does not ship
        return zoo.checkpoint(self._key, which)

    def code(self, which: Which) -> tuple[str, str]:
        """See ShownLadder."""
        steps = "" if which is None else f", steps={which}"
        return "from pdlab import zoo", f"zoo.load({self._key!r}{steps})"

    def images(self) -> ImageSource | None:
        """See ShownLadder."""
        found = zoo.images(self._key)
        return None if found.name.startswith("samples of ") else found

    def pool(self) -> Tensor:
        """Many samples of the teacher, uint8 `[n, C, H, W]`."""
        return zoo.pool(self._key).images


class RunLadder(ShownLadder):
    """What `pdlab train` and `pdlab distill` (or the quickstart) left in a folder."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self._path = name, path
        self._paths: dict[Which, Path] = {}
        self._takes: dict[Which, float] = {}
        for folder in checkpoints_in(path):
            if "@" in folder.name:  # what the teacher was on the way
                continue
            try:
                header = read_header(folder)
            except OSError as error:
                raise PdlabError(f"{folder} cannot be read as a checkpoint: {reason(error)}") from error
            network, info = header["network"], header["info"]
            registry.check_buildable(registry.from_json(network, f"{folder}: network"))
            # Of images, told no more than a class; what was converted draws as the teacher does.
            drawn = header["bounded"] and not network.get("condition")
            if drawn and info and info["model"] != CONVERTED:
                which = GUIDED if info["model"] == GUIDED else header["steps"]
                self._paths[which], self._takes[which] = folder, float(network.get("guidance_max", 0.0))
                self._info = info
                if which is None:
                    self.classes = _class_names(network, info)
                    if network.get("null_class"):
                        self._takes[None] = MOST_GUIDANCE
        if None not in self._paths:
            raise PdlabError(f"{path} holds no teacher of images: start one with pdlab train … --run {path}")
        self.steps = sorted((which for which in self._paths if isinstance(which, int)), reverse=True)
        self.first = int(self._info["preset"]["first_steps"])
        self.guided = GUIDED in self._paths

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """See ShownLadder."""
        return self.checkpoint(None).shape

    @property
    def data_name(self) -> str:
        """See ShownLadder."""
        return str(self._info["data"]["name"])

    @cached_property
    def noise(self) -> Tensor:
        """See ShownLadder."""
        return noise(self.shape, NOISES, 0)

    @cached_property
    def samples(self) -> dict[tuple[str, int, float], Tensor]:
        """See ShownLadder."""
        if self.classes:  # the quickstart, which leaves such a file, has none
            return {}
        try:
            tensors = safetensors.torch.load(read_bytes(self._path / zoo.SAMPLES, zoo.MOST_BYTES))
            parts = ((name.partition("/"), tensor) for name, tensor in tensors.items())
            return {(kind, int(steps), 0.0): tensor for (kind, _, steps), tensor in parts}
        except (OSError, ValueError, PdlabError, safetensors.SafetensorError):
            return {}

    @cached_property
    def report(self) -> dict[str, Any]:
        """See ShownLadder."""
        try:
            file = self._path / zoo.REPORT
            found: dict[str, Any] = schema.parse(read_bytes(file, schema.MOST_JSON), str(file))
            schema.conform(found["rows"], list[Row], f"{file}: rows")
            return found
        except (OSError, ValueError, KeyError, TypeError, PdlabError):
            return {"rows": []}

    def takes(self, which: Which) -> float:
        """See ShownLadder."""
        return self._takes.get(which, 0.0)

    def checkpoint(self, which: Which) -> Checkpoint:
        """See ShownLadder."""
        if which not in self._paths:
            raise PdlabError(f"{self.name} has no student of {which} steps: distil it with pdlab distill")
        return load(self._paths[which])

    def code(self, which: Which) -> tuple[str, str]:
        """See ShownLadder."""
        return (
            "from pdlab.training.checkpoint import load",
            f"load({str(self._paths[which])!r}).denoiser",
        )

    def images(self) -> ImageSource | None:
        """See ShownLadder."""
        try:
            found = data.load(self.data_name)
        except PdlabError:
            return None
        return found if isinstance(found, ImageSource) else None


class Recent(Generic[T]):
    """What was used last, as far as it fits into `bound` bytes; the newest is kept whatever its size."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._held: OrderedDict[Any, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> T | None:
        """What is held under `key`, which is then the newest."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: Any, value: T, size: int) -> None:
        """Hold `value` of `size` bytes, letting go of the oldest beyond the bound."""
        with self._lock:
            self._held[key] = (value, size)
            self._held.move_to_end(key)
            while len(self._held) > 1 and self.size > self.bound:
                self._held.popitem(last=False)

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(size for _, size in self._held.values())

    def __len__(self) -> int:
        return len(self._held)


@dataclass(frozen=True)
class Drawn:
    """Images uint8 `[n, C, H, W]`; `seconds` they took on this machine, None for precomputed ones."""

    images: Tensor
    seconds: float | None = None


class Shelf:
    """All ladders that can be shown, their models, and what was drawn live.

    Args:
        runs: a folder that is a run or a ladder, or that holds such; read beside the zoo.
        models: bytes of weights that are kept loaded.
        drawn: bytes of images that are kept.
    """

    def __init__(self, runs: Path | None = None, models: int = 512 << 20, drawn: int = 64 << 20) -> None:
        self.runs = runs
        self._models: Recent[Denoiser] = Recent(models)
        self.drawn: Recent[Drawn] = Recent(drawn)
        self.features: Recent[Tensor] = Recent(64 << 20)
        self.ladders: dict[str, ShownLadder] = {}
        self.refused: list[str] = []
        self._machine: Machine | None = None
        self.refresh()

    def refresh(self) -> None:
        """Look again for ladders: the zoo's default first. What cannot be read is named in `refused`."""
        found: dict[str, ShownLadder] = {}
        refused: list[str] = []
        shipped = zoo.names()
        if shipped:
            shipped.sort(key=lambda name: name != zoo.default())
        places: list[tuple[str, Callable[[str], ShownLadder]]] = [
            (name, lambda unique, name=name: ZooLadder(unique, name))  # type: ignore[misc]
            for name in shipped
        ]
        places += [_place(path) for path in _folders(self.runs)]
        for name, make in places:
            unique = next(
                n for n in itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2))) if n not in found
            )
            try:
                found[unique] = make(unique)
            except PdlabError as error:
                refused.append(str(error))
            except (KeyError, TypeError, ValueError):
                refused.append(f"{name} is not a ladder that this version of pdlab reads: build it again")
        self.ladders, self.refused = found, refused

    def ladder(self, name: object = None) -> ShownLadder:
        """The ladder called `name`, or the default one. PdlabError where there is none at all."""
        if isinstance(name, str) and name in self.ladders:
            return self.ladders[name]
        for ladder in self.ladders.values():
            return ladder
        raise PdlabError("there is no ladder to show: run the quickstart, which makes one of digits in minutes")

    def model(self, ladder: ShownLadder, which: Which) -> Denoiser:
        """A model on this machine's device, in float32; loaded once, and let go of beyond the bound."""
        key = (ladder.name, which)
        found = self._models.get(key)
        if found is None:
            found = self.machine.place(ladder.checkpoint(which).denoiser)
            size = sum(p.numel() * p.element_size() for p in found.parameters())
            self._models.put(key, found, size)
        return found

    @property
    def machine(self) -> Machine:
        """This machine: a GPU where there is one."""
        if self._machine is None:
            self._machine = Machine("auto", "fp32")
        return self._machine

    @property
    def loaded(self) -> int:
        """How many models are loaded."""
        return len(self._models)


def page_of(noises: Tensor, page: int) -> Tensor:
    """The noises (or what was made of them) of page 0, 1, …"""
    return noises[page * PAGE : (page + 1) * PAGE]


def synchronized(tensor: Tensor) -> Tensor:
    """`tensor` once the device has computed it, so that a clock tells the truth."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
    return tensor


def _class_names(network: dict[str, Any], info: dict[str, Any]) -> list[str]:
    """The names of the classes in a checkpoint's header, or their numbers where none are known."""
    count = int(network.get("num_classes", 0))
    names = info["data"].get("classes", [])
    return list(names) if len(names) == count else [str(k) for k in range(count)]


def _folders(runs: Path | None) -> Sequence[Path]:
    if runs is None:
        return [QUICKSTART] if _is_run(QUICKSTART) else []
    if not runs.is_dir():
        raise PdlabError(f"--runs {runs}: there is no such folder")
    found = [runs] if _is_run(runs) else [path for path in sorted(runs.iterdir()) if _is_run(path)]
    if not found:
        raise PdlabError(f"--runs {runs} holds no run or ladder: name the folder that pdlab train --run wrote to")
    return found


def _is_run(path: Path) -> bool:
    return (path / zoo.MANIFEST).is_file() or (path / "teacher" / "model.json").is_file()


def _place(path: Path) -> tuple[str, Callable[[str], ShownLadder]]:
    if (path / zoo.MANIFEST).is_file():
        return path.name, lambda name: ZooLadder(name, str(path))
    return path.resolve().name, lambda name: RunLadder(name, path)
