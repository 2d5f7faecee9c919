"""Settings that describe and check themselves.

A settings class is a dataclass that derives from `Settings` and declares every field with
`setting(default, help, rules...)`. The rule, the default, the unit, and one sentence of
documentation stand beside the field. Values are checked when an instance is built, whether they
come from YAML, from the command line, or from Python.
"""

import dataclasses
import functools
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_TOO_LARGE = 2**63
_FINITE = "it must be a finite number below 2^63"


class SettingError(ValueError):
    """A value that a setting refuses.

    Args:
        key: Name of the field; callers that know the path to it prepend theirs.
        what: What is wrong, with the value.
        fix: What to write instead.
    """

    def __init__(self, key: str, what: str, fix: str = ""):
        super().__init__(key, what, fix)
        self.key, self.what, self.fix = key, what, fix

    def __str__(self) -> str:
        return f"{self.key}{self.what}" + (f"; {self.fix}" if self.fix else "")

    def under(self, section: str) -> "SettingError":
        """Return the same error with the key below a section."""
        return SettingError(f"{section}.{self.key}" if section else self.key, self.what, self.fix)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the values of a setting must satisfy. Lists are checked entry by entry.

    Attributes:
        help: One sentence that says what the setting does.
        unit: Unit of a number, for the documentation.
        pattern: Regular expression that a whole text matches; `pattern_help` is the advice for a
            text that does not.
        required: Whether a run cannot start with the default.
    """

    help: str
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    multiple_of: int | None = None
    pattern: str = ""
    pattern_help: str = ""
    required: bool = False

    def problem(self, value: Any) -> str:
        """Return why `value` is refused, or "" if it is accepted."""
        if self.choices and value not in self.choices:
            return f"choose one of {', '.join(map(str, self.choices))}"
        if isinstance(value, str) and self.pattern and not _full_match(self.pattern, value):
            return self.pattern_help or f"it must match {self.pattern}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return ""
        if not -_TOO_LARGE < value < _TOO_LARGE:  # NaN, too
            return _FINITE
        broken = (words for words, limit, holds in self._limits() if not holds(value, limit))
        return next((f"it must be {words}" for words in broken), "")

    def limits(self) -> list[str]:
        """Return the limits of a number in words, such as "at least 1"."""
        return [words for words, _, _ in self._limits()]

    def _limits(self) -> list[tuple[str, float, Callable[[float, float], bool]]]:
        """Return each limit as its words, its number, and its test of (value, number)."""
        limits = (
            ("at least", self.at_least, operator.ge),
            ("greater than", self.above, operator.gt),
            ("at most", self.at_most, operator.le),
            ("less than", self.below, operator.lt),
            ("a multiple of", self.multiple_of, lambda value, divisor: value % divisor == 0),
        )
        return [
            (f"{words} {limit:g}", limit, holds)
            for words, limit, holds in limits
            if limit is not None
        ]


def setting(default: Any, help: str, **rules: Any) -> Any:
    """Declare a field of a `Settings` class.

    Args:
        default: The default value. A class or function is called to make it, as
            `default_factory` of `dataclasses.field` is; lists and dictionaries are copied.
        help: One sentence that says what the setting does.
        **rules: Other fields of `Rule`.
    """
    metadata = {"rule": Rule(help, **rules)}
    if isinstance(default, list | dict):
        original = default
        return dataclasses.field(default_factory=lambda: original.copy(), metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """Base class of settings; see the module's docstring."""

    def __post_init__(self) -> None:
        """Check every field, then the rules between fields.

        Raises:
            SettingError: A value is refused.
        """
        hints = field_types(type(self))
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]  # subclasses are dataclasses
            value = getattr(self, field.name)
            fitted = fit(value, hints[field.name], field.name)
            rule = field.metadata.get("rule")
            for entry in fitted if isinstance(fitted, list) else (fitted,):
                if rule and entry is not None and (problem := rule.problem(entry)):
                    raise SettingError(field.name, f"={show(value)}", problem)
            setattr(self, field.name, fitted)
        self.check()

    def check(self) -> None:
        """Check the rules that involve more than one field. Subclasses override this.

        Raises:
            SettingError: The values contradict each other.
        """


def fit(value: Any, kind: Any, key: str) -> Any:
    """Return `value` as the declared type `kind`, without changing what it means.

    An int is accepted for a float, a tuple for a list, and a text for a list of one text; nothing
    else is converted, so that "010" never becomes a number and `yes` never becomes a Boolean.

    Raises:
        SettingError: The value has another type.
    """
    declared, (kind, is_optional) = kind, without_none(kind)
    if value is None and is_optional:
        return None
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if kind == list[str] and isinstance(value, str):
        return [value]
    if origin is list and isinstance(value, list | tuple):
        return [fit(entry, args[0], key) for entry in value]
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(fit(entry, args[0], key) for entry in value)
    if origin is dict and isinstance(value, Mapping):
        return {name: fit(entry, args[1], f"{key}.{name}") for name, entry in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise SettingError(key, f"={value}", _FINITE) from error
    is_bool = isinstance(value, bool)  # Python counts bool as int; settings do not
    if isinstance(kind, type) and isinstance(value, kind) and is_bool <= (kind is bool):
        return value
    raise SettingError(key, f"={show(value)}", f"it must be {type_name(declared)}")


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """Return the declared types of the fields of a settings class."""
    return typing.get_type_hints(kind)


def without_none(kind: Any) -> tuple[Any, bool]:
    """Return a declared type without None, and whether None was part of it."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, False
    return next(arg for arg in typing.get_args(kind) if arg is not type(None)), True


def is_settings(kind: Any) -> bool:
    """Return whether a declared type is a settings class."""
    return isinstance(kind, type) and issubclass(kind, Settings)


def type_name(kind: Any) -> str:
    """Return a declared type in words."""
    kind, is_optional = without_none(kind)
    name = "a section" if is_settings(kind) else _TYPE_NAMES[typing.get_origin(kind) or kind]
    if is_optional:
        return "true, false, or null" if kind is bool else f"{name} or null"
    return name


def show(value: Any) -> str:
    """Return a value as a user would write it."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {show(entry)}' for key, entry in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)


_TYPE_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def _full_match(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text) is not None
