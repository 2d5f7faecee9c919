"""Read the values of a JSON file as its author meant them, whatever type a tool wrote them in.

Annotation tools write numbers as text, flags as booleans, and whole numbers as floats. A value that
can mean only one thing is converted. Every other value, every number that is not finite, and every
missing member raises a ValueError whose text names the member and the value.
"""

import math
import re
import reprlib
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})(\.0*)?")  # 007 may be another id than 7
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_FLAGS = {"true": 1, "1": 1, "1.0": 1, "false": 0, "0": 0, "0.0": 0}
_MAX_INTEGER = 2**63 - 1  # what readers that infer types hold


def member(entry: Any, name: str) -> Any:
    """Return a member of a JSON object."""
    if not isinstance(entry, dict):
        raise ValueError(f"{reprlib.repr(entry)} is not an object with {name}")
    if name not in entry:
        raise ValueError(f"{name} is missing")
    return entry[name]


def integer(name: str, value: Any) -> int:
    """Return a whole number of at most 64 bits, given as a number or as text."""
    if type(value) is int and -_MAX_INTEGER <= value <= _MAX_INTEGER:
        return value  # most values are, and a large file has millions
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = float(value) if len(value) < 16 else int(value.split(".")[0])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or abs(value) > _MAX_INTEGER:
        raise ValueError(f"{name} {reprlib.repr(value)} is not a whole number of 64 bits")
    return value


def number(name: str, value: Any) -> float:
    """Return a finite number, given as a number or as text."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if type(value) is int and abs(value) <= _MAX_INTEGER:
        value = float(value)
    if type(value) is not float or not math.isfinite(value):
        raise ValueError(f"{name} {reprlib.repr(value)} is not a finite number")
    return value


def flag(name: str, value: Any) -> bool:
    """Return a flag, given as a boolean, as 0 or 1, or as text of these."""
    known = _FLAGS.get(value.lower()) if isinstance(value, str) else value
    if known not in (0, 1):
        raise ValueError(f"{name} {reprlib.repr(value)} is neither 0 nor 1")
    return bool(known)


def text(name: str, value: Any) -> str:
    """Return a text that is Unicode; JSON can write half of a surrogate pair."""
    if not isinstance(value, str) or not value or re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{name} {reprlib.repr(value)} is not a text")
    return value


def identifier(name: str, value: Any) -> int | str:
    """Return an id: a whole number, also if it is given as text, or any other text."""
    if isinstance(value, str) and not _WHOLE.fullmatch(value):
        return text(name, value)
    return integer(name, value)


def optional(read: Callable[[str, Any], T], name: str, value: Any) -> T | None:
    """Return what a function of this module reads, None if the value is not usable."""
    try:
        return read(name, value)
    except ValueError:
        return None


def box(name: str, value: Any) -> list[float]:
    """Return a list of four finite numbers."""
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"{name} {reprlib.repr(value)} is not a list of four numbers")
    return [number(name, part) for part in value]
