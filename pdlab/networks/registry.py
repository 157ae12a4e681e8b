"""The networks that checkpoints and presets can name, and how to add one.

A registered network is built again from what a file says of it, by its name and the plain values of its
configuration; nothing that a file names is ever imported. A network that is not registered is `Own`: only its
owner's code can build it, and its weights load into what `load(path, network=…)` is given.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import Field
from pydantic_core import PydanticCustomError
from torch import nn

from pdlab import schema
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.prediction import output_channels
from pdlab.errors import PdlabError


class Unbuildable(PdlabError):
    """A network of one's own, and nothing at hand that builds it."""


N = TypeVar("N", bound=Callable[..., nn.Module])
#: The condition that a network takes, as `Denoiser` is told it.
CONDITION = ("num_classes", "null_class", "guidance_max")


#: The shape of what a network is told in place of a class; () where it is not.
Condition = Annotated[tuple[schema.Size, ...], Field(max_length=4)]


class Registered(NamedTuple):
    """How a network is built: `make(config)`, or `make()` where it has no configuration."""

    make: Callable[..., nn.Module]
    config: type | None


NETWORKS: dict[str, Registered] = {}


@dataclass(frozen=True)
class Own:
    """A network that is described by its `name` alone: of a registered one, or of its class.

    `shape` is that of one example; what it is told is as `Denoiser` has it (`condition` () for none).
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    shape: Annotated[tuple[schema.Size, ...], Field(min_length=1, max_length=4)]
    num_classes: schema.Classes = 0
    null_class: bool = False
    guidance_max: schema.NotNegative = 0.0
    condition: Condition = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "condition", tuple(self.condition))
        schema.check(self)


def register_network(name: str, config: type | None = None) -> Callable[[N], N]:
    """Register the decorated class under `name`, so that checkpoints of it load, and presets name it.

    With `config`, a frozen dataclass of plain values with a `shape` (and `num_classes`, `null_class`,
    `guidance_max`, `dropout`, where the network has them; `out_multiple` for output "both"), it is called with one
    of it, which the module keeps as `.config`; a function will do then. Without, it is called with nothing.
    PdlabError for a name that is taken by another.
    """

    def add(make: N) -> N:
        known = NETWORKS.get(name)
        if name == "own" or (known is not None and _where(known.make) != _where(make)):
            raise PdlabError(f"there is a network {name!r} already: register yours under another name")
        if config is not None and not (dataclasses.is_dataclass(config) and _says_shape(config)):
            raise PdlabError(f"the configuration of network {name!r} must be a dataclass with a shape")
        NETWORKS[name] = Registered(make, config)
        return make

    return add


def _says_shape(config: type) -> bool:
    return hasattr(config, "shape") or "shape" in {field.name for field in dataclasses.fields(config)}


def config_of(denoiser: Denoiser) -> Any:
    """The configuration of `denoiser`'s network: its own, or an `Own`.

    Raises PdlabError for a network of one's own whose examples' shape is not known yet.
    """
    network = denoiser.network
    config = getattr(network, "config", None)
    if config is not None and any(type(config) is known.config for known in NETWORKS.values()):
        return config
    if denoiser.shape is None:
        raise PdlabError("the shape of an example is not known: give Denoiser(…, shape=(3, 32, 32))")
    names = (n for n, known in NETWORKS.items() if known.config is None and isinstance(known.make, type))
    name = next((n for n in names if type(network) is NETWORKS[n].make), _where(type(network)))
    told = {name: getattr(denoiser, name) for name in CONDITION}
    return Own(name, denoiser.shape, **told, condition=denoiser.condition or ())


def twin(denoiser: Denoiser) -> nn.Module | None:
    """A network that takes the weights of one's own like `denoiser`'s; None where a file describes the network."""
    return copy.deepcopy(denoiser.network).cpu() if isinstance(config_of(denoiser), Own) else None


def build(config: Any, output: str, dropout: float = 0.0) -> nn.Module:
    """The network of `config`, with the channels that `output` needs, initialised at random.

    Raises PdlabError for a network of one's own, and for "both" or dropout where it has no such setting.
    """
    if isinstance(config, Own):
        check_buildable(config)
        return NETWORKS[config.name].make()
    wanted = {"out_multiple": output_channels(output, 1), "dropout": dropout}
    fields = {field.name for field in dataclasses.fields(config)}
    for name, plain in (("out_multiple", 1), ("dropout", 0.0)):
        if name not in fields and wanted.pop(name) != plain:
            raise PdlabError(f"network {kind_of(config)!r} has no {name}: choose another output, and no dropout")
    return NETWORKS[kind_of(config)].make(dataclasses.replace(config, **wanted))


def check_buildable(config: Any) -> None:
    """Raise Unbuildable for a network of one's own that is not registered."""
    if isinstance(config, Own) and (config.name not in NETWORKS or NETWORKS[config.name].config is not None):
        raise Unbuildable(
            f"{config.name} is a network of one's own: give pdlab.load(path, network=…) one, or register it under "
            "this name (pdlab.register_network; --plugin FILE.py on the command line)"
        )


def kind_of(config: Any) -> str:
    """The name that the network of `config` is registered under, or "own"."""
    if isinstance(config, Own):
        return "own"
    for name, known in NETWORKS.items():
        if known.config is type(config):
            return name
    raise PdlabError(f"{type(config).__name__} is no registered network's: see pdlab.register_network")


def conditioning(config: Any) -> dict[str, Any]:
    """What a `Denoiser` must know of the examples and the condition that a network of `config` takes."""
    none = {"num_classes": 0, "null_class": False, "guidance_max": 0.0}
    told = {name: getattr(config, name, none[name]) for name in CONDITION}
    return {"shape": tuple(config.shape), "condition": tuple(getattr(config, "condition", ())) or None, **told}


def to_json(config: Any) -> dict[str, Any]:
    """`config` as plain JSON; `from_json` undoes it."""
    return {"kind": kind_of(config), **dataclasses.asdict(config)}


def from_json(value: Any, what: str) -> Any:
    """The configuration that `to_json` wrote. PdlabError that names `what` and the field unless it is one."""
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise PdlabError(f"{what} must be an object with the kind of network")
    settings = dict(value)
    kind = settings.pop("kind")
    known = {name: entry.config for name, entry in NETWORKS.items() if entry.config is not None} | {"own": Own}
    if kind not in known:
        raise PdlabError(
            f"{what}.kind must be one of {', '.join(sorted(known))}, not {kind!r:.60}; --plugin registers others"
        )
    return schema.conform(settings, known[kind], what)


def checked(value: Any) -> Any:
    """For pydantic: a configuration, or what `to_json` made of one, as a configuration."""
    if dataclasses.is_dataclass(value):
        kind_of(value)
        return value
    try:
        return from_json(value, "network")
    except PdlabError as error:
        raise PydanticCustomError("network", "{why}", {"why": str(error)}) from None


def _where(made: Any) -> str:
    return f"{made.__module__}.{made.__qualname__}"
