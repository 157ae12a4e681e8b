"""Values from a browser or a link, made safe: whatever comes, what leaves is one of the values that are allowed.

A link holds text (`compare.steps=8,4`), a control holds values (`[8, 4]`): these functions take either, and answer
anything else with the default.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl

T = TypeVar("T")

Query = Mapping[str, str]


def query(search: object) -> dict[str, str]:
    """The parameters of a page's address, e.g. "?tab=compare&compare.steps=8,4"; at most 64 of them."""
    text = search.lstrip("?")[:4096] if isinstance(search, str) else ""
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=64))
    except ValueError:
        return {}


def one(value: object, allowed: Sequence[T], default: T) -> T:
    """The one of `allowed` that `value` names, by itself or as text."""
    for candidate in allowed:
        if value == candidate or (value is not None and str(value) == str(candidate)):
            return candidate
    return default


def some(value: object, allowed: Sequence[T], default: Sequence[T]) -> tuple[T, ...]:
    """Those of `allowed` that `value` (a list, or text with commas) names, in the order of `allowed`.

    None and nonsense give the default; an empty list gives none.
    """
    if isinstance(value, str):
        value = [part for part in value.split(",") if part]
    if not isinstance(value, (list, tuple)):
        return tuple(default)
    named = {str(part) for part in value}
    found = tuple(candidate for candidate in allowed if str(candidate) in named)
    return found if found or not named else tuple(default)


def whole(value: object, low: int, high: int, default: int) -> int:
    """A whole number, brought into `low` … `high`."""
    return round(number(value, low, high, default))


def number(value: object, low: float, high: float, default: float) -> float:
    """A number, brought into `low` … `high`; not a number gives the default."""
    try:
        x = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return default
    return default if math.isnan(x) else min(max(x, low), high)


def flag(value: object, default: bool) -> bool:
    """True or False, also written true, false, 1, 0."""
    return {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower(), default)


def given(parameters: Query, tab: str, names: Sequence[str]) -> dict[str, Any]:
    """What a link says of a tab: `given(query("?bench.steps=8"), "bench", ["steps"])` is {"steps": "8"}."""
    return {name: parameters.get(f"{tab}.{name}") for name in names}
