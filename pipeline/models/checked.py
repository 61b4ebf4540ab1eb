"""Values out of a JSON file as the types that they must be, before anything relies on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Made = TypeVar("Made")


def made(kind: type[Made], entry: Any) -> Made:
    """A dataclass or NamedTuple from a JSON object; a list where a tuple is wanted becomes one.

    Raises TypeError, naming the field, for one that is missing, unknown or of another type; numbers must be finite.
    """
    if not isinstance(entry, Mapping):
        raise TypeError(f"{kind.__name__} is {_shown(entry)}, not an object")
    hints = get_type_hints(kind)
    for name, value in entry.items():
        if name not in hints:
            raise TypeError(f"{kind.__name__} has no field {_shown(name)}")
        if not fits(value, hints[name]):
            raise TypeError(f"{name} is {_shown(value)}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()})


def fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON is of the annotated type: whole numbers are floats too, booleans are neither."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        wanted = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(wanted) and all(map(fits, value, wanted))
    if origin is dict:
        return isinstance(value, dict) and all(fits(key, inner[0]) and fits(item, inner[1]) for key, item in value.items())
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)
    return type(value) is hint


def _shown(value: Any) -> str:
    return repr(value)[:80]
