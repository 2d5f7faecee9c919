"""Turn YAML and command-line text into values of the types that settings declare.

YAML guesses types from the text: 010 is 8, yes is true, and 1.10 is 1.1. Here an unquoted scalar
stays text until the declared type of its setting says what it is.
"""

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from model.settings import (
    SettingError,
    Settings,
    field_types,
    is_settings,
    type_name,
    without_none,
)
from shards.checked import PlainLoader
from shards.errors import UsageError
from shards.files import read_regular

_INTEGER = re.compile(r"[-+]?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"[-+]?(?=\.?\d)(0|[1-9]\d*)?(\.\d*)?([eE][-+]?\d+)?")
_LEADING_ZERO = re.compile(r"([-+]?)0+(\d.*)")
_CONSTANTS = {"true": True, "false": False, "null": None}


class Plain(str):
    """A scalar without quotes; the declared type of its setting decides what it is."""


class Leaf:
    """A value that is not a mapping, hidden from OmegaConf so that `${...}` in it is kept."""

    def __init__(self, value: Any):
        self.value = value


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping of settings in a YAML file.

    Raises:
        UsageError: The file is not readable, is not valid YAML, or does not hold a mapping.
    """
    try:
        node = yaml.compose(read_regular(path).decode(), Loader=PlainLoader)
        settings = {} if node is None else _from_node(node)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(" ".join(str(error).split()), where=path) from error
    if not isinstance(settings, dict):
        raise UsageError("not a mapping of settings", where=path, fix="write KEY: VALUE lines")
    return settings


def combined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return nested mappings merged key by key; a later value replaces an earlier one."""
    empty = OmegaConf.create({}, flags={"allow_objects": True})
    merged = OmegaConf.to_container(OmegaConf.merge(empty, *map(_opaque, parts)))
    assert isinstance(merged, dict)
    return _open({str(key): value for key, value in merged.items()})


def _opaque(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings in which every other value is a `Leaf`."""
    return {
        key: _opaque(value) if isinstance(value, Mapping) else Leaf(value)
        for key, value in settings.items()
    }


def _open(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings with the values of their leaves."""
    return {
        key: value.value if isinstance(value, Leaf) else _open(value)
        for key, value in settings.items()
    }


def read_override(override: str, root: type[Settings]) -> dict[str, Any]:
    """Return the nested mapping of one `key=value`.

    The value of a text setting is taken as written. Lists, mappings, and quoted values of other
    settings are YAML.

    Raises:
        SettingError: The key is unknown, or a list, a mapping, or a quoted text is not valid YAML.
        UsageError: The text is not `key=value`.
    """
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise UsageError(f"{override!r} is not key=value with a dotted key such as batch.size")
    kind = _declared(root, key)
    opening = {str: (), list[str]: "["}.get(kind, "[{\"'")
    value: Any = _flow(text, key) if text.startswith(tuple(opening)) else Plain(text)
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def construct(kind: type[Settings], values: Mapping[str, Any], section: str = "") -> Any:
    """Build an instance of a settings class from nested mappings of leaves or Python values.

    Args:
        kind: The class.
        values: Values by name. A missing name keeps its default.
        section: Dotted key of the class in the whole config.

    Raises:
        SettingError: A key is unknown, or a value is refused. The error has the full key.
    """
    kinds = field_types(kind)
    fields = {}
    for name, value in values.items():
        if name not in kinds:
            raise _unknown(kind, section, name)
        fields[name] = _interpret(value, kinds[name], join(section, name))
    try:
        return kind(**fields)
    except SettingError as error:
        raise error.under(section) from error


def keys(kind: type[Settings], section: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the declared type of every section and setting."""
    for name, declared in field_types(kind).items():
        key = join(section, name)
        yield key, declared
        if is_settings(declared):
            yield from keys(declared, key)


def join(section: str, name: str) -> str:
    """Return the dotted key of a name in a section."""
    return f"{section}.{name}" if section else name


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" for the most similar known name, or "" if none is similar."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def _declared(root: type[Settings], key: str) -> Any:
    """Return a key's declared type, with `None` removed; in a mapping, every key has type `Any`."""
    kind: Any = root
    section = ""
    for name in key.split("."):
        if is_settings(kind):
            kinds = field_types(kind)
            if name not in kinds:
                raise _unknown(kind, section, name)
            kind, _ = without_none(kinds[name])
        elif kind is Any or typing.get_origin(kind) is dict:
            kind = Any
        else:
            raise SettingError(section, " is not a section", f"it is {type_name(kind)}")
        section = join(section, name)
    return kind


def _unknown(kind: type[Settings], section: str, name: str) -> SettingError:
    key = join(section, name)
    similar = nearest(key, sorted(known for known, _ in keys(kind, section)))
    return SettingError(key, " is not a setting", similar or "./launch.sh settings lists all")


def _interpret(value: Any, declared: Any, key: str) -> Any:
    """Return a value in which each unquoted text is read according to the declared type."""
    kind, _ = without_none(declared)
    if isinstance(value, Mapping):
        if is_settings(kind):
            return construct(kind, value, key)
        if kind is Any or typing.get_origin(kind) is dict:
            _, entry = typing.get_args(kind) or (str, Any)
            return {name: _interpret(item, entry, join(key, name)) for name, item in value.items()}
        raise SettingError(key, " is not a section", f"it must be {type_name(declared)}")
    if isinstance(value, list) and (kind is Any or typing.get_origin(kind) is list):
        entry = (*typing.get_args(kind), Any)[0]
        if is_settings(entry):
            return [_interpret(item, entry, f"{key}[{n}]") for n, item in enumerate(value)]
        return [_interpret(item, entry, key) for item in value]
    if not isinstance(value, Plain):
        return value
    is_null = value == "null" and kind is not declared
    return str(value) if kind in (str, list[str]) and not is_null else _reading(value, key)


def _reading(text: str, key: str) -> Any:
    """Return the number, the Boolean, or the null that a text denotes, otherwise the text."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if (match := _LEADING_ZERO.fullmatch(text)) and _NUMBER.fullmatch(
        number := "".join(match.groups())
    ):
        raise SettingError(key, f"={text} has a leading zero", f"write {number}")
    return str(text)


def _flow(text: str, key: str) -> Any:
    """Return the list, the mapping, or the quoted text of a value on the command line."""
    fix = "write a list as [a, b] and a mapping as {a: 1}; quote texts with special characters"
    try:
        node = yaml.compose(text, Loader=PlainLoader)
        if node.end_mark.index < len(text.rstrip()):  # a comment would be cut off
            raise SettingError(key, f"={text} has text after the end of its value", fix)
        return _from_node(node)
    except (RecursionError, yaml.YAMLError) as error:
        raise SettingError(key, f"={text} is not valid YAML", fix) from error


def _from_node(node: yaml.Node) -> Any:
    """Return nested dicts and lists of `Plain` and, for quoted scalars, of `str`."""
    if isinstance(node, yaml.MappingNode):
        settings: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in settings:
                problem = "a key is repeated, or is not text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            settings[key.value] = _from_node(value)
        return settings
    if isinstance(node, yaml.SequenceNode):
        return [_from_node(entry) for entry in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return node.value if node.style else Plain(node.value)
