"""Named settings: the paper's, and small ones for two cores. Any field can be overridden by its dotted name."""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from pdlab import schema
from pdlab.diffusion.prediction import OUTPUTS
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.diffusion.weighting import WEIGHTINGS
from pdlab.errors import PdlabError
from pdlab.networks import registry
from pdlab.networks.mlp import MLPConfig
from pdlab.networks.unet import UNetConfig

#: The configuration of a registered network, or of one's own; in JSON with its kind.
Network = Annotated[Any, PlainValidator(registry.checked)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]  # it becomes part of paths


@dataclass(frozen=True)
class Optimization:
    """One run of the loop: a teacher's training, or one halving round.

    `updates` optimizer steps of `batch` examples; Adam at `lr`, or with `optimizer` "muon" that at `muon_lr` for
    the inner matrices (see `training.optimizers`); linear `warmup` (updates), then constant or,
    with `anneal`, linear to zero at the end; global gradient norm clipped to `clip`; `ema` is the decay of the
    weights' moving average (0: none); `flip` mirrors images at random; `label_drop` is the share of labels that a
    teacher with a null class is not told.

    With `micro_batch` an update goes through its batch in parts of so many examples: the same gradients, but for
    rounding, in less memory.

    Two fields are pdlab's own way by default, and the authors' in the paper's presets. `ema_warmup` holds the
    decay to at most (1 + k)/(10 + k) after k updates: at 0.9999 all along, the average of a run of 10,000 updates
    would be 37 % initial weights. `times` "stratified" draws one time in every batch-th of (0, 1], for gradients of
    less variance and the same mean; "independent" draws each by itself.
    """

    updates: schema.Updates
    batch: schema.Count
    lr: schema.Positive
    warmup: schema.Whole = 0
    anneal: bool = False
    weight_decay: schema.NotNegative = 0.0
    clip: schema.Positive = 1.0
    ema: schema.Share = 0.0
    ema_warmup: bool = True
    times: Literal["stratified", "independent"] = "stratified"
    dropout: schema.Share = 0.0
    flip: bool = False
    label_drop: schema.Share = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_lr: schema.Positive = 0.02
    micro_batch: schema.Whole = 0

    def __post_init__(self) -> None:
        schema.check(self)


@dataclass(frozen=True)
class Preset:
    """Everything that `pdlab train` and `pdlab distill` need but the place of the data.

    `distill.updates` is for one halving; the halvings to 2 and to 1 step take twice as many. `first_steps` is
    the step count at which the undistilled teacher is first read. With `guidance_max` > 0 the ladder begins with
    a student of settings `guide` that takes a guidance weight in [0, guidance_max] (Meng et al. 2023), and every
    round keeps it; by the same settings an eps network becomes a v network first. `precision`: "auto", "fp32" or
    "bf16". `teacher` is None for one that was trained elsewhere. A folder's images are brought to `size` pixels by
    `resize` (see `data.folder`): "box" as ImageNet 64 was made, "bilinear" as the authors did LSUN.
    """

    name: Name
    data: Name
    network: Network
    output: str
    weighting: str
    teacher: Optimization | None
    distill: Optimization
    first_steps: schema.Steps
    size: Annotated[int, Field(ge=1, le=8192)] | None = None
    resize: Literal["box", "bilinear"] = "box"
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    guidance_max: schema.NotNegative = 0.0
    guide: Optimization = Optimization(updates=2_000, batch=128, lr=5e-4, anneal=True)

    def __post_init__(self) -> None:
        schema.check(self)
        for value, known, what in (
            (self.output, OUTPUTS, "output"),
            (self.weighting, WEIGHTINGS, "weighting"),
        ):
            if value not in known:
                raise PdlabError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")
        CosineSchedule(self.logsnr_min, self.logsnr_max).check_output(self.output)
        null_class = getattr(self.network, "null_class", False)
        if self.teacher is not None and self.teacher.label_drop and not null_class:
            raise PdlabError("teacher.label_drop needs network.null_class=true: a label for no class")
        if self.guidance_max and not null_class:
            raise PdlabError("guidance_max needs network.null_class=true and teacher.label_drop, e.g. 0.1")

    @property
    def teaching(self) -> Optimization:
        """The teacher's settings. PdlabError where it was trained elsewhere."""
        if self.teacher is None:
            raise PdlabError(f"the teacher of {self.name} was trained elsewhere: distil that one")
        return self.teacher


CIFAR10_GPU = Preset(
    name="cifar10-gpu",
    data="cifar10",
    # Small enough for students to be quick on a laptop, and for a ladder to be shipped: norm groups of 16 channels.
    network=UNetConfig(
        image_size=32,
        channels=32,
        multipliers=(2, 3, 4),
        blocks=1,
        attention=(8,),
        heads=None,
        head_dim=32,
        embedding_channels=256,
        group_size=16,
        num_classes=10,
        null_class=True,
    ),
    output="v",
    weighting="truncated",
    # Four and a half minutes of one H200, the compiler's not counted: as much as there was.
    teacher=Optimization(
        updates=2_200,
        batch=1000,
        lr=1e-3,
        warmup=100,
        anneal=True,
        ema=0.998,
        flip=True,
        label_drop=0.1,
        optimizer="muon",
    ),
    distill=Optimization(updates=70, batch=1000, lr=3e-4, anneal=True, flip=True, optimizer="muon", muon_lr=5e-3),
    first_steps=32,
    guidance_max=3.0,
    guide=Optimization(updates=200, batch=1000, lr=3e-4, anneal=True, flip=True, optimizer="muon", muon_lr=5e-3),
)


# What two cores can learn of CIFAR-10 is learnt where it is cheap, in stages that grow (`networks.grow`). First the
# structure, at half the side in patches of 2, so that 8×8 positions are left inside, without classes; then
# classes, in a wider trunk; then an outer level of patches of 2 around that trunk, for the full side. Means of 2×2
# pixels have less noise: their log-SNR must reach 2 log 2 higher for the same time. x output, as patches carry more
# values than v's noise allows. A grown network's learning rates are low: at Muon's 0.02 it lost what it knew.
_HALF = UNetConfig(
    image_size=16,
    channels=48,
    multipliers=(1, 2),
    blocks=1,
    attention=(4,),
    heads=None,
    head_dim=32,
    embedding_channels=128,
    group_size=16,
    patch=2,
)
_TRUNK = dataclasses.replace(
    _HALF, channels=16, multipliers=(6, 10), time_channels=48, num_classes=10, null_class=True
)
_LEARN = Optimization(updates=31_250, batch=128, lr=1e-3, warmup=200, anneal=True, ema=0.999, flip=True)
_GROW = dataclasses.replace(_LEARN, updates=2_500, lr=5e-4, label_drop=0.1, optimizer="muon", muon_lr=5e-3)
_HALVE = Optimization(updates=300, batch=128, lr=5e-4, anneal=True, flip=True)
CIFAR10_CPU_16PX = Preset(
    name="cifar10-cpu-16px",
    data="cifar10-16px",
    network=_HALF,
    output="x",
    weighting="truncated",
    logsnr_max=6.0,
    teacher=_LEARN,
    distill=_HALVE,
    first_steps=64,
)
CIFAR10_CPU_CLASSES = dataclasses.replace(
    CIFAR10_CPU_16PX, name="cifar10-cpu-classes", network=_TRUNK, logsnr_max=8.0, teacher=_GROW
)
CIFAR10_CPU = dataclasses.replace(
    CIFAR10_CPU_CLASSES,
    name="cifar10-cpu",
    data="cifar10",
    network=dataclasses.replace(_TRUNK, image_size=32, multipliers=(3, 6, 10), image_levels=2),
    logsnr_max=7.0,
    teacher=dataclasses.replace(_GROW, updates=3_000),
    distill=dataclasses.replace(_HALVE, updates=200),
    first_steps=16,
    guidance_max=3.0,
    guide=dataclasses.replace(_HALVE, updates=500),
)


def _presets() -> list[Preset]:
    # Paper: appendix and published configurations and code. A round: no warm-up, no dropout, lr to zero, EMA off.
    cifar10 = Preset(
        name="cifar10-paper",
        data="cifar10",
        network=UNetConfig(
            image_size=32,
            channels=256,
            multipliers=(1, 1, 1),
            blocks=3,
            attention=(8, 16),
            heads=1,
            embedding_channels=1024,
        ),
        output="x",
        weighting="truncated",
        # The paper's CIFAR-10 metrics are taken within 2 M updates.
        teacher=Optimization(
            updates=2_000_000,
            batch=128,
            lr=2e-4,
            warmup=1000,
            weight_decay=0.001,
            ema=0.9999,
            ema_warmup=False,
            times="independent",
            dropout=0.2,
            flip=True,
        ),
        distill=Optimization(updates=50_000, batch=128, lr=5e-5, anneal=True, flip=True, times="independent"),
        first_steps=8192,
    )
    # The teachers' updates are not published; this many equal all ten halvings of 1024 to 1.
    imagenet64 = Preset(
        name="imagenet64",
        data="folder",
        size=64,
        network=UNetConfig(
            image_size=64,
            channels=192,
            multipliers=(1, 2, 3, 4),
            blocks=3,
            attention=(8, 16, 32),
            heads=None,
            head_dim=64,
            embedding_channels=768,
            num_classes=1000,
        ),
        output="both",
        weighting="truncated",
        teacher=Optimization(
            updates=600_000,
            batch=2048,
            lr=3e-4,
            warmup=1000,
            ema=0.9999,
            ema_warmup=False,
            times="independent",
            dropout=0.1,
            flip=True,
        ),
        distill=Optimization(updates=50_000, batch=2048, lr=1e-4, anneal=True, flip=True, times="independent"),
        first_steps=1024,
    )
    lsun128 = dataclasses.replace(
        imagenet64,
        name="lsun128",
        size=128,
        resize="bilinear",
        network=UNetConfig(
            image_size=128,
            channels=64,
            multipliers=(1, 2, 4, 6, 8),
            blocks=3,
            attention=(8, 16, 32),
            heads=None,
            head_dim=64,
            embedding_channels=768,
        ),
    )
    # The digits have 17 grey levels, 0.125 apart: below sigma = 0.17 (a log-SNR of 3.5) little is left to denoise.
    digits = Preset(
        name="digits",
        data="digits",
        network=MLPConfig(shape=(1, 8, 8), width=256, blocks=3, embedding_channels=64),
        output="x",
        weighting="snr+1",
        logsnr_max=3.5,
        teacher=Optimization(updates=4000, batch=128, lr=2e-3, warmup=200, anneal=True, ema=0.998),
        # With the average of a round's weights, 1 step ended 0.3 to 1.3 % lower in each of three seeds.
        distill=Optimization(updates=320, batch=256, lr=1e-3, anneal=True, ema=0.98),
        first_steps=64,
        precision="fp32",
    )
    toy = dataclasses.replace(digits, name="toy", data="moons", network=MLPConfig(shape=(2,), width=128, blocks=3))
    return [
        digits,
        toy,
        CIFAR10_CPU_16PX,
        CIFAR10_CPU_CLASSES,
        CIFAR10_CPU,
        CIFAR10_GPU,
        cifar10,
        imagenet64,
        lsun128,
    ]


PRESETS: dict[str, Preset] = {preset.name: preset for preset in _presets()}


def register_preset(preset: Preset) -> Preset:
    """Register `preset` under its name, for the command line and `preset`. PdlabError for a name that is taken."""
    if PRESETS.setdefault(preset.name, preset) != preset:
        raise PdlabError(f"there is a preset {preset.name!r} already: register yours under another name")
    return preset


def preset(name: str) -> Preset:
    """The preset of this name; raises PdlabError listing the known ones."""
    if name not in PRESETS:
        raise PdlabError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def to_dict(preset: Preset) -> dict[str, Any]:
    """`preset` as plain JSON (an infinite bound becomes null); `from_dict` undoes it."""
    return schema.without_infinities(dataclasses.asdict(preset) | {"network": registry.to_json(preset.network)})


def from_dict(settings: dict[str, Any], what: str = "these settings") -> Preset:
    """The preset that a checkpoint or a run folder recorded (a null bound is infinite).

    Raises PdlabError that names `what` and the field unless it is one.
    """
    found: Preset = schema.conform(schema.with_infinities(settings), Preset, what)
    return found


def override(settings: Any, changes: dict[str, str]) -> Any:
    """`settings` (a dataclass, nested) with fields changed by dotted name, values as text: `teacher.lr` `1e-3`.

    Raises PdlabError for an unknown field or a value that does not read as the field's type.
    """
    return _override(settings, changes, "")


def _override(settings: Any, changes: dict[str, str], prefix: str) -> Any:
    hints = typing.get_type_hints(type(settings))
    nested: dict[str, dict[str, str]] = {}
    values: dict[str, Any] = {}
    for path, text in changes.items():
        name, _, rest = path.partition(".")
        if name not in hints:
            raise PdlabError(f"unknown field {prefix + name!r}: there are {', '.join(sorted(hints))}")
        if dataclasses.is_dataclass(getattr(settings, name)) != bool(rest):
            raise PdlabError(f"{prefix + path!r} is not a single field: name one, such as teacher.lr")
        if rest:
            nested.setdefault(name, {})[rest] = text
        else:
            values[name] = _parse(prefix + name, text, hints[name])
    # All fields of one part at once: some, such as heads and head_dim, are only valid together.
    for name, parts in nested.items():
        values[name] = _override(getattr(settings, name), parts, f"{prefix}{name}.")
    try:
        return dataclasses.replace(settings, **values)
    except PdlabError as error:
        raise PdlabError(f"{prefix[:-1]}: {error}" if prefix else str(error)) from None


def _parse(path: str, text: str, hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if text.lower() == "none" else _parse(path, text, options[0])
    try:
        if typing.get_origin(hint) is Literal:
            return text
        if typing.get_origin(hint) in (tuple, Sequence):
            item = typing.get_args(hint)[0]
            return tuple(item(part) for part in text.split(",") if part.strip())
        if hint is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        value = hint(text)
    except (KeyError, ValueError):
        name = getattr(hint, "__name__", str(hint))
        raise PdlabError(f"{path}={text!r} does not read as {name}: give e.g. {path}=1") from None
    if isinstance(value, float) and math.isnan(value):
        raise PdlabError(f"{path} must be a number, not nan")
    return value
