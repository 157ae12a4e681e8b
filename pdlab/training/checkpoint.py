"""Checkpoints: a denoiser on disk, in a folder of two files that is written whole or not at all.

    NAME/model.safetensors    the weights, float32 (or float16 in the zoo)
    NAME/model.json           everything else, with the sha256 of the weights

A LoRA student's weights are those of its adapter alone (`networks.lora`). Its JSON names the checkpoint that it
stands on by sha256 and by the name of a folder beside its own: a path could lead a reader anywhere, and a run that
is moved whole stays whole. Reading merges the two, so that nothing that uses a checkpoint sees which kind it is.

How they are written and checked is `pdlab.tensors`; a checkpoint is never changed afterwards.
The sha256 of the weights is the checkpoint's name in reports and lineage.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from pdlab import schema
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.errors import Damaged, PdlabError, reason
from pdlab.networks import lora, registry
from pdlab.tensors import Shapes, most_bytes, read_tensors, shapes_of, write_folder
from pdlab.training.presets import Optimization, Preset, from_dict

#: What to do when a run's folders cannot be written.
REMEDY = "choose another --run, then give the same command again: what was there before is unchanged"


class Data(TypedDict):
    """A data set as checkpoints record it."""

    name: str
    split: str
    shape: list[schema.Count]
    num_classes: schema.Whole
    classes: NotRequired[list[str]]
    digest: schema.Sha256


class Spent(TypedDict):
    """What a checkpoint cost, see `pdlab.training.cost`."""

    images: schema.Whole
    forward_evaluations: schema.Whole
    backward_evaluations: schema.Whole
    flops: schema.NotNegative
    seconds: schema.NotNegative


class Origin(TypedDict):
    """The smaller teacher that one grew from."""

    sha256: schema.Sha256
    data: str
    cost: Spent


class Change(TypedDict):
    """Settings that were others from update `update` (the first is 1) on; see `loop.CHANGEABLE`."""

    update: schema.Updates
    was: dict[str, float | int | str]
    now: dict[str, float | int | str]


class Info(TypedDict):
    """What `pdlab train`, `distill` and `zoo build` know of a checkpoint; `preset` has a schema of its own."""

    model: Literal["teacher", "converted", "guided", "distilled"]
    preset: dict[str, Any]
    data: Data
    ema: bool
    seed: schema.Whole
    teacher: schema.Sha256 | None
    grown_from: NotRequired[Origin]
    device: str
    cost: NotRequired[Spent]  # not known of a teacher that was trained elsewhere
    optimization: NotRequired[Optimization]
    hops: NotRequired[schema.Count]
    changes: NotRequired[list[Change]]  # of settings, on the way
    skipped: NotRequired[list[schema.Updates]]  # updates that were passed over
    zoo: NotRequired[str]
    float32: NotRequired[schema.Sha256]


class Bounds(TypedDict):
    """A schedule's; null is infinite, see `pdlab.schema`."""

    logsnr_min: schema.Finite | None
    logsnr_max: schema.Finite | None


class Standing(TypedDict):
    """Of an adapter: its rank, and the checkpoint that it changes, by its folder's name and its sha256."""

    rank: schema.Rank
    base: Annotated[str, Field(pattern=r"^[^./\x00][^/\x00]{0,254}$")]
    sha256: schema.Sha256


class Header(TypedDict):
    """model.json without its seal; `info` is empty for a denoiser that was made by hand."""

    sha256: schema.Sha256
    network: dict[str, Any]
    output: str
    schedule: Bounds
    bounded: bool
    steps: schema.Steps | None
    info: dict[str, Any]
    adapter: NotRequired[Standing]


@dataclass
class Checkpoint:
    """A denoiser with what is known about it.

    `info` is an `Info` (preset, data, training, lineage), or empty for a denoiser that was made by hand;
    `sha256` names the weights, `path` is where they lie. `adapter` are the tensors of a LoRA student, merged into
    the denoiser already; it is empty for any other.
    """

    denoiser: Denoiser
    info: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    path: Path | None = None
    adapter: dict[str, Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example, `(C, H, W)` or `(D,)`."""
        return tuple(registry.config_of(self.denoiser).shape)

    @property
    def preset(self) -> Preset:
        """What it was trained by, and how its rounds go. PdlabError for a denoiser that was made by hand."""
        return from_dict(known(self)["preset"], f"{self.path}: info.preset")

    @property
    def precision(self) -> str:
        """The precision that it is meant to run in: "auto" where nothing is known."""
        return str(self.info.get("preset", {}).get("precision", "auto"))

    @property
    def classes(self) -> list[str]:
        """The names of its classes in the order of their numbers, which stand in where none are known."""
        number = self.denoiser.num_classes
        names = self.info.get("data", {}).get("classes", [])
        return list(names) if len(names) == number else [str(k) for k in range(number)]

    def step_count(self, steps: int | None) -> int:
        """`steps`, or a student's own. PdlabError where neither is known, or for less than 1."""
        count = self.denoiser.steps if steps is None else steps
        if count is None:
            what = self.path or "this model"
            raise PdlabError(f"{what} is not distilled and has no step count of its own: give steps (--steps)")
        if count < 1:
            raise PdlabError(f"steps must be at least 1, not {count}")
        return count

    def class_numbers(self, wanted: Sequence[str | int] | None) -> list[int] | None:
        """The numbers of classes given by name or number; None stays None. PdlabError lists those there are."""
        if wanted is None:
            return None
        if not self.denoiser.num_classes:
            raise PdlabError("this model was trained without classes: leave them out")
        known = self.classes
        numbers = {str(k): k for k in range(len(known))} | {name: k for k, name in enumerate(known)}
        for name in wanted:
            if str(name) not in numbers:
                raise PdlabError(
                    f"there is no class {name}: there are {', '.join(known)}, or 0 to {len(known) - 1}"
                )
        if not wanted:
            raise PdlabError(f"no class was given: there are {', '.join(known)}")
        return [numbers[str(name)] for name in wanted]


def save(
    path: Path,
    denoiser: Denoiser,
    info: dict[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    standing: Standing | None = None,
) -> str:
    """Write `denoiser` (with `weights` instead of its own, e.g. the EMA) as a new folder `path`.

    `info` is an `Info`, or nothing for a denoiser that was made by hand. With `standing` the `weights` are those of
    an adapter. Returns their sha256. Raises PdlabError when it cannot be written; nothing is left then.
    """
    info = info or {}
    _check_info(info, str(path))
    schedule = denoiser.schedule
    header = {
        "network": registry.to_json(registry.config_of(denoiser)),
        "output": denoiser.output,
        "schedule": schema.without_infinities(
            {"logsnr_min": schedule.logsnr_min, "logsnr_max": schedule.logsnr_max}
        ),
        "bounded": denoiser.bounded,
        "steps": denoiser.steps,
        "info": info,
        **({} if standing is None else {"adapter": standing}),
    }
    return write_folder(path, "model", weights or denoiser.network.state_dict(), header, REMEDY)


def copied(path: Path, to: Path) -> None:
    """Write the checkpoint `path` once more, as the new folder `to`. Raises PdlabError as `save` and `load`."""
    header = read_header(path)
    write_folder(to, "model", read_tensors(path / "model.safetensors", header["sha256"]), header, REMEDY)


def load(path: Path | str, network: nn.Module | None = None) -> Checkpoint:
    """Read a checkpoint folder, checking its hash; weights become float32.

    The weights go into `network`, which one's own needs to be; without, into one that the folder describes, of a
    registered kind. Nothing that a file names is imported. Raises PdlabError, one line, for a missing, damaged or
    foreign checkpoint, and names a good neighbour.
    """
    path = Path(path)
    try:
        return _load(path, network)
    except registry.Unbuildable as error:
        raise registry.Unbuildable(f"{path}: {error}") from None
    except (PdlabError, OSError) as error:
        good = [other for other in checkpoints_in(path.parent) if other != path and _is_good(other)]
        hint = f"; the newest good checkpoint beside it is {good[-1]}" if good else ""
        what = f"{path} cannot be read as a checkpoint: {reason(error)}" if isinstance(error, OSError) else error
        raise PdlabError(f"{what}{hint}") from None


def read_header(path: Path) -> dict[str, Any]:
    """The `Header` of checkpoint `path`, its `info` too. Raises PdlabError, or OSError as `open` has it."""
    file = path / "model.json"
    header = schema.read(file, Header)
    _check_info(header["info"], str(file))
    return header


def most_weights(path: Path, network: nn.Module | None = None) -> int:
    """The bytes that the weights of checkpoint `path`, of which the JSON alone need be there, take at most.

    Raises PdlabError as `load` does.
    """
    described = _described(read_header(path), f"{path / 'model.json'}", network)
    return most_bytes(shapes_of(described.network.state_dict()))


def known(checkpoint: Checkpoint) -> dict[str, Any]:
    """`checkpoint.info`; PdlabError where a denoiser made by hand has none."""
    if not checkpoint.info:
        raise PdlabError(f"{checkpoint.path} does not say what it was trained on, or how: use it from Python")
    return checkpoint.info


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoint folders in `folder`, oldest first; those that cannot be looked into are passed over."""
    found = []
    with contextlib.suppress(OSError):
        for file in folder.glob("*/model.json"):
            with contextlib.suppress(OSError):
                if not file.parent.name.startswith("."):
                    found.append((file.stat().st_mtime_ns, file.parent.name, file.parent))
    return [path for _, _, path in sorted(found)]


def _load(path: Path, network: nn.Module | None = None) -> Checkpoint:
    if not path.exists():
        raise PdlabError(f"there is no checkpoint {path}")
    if path.is_dir() and not (path / "model.json").exists() and (found := checkpoints_in(path)):
        names = ", ".join(str(other) for other in found)
        raise PdlabError(f"{path} is a run with several checkpoints: name one of {names}")
    try:
        header = read_header(path)
        denoiser = _described(header, f"{path / 'model.json'}", network)
        held = denoiser.network.state_dict()
        into = f"network {type(network).__name__}" if network is not None else "its JSON"
        standing = header.get("adapter")
        expected = shapes_of(held) if standing is None else lora.tensors_of(denoiser.network, standing["rank"])
        tensors = read_tensors(path / "model.safetensors", header["sha256"], expected, into)
    except FileNotFoundError as error:
        raise PdlabError(f"{path} is not a checkpoint: it has no {Path(error.filename).name}") from None
    counts = {name for name, tensor in held.items() if not tensor.is_floating_point()}  # such as norms' of batches
    adapter: dict[str, Tensor] = {}
    if standing is not None:
        adapter, tensors = _floats(path, tensors), _read_base(path, standing, shapes_of(held), into)
    if network is None:
        if {name for name, _ in denoiser.network.named_buffers()} - held.keys():  # computed, and in no file
            with torch.random.fork_rng(devices=[]):
                denoiser.network = registry.build(registry.config_of(denoiser), header["output"])
        else:
            denoiser.to_empty(device="cpu")
    denoiser.network.load_state_dict(_floats(path, tensors, counts))
    lora.merge(denoiser.network, adapter)
    return Checkpoint(denoiser.eval(), header["info"], header["sha256"], path, adapter)


def _floats(path: Path, tensors: Mapping[str, Tensor], counts: Iterable[str] = ()) -> dict[str, Tensor]:
    """`tensors` in float32, but for those that are `counts`; PdlabError for what is not finite numbers."""
    for name, tensor in tensors.items():
        if (name in counts) == tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise PdlabError(f"{path}: {name} holds other things than finite numbers; train it again")
    return {name: tensor if name in counts else tensor.float() for name, tensor in tensors.items()}


def _read_base(
    path: Path, standing: Standing, expected: Shapes | None = None, into: str = "its JSON"
) -> dict[str, Tensor]:
    """The weights of the checkpoint that the adapter `path` stands on."""
    place = path.resolve().parent / standing["base"]
    try:
        return read_tensors(place / "model.safetensors", standing["sha256"], expected, into)
    except (Damaged, FileNotFoundError, NotADirectoryError):
        raise PdlabError(
            f"{path} is an adapter, and {place} is not the checkpoint that it stands on: put that of sha256 "
            f"{standing['sha256']:.12}… there, or take the whole folder of the run"
        ) from None


def _described(header: dict[str, Any], what: str, network: nn.Module | None) -> Denoiser:
    """The denoiser that `header` describes, around `network`, or one without memory."""
    config = registry.from_json(header["network"], f"{what}: network")
    try:
        if network is None:
            with torch.device("meta"):
                network = registry.build(config, header["output"])
        elif isinstance(network, nn.Module) and not any(p.is_meta for p in network.parameters()):
            network = network.float()
        schedule = CosineSchedule(**schema.with_infinities(header["schedule"]))
        return Denoiser(
            network,
            header["output"],
            schedule,
            bounded=header["bounded"],
            steps=header["steps"],
            **registry.conditioning(config),
        )
    except (ValueError, RuntimeError, OverflowError) as error:
        raise PdlabError(f"{what} does not describe a network: {reason(error)}") from None


def _is_good(path: Path) -> bool:
    try:
        header = read_header(path)
        read_tensors(path / "model.safetensors", header["sha256"])
        if "adapter" in header:
            _read_base(path, header["adapter"])
    except (PdlabError, OSError):
        return False
    return True


def _check_info(info: dict[str, Any], what: str) -> None:
    if info:
        schema.conform(info, Info, f"{what}: info")
        from_dict(info["preset"], f"{what}: info.preset")
