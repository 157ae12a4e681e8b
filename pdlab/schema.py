"""One schema at every boundary: what JSON files and settings may hold, said once as types.

A JSON file of ours is sealed: it holds the SHA-256 of everything else in it, so that damage is told from a file
that is whole and holds something else. A seal is no signature, and what a sealed file says is checked all the same.
"""

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pdlab import __version__
from pdlab.errors import Damaged, PdlabError, reason
from pdlab.files import read_bytes

#: Of every sealed file; raised when its content changes, so that another version's is not taken for damage.
FORMAT = 2
#: Steps of a sampler: eight times the 8192 that the paper reads its teacher at.
MOST_STEPS = 1 << 16
#: Of a LoRA student's adapter: beyond it a full student is no larger.
MOST_RANK = 4096
MOST_JSON = 16 << 20

Count = Annotated[int, Field(ge=1, le=10**9)]
Updates = Annotated[int, Field(ge=1, lt=10**8)]  # eight digits name a state
Whole = Annotated[int, Field(ge=0, le=2**63 - 1)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Rank = Annotated[int, Field(ge=1, le=MOST_RANK)]
Size = Annotated[int, Field(ge=1, le=1 << 20)]  # of one dimension of a network
Embedding = Annotated[int, Field(ge=4, le=1 << 20, multiple_of=2)]  # sines and cosines
Blocks = Annotated[int, Field(ge=1, le=256)]
Classes = Annotated[int, Field(ge=0, le=1 << 20)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
#: A schedule's bounds, which may be infinite. JSON has no infinity: null stands for it there.
_BOUNDS = {"logsnr_min": -math.inf, "logsnr_max": math.inf}
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Sealed(TypedDict):
    """What every sealed file holds beside its own fields."""

    format: int
    pdlab: str
    seal: Sha256


def check(settings: Any) -> None:
    """Raise PdlabError unless every field of the dataclass instance `settings` is what its annotation says."""
    _validated(_fields_of(settings.__class__), vars(settings), "")


def parse(content: bytes, what: str) -> Any:
    """The JSON value `content`, strictly: UTF-8, no NaN or infinity. Damaged, naming `what`, for anything else."""

    def refuse(text: str) -> float:
        raise ValueError(f"it holds {text}")

    def finite(text: str) -> float:
        value = float(text)
        return value if abs(value) != float("inf") else refuse(text)

    try:
        return json.loads(content.decode(), parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise Damaged(what, "its brackets are nested too deeply") from None
    except ValueError as error:
        raise Damaged(what, f"{reason(error)[:200]}") from None


def without_infinities(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` for JSON: the bounds of a schedule that are infinite become null."""
    return {name: None if name in _BOUNDS and value == _BOUNDS[name] else value for name, value in settings.items()}


def with_infinities(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `without_infinities`."""
    return {name: _BOUNDS.get(name) if value is None else value for name, value in settings.items()}


def conform(value: Any, kind: Any, what: str) -> Any:
    """`value`, from JSON, as `kind` (a dataclass, a TypedDict, …); PdlabError naming `what` and the field."""
    try:
        return _validated(_adapter(kind), json.dumps(value).encode(), what)
    except (ValueError, RecursionError) as error:
        raise PdlabError(f"{what}: {reason(error)}") from None


def read(path: Path, kind: Any) -> dict[str, Any]:
    """What `sealed` gave of a file `path`, checked against the TypedDict `kind`, without the seal's own fields.

    Raises Damaged if it is not what was written, PdlabError if it is of another version or not of this kind, and
    OSError if it cannot be read.
    """
    value = parse(read_bytes(path, MOST_JSON), str(path))
    if not isinstance(value, dict):
        raise Damaged(path, "it is not a JSON object")
    form = value.get("format")
    if type(form) is int and form != FORMAT:
        raise PdlabError(
            f"{path} is of format {form}, and this version of pdlab ({__version__}) reads format {FORMAT}: "
            "use the version that wrote it"
        )
    if value.get("seal") != _seal(value):
        raise Damaged(path, "its content does not match its seal")
    body = {name: part for name, part in value.items() if name not in Sealed.__annotations__}
    conform(body, kind, str(path))
    return body


def sealed(body: Mapping[str, Any]) -> bytes:
    """`body` as the content of a sealed file. ValueError for NaN or infinity."""
    whole = {"format": FORMAT, "pdlab": __version__, **body}
    return (json.dumps({**whole, "seal": _seal(whole)}, indent=1, allow_nan=False) + "\n").encode()


def _seal(value: Mapping[str, Any]) -> str:
    rest = {name: part for name, part in value.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@lru_cache
def _fields_of(kind: Any) -> TypeAdapter[Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    return TypeAdapter(TypedDict(kind.__name__, {name: hints[name] for name in names}))  # type: ignore[operator]


def _validated(adapter: TypeAdapter[Any], value: Any, what: str) -> Any:
    judge = adapter.validate_json if isinstance(value, bytes) else adapter.validate_python
    try:
        return judge(value, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    given = "" if first["type"] == "missing" else f", not {first['input']!r:.60}"
    message = first["msg"].removeprefix("Input ").lower().replace("should", "must")
    raise PdlabError(": ".join(part for part in (what, field) if part) + f" {message}{given}")
