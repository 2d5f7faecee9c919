"""Check what was read from a file or a server: compare parsed values with their declared types."""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import yaml

MAX_DEPTH = 32  # of values whose type is not declared

Check = Callable[[Any], Any]  # returns the checked value, or raises _Wrong


class _Wrong(ValueError):
    """A value that is not of its declared type, with the names that lead to it."""

    def __init__(self, what: str, path: str = ""):
        super().__init__(f"{path.lstrip('.') or 'the value'} {what}")
        self.what, self.path = what, path


class PlainLoader(yaml.SafeLoader):
    """A YAML loader that refuses what a reader of the file would take for something different.

    These are repeated names, of which YAML keeps the last, and integers such as 010 and 1:30, which
    YAML takes for 8 and 90. Aliases are refused because nested ones expand a few lines to more than
    memory.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node of the document.

        Raises:
            yaml.MarkedYAMLError: The node is an alias.
        """
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias (*name) is not supported; write its value again",
                problem_mark=self.peek_event().start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            yaml.MarkedYAMLError: A name occurs twice.
        """
        names = set()
        for key, _ in node.value:
            if str(key.value) in names:
                problem = f"{key.value} occurs twice in a mapping"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            names.add(str(key.value))
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Return a text in which the two halves of a character that JSON escapes are joined."""
        text = self.construct_scalar(node)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """Return an integer.

        Raises:
            yaml.MarkedYAMLError: The integer is not decimal.
        """
        if not re.fullmatch("[-+]?(0|[1-9][0-9]*)", node.value):
            problem = f"{node.value} is not a decimal integer; a text needs quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return int(node.value)


PlainLoader.add_constructor("tag:yaml.org,2002:str", PlainLoader.construct_text)
PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_decimal)


def checked(kind: Any, value: Any) -> Any:
    """Return a parsed value as an instance of a declared type.

    Args:
        kind: A dataclass, whose fields are the members of a mapping; `list[T]`, `tuple[T, ...]`,
            `tuple[T, U]`, or `dict[str, T]`; `T | None`; `int`, `float`, `str`, `bool`, or
            `int | str`; or `Any`, which is a value of limited depth.
        value: What JSON or YAML was parsed to.

    Raises:
        ValueError: The value has another type, a number is not finite or has more than 64 bits, a
            text is not Unicode, or a member of a dataclass is missing or unknown. The text names
            the value, such as `shards[3].bytes`.
    """
    return _check_of(kind)(value)


@cache
def _check_of(kind: Any) -> Check:
    """Return the check of a declared type."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    if dataclasses.is_dataclass(kind):
        return _of_dataclass(typing.cast(type, kind))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        [inner] = (_check_of(one) for one in arguments if one is not type(None))
        return lambda value: None if value is None else inner(value)
    if origin is dict:
        inner = _check_of(arguments[1])
        return lambda value: _members(_all(dict, value), lambda name: inner)
    if origin is tuple and arguments[-1] is not ...:
        return _of_fixed([_check_of(one) for one in arguments])
    assert origin in (list, tuple), f"{kind} has no check"
    return partial(_entries, origin, _check_of(arguments[0]))


def _of_dataclass(kind: type) -> Check:
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    checks = {field.name: _check_of(hints[field.name]) for field in fields}
    unset = dataclasses.MISSING
    needed = {f.name for f in fields if f.default is unset and f.default_factory is unset}

    def check(value: Any) -> Any:
        members = _all(dict, value)
        if not needed <= members.keys() <= checks.keys():
            missing, unknown = needed - members.keys(), members.keys() - checks.keys()
            name, what = (unknown.pop(), "is unknown") if unknown else (min(missing), "is missing")
            raise _Wrong(what, f".{name}"[:80])
        return kind(**_members(members, checks.__getitem__))

    return check


def _of_fixed(checks: list[Check]) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if len(_all(list, value)) != len(checks):
            raise _Wrong(f"has {len(value)} entries, not {len(checks)}")
        remaining = iter(checks)
        return _entries(tuple, lambda item: next(remaining)(item), value)

    return check


def _members(value: dict[Any, Any], check_of: Callable[[str], Check]) -> dict[str, Any]:
    """Return a mapping of checked members; an error begins with the name of its member."""
    found, name = {}, ""
    try:
        for name, item in value.items():
            found[_text(name)] = check_of(name)(item)
    except _Wrong as error:
        raise _Wrong(error.what, f".{name}"[:80] + error.path) from None
    return found


def _entries(kind: type, check: Check, value: Any) -> Any:
    """Return a list or a tuple of checked entries; an error begins with the number of its entry."""
    found, items = [], _all(list, value)
    try:
        for item in items:
            found.append(check(item))
    except _Wrong as error:
        raise _Wrong(error.what, f"[{len(found)}]{error.path}") from None
    return kind(found)


def _all(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise _Wrong(f"is {_shown(value)}, not a {'list' if kind is list else 'mapping'}")
    return value


def _int(value: Any) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise _Wrong(f"is {_shown(value)}, not a whole number of 64 bits")
    return value


def _float(value: Any) -> float:
    number = float(_int(value)) if type(value) is int else value
    if type(number) is not float or not math.isfinite(number):
        raise _Wrong(f"is {_shown(value)}, not a finite number")
    return number


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _Wrong(f"is {_shown(value)}, not true or false")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise _Wrong(f"is {_shown(value)}, not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can write half of a surrogate pair
            raise _Wrong("is not Unicode text") from None
    return value


def _any(value: Any, depth: int = 0) -> Any:
    """Check a value of any type that JSON has."""
    if depth > MAX_DEPTH:
        raise _Wrong(f"is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        return {_text(name): _any(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_any(item, depth + 1) for item in value]
    if type(value) is int and value >> 64 == 0:  # hashes have no sign
        return value
    if value is not None and type(value) not in _SCALARS:
        raise _Wrong(f"is {_shown(value)}, which JSON does not have")
    return value if value is None else _SCALARS[type(value)](value)


def _shown(value: Any) -> str:
    """Return a value for an error: a scalar, or the kind of another value."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _number_or_text(value: Any) -> int | str:
    return _text(value) if type(value) is str else _int(value)


_SCALARS: dict[Any, Check] = {
    **{int: _int, float: _float, bool: _bool, str: _text, Any: _any},
    int | str: _number_or_text,
}
