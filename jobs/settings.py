"""The `settings` command: every setting as text, as Markdown, or as a JSON Schema."""

import dataclasses
import functools
import json
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from jobs import config as configs
from jobs.cluster.site import Site
from jobs.preset import BASE, read_preset
from jobs.values import join
from model.settings import (
    Rule,
    Settings,
    field_types,
    is_settings,
    show,
    type_name,
    without_none,
)
from shards.errors import UsageError

HEADER = """# Settings

Every setting of a run, with its default. Set it as `key=value` on the command line of
`./launch.sh train`, or in the YAML file of a preset. The command line overrides the preset, and
the preset overrides the defaults.

- The declared type decides what a value means: `name=010` is the text 010, and `trainer.steps=010`
  is an error. Booleans are `true` and `false`. `null` stands for no value if the table allows it.
- A list or a mapping is YAML: `data.scale=[0.1,2.0]`, `model.backbone_config={depths: [1,1,1,1]}`.
- On the command line, a text is taken as written: `#`, `:`, `~`, `,`, quotes, `${...}` included.

`./launch.sh settings` prints this list; with PRESET it prints the values of that preset, and with
`--json-schema` a JSON Schema that editors can check presets against.
This file is the output of `./launch.sh settings --markdown`.
"""
SITE_HEADER = """## Site file

The facts about a cluster, which you write once. The first of these files is read: `--site FILE`,
`$M2F_SITE`, `./site.yaml`, `~/.config/mask2former/site.yaml`. A key with a dot stands for a
mapping: `slurm.partition` is `partition` below `slurm`. A value that looks like a secret is an
error.
"""
JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", Any: None}


class Entry(NamedTuple):
    """One setting, or one section.

    Attributes:
        key: Dotted key.
        kind: Declared type.
        rule: What its values must satisfy.
        default: Default value.
    """

    key: str
    kind: Any
    rule: Rule
    default: Any


def settings(preset: str | None, json_schema: bool, markdown: bool) -> None:
    """Print every setting as text, as Markdown, or as a JSON Schema.

    Raises:
        UsageError: The preset is unknown, or more than one of the arguments is given.
    """
    if (preset is not None) + json_schema + markdown > 1:
        raise UsageError("give only one of PRESET, --json-schema, and --markdown")
    if json_schema:
        print(json.dumps(schema(configs.Config), indent=1))
    elif markdown:
        print(as_markdown(), end="")
    else:
        print(as_text(preset), end="")


def entries(kind: type[Settings], section: str = "") -> Iterator[Entry]:
    """Yield every setting and section; the settings of a section directly follow it."""
    defaults = kind()
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType] (all are)
        declared, key = field_types(kind)[field.name], join(section, field.name)
        yield Entry(key, declared, field.metadata["rule"], getattr(defaults, field.name))
        if is_settings(declared):
            yield from entries(declared, key)


def as_text(preset: str | None = None) -> str:
    """Return the list for a terminal; a star marks a preset's values that differ from defaults."""
    config = configs.merge(read_preset(preset) if preset else {}, [])
    lines = []
    for entry in entries(configs.Config):
        if is_settings(entry.kind):
            continue
        value = functools.reduce(getattr, entry.key.split("."), config)
        star = "*" if value != entry.default else " "
        lines.append(f"{star} {entry.key}={_value(value, entry.rule)}  ({_rule(entry)})")
        lines.append(textwrap.indent(textwrap.fill(entry.rule.help, 92), " " * 4))
    return "\n".join(lines) + "\n"


def as_markdown() -> str:
    """Return docs/settings.md: the settings of a run, then the keys of a site file."""
    return "\n\n".join([HEADER.strip(), *_tables(configs.Config, "##"), SITE_HEADER.strip(),
                        *_tables(Site, "###")]) + "\n"  # fmt: skip


def _tables(kind: type[Settings], heading: str) -> list[str]:
    """Return one table for the top level of a settings class, and one for each section in it."""
    head = "| key | default | values | what it does |\n|---|---|---|---|"
    tables = {"": [head]}
    for entry in entries(kind):
        section, dot, _ = entry.key.partition(".")
        if not is_settings(entry.kind):
            default = f"`{_value(entry.default, entry.rule)}`"
            cells = f"`{entry.key}`", default, _rule(entry), entry.rule.help
            tables[section if dot else ""].append(f"| {' | '.join(cells)} |")
        elif not dot:
            tables[section] = [f"{heading} {section}", "", entry.rule.help, "", head]
    return ["\n".join(lines) for lines in tables.values()]


def schema(kind: type[Settings]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a preset."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of a run",
        **_object(kind),
    }
    base = {"description": "Preset or base whose settings are extended.", "type": "string"}
    document["properties"][BASE] = base
    return document


def _object(kind: type[Settings]) -> dict[str, Any]:
    defaults = kind()
    properties = {}
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType] (all are)
        rule, declared = field.metadata["rule"], field_types(kind)[field.name]
        unit = f" Unit: {rule.unit}." if rule.unit else ""
        described = {"description": rule.help + unit}
        if is_settings(declared):
            properties[field.name] = described | _object(declared)
            continue
        default = {} if rule.required else {"default": getattr(defaults, field.name)}
        properties[field.name] = described | _values(declared, rule) | default
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _values(declared: Any, rule: Rule) -> dict[str, Any]:
    """Return the part of a JSON Schema that says which values a setting takes."""
    kind, optional = without_none(declared)
    if typing.get_origin(kind) is list:
        item = _values(typing.get_args(kind)[0], rule)
        items = {"type": "array", "items": item}
        return {"anyOf": [items, item]} if kind == list[str] else items
    if typing.get_origin(kind) is dict:
        return {"type": "object"}
    limits = {
        "minimum": rule.at_least,
        "exclusiveMinimum": rule.above,
        "maximum": rule.at_most,
        "exclusiveMaximum": rule.below,
        "multipleOf": rule.multiple_of,
        "pattern": f"^(?:{rule.pattern})$" if rule.pattern else None,
        "enum": [*rule.choices, *([None] if optional else [])] if rule.choices else None,
    }
    name = JSON_TYPES[kind]
    return {"type": [name, "null"] if optional else name} | {
        key: value for key, value in limits.items() if value is not None
    }


def _value(value: Any, rule: Rule) -> str:
    """Return a value as it is written on the command line."""
    if rule.required and not value:
        return "(required)"
    return '""' if value == "" else show(value)


def _rule(entry: Entry) -> str:
    """Return the values that a setting takes, in words."""
    rule = entry.rule
    kind, optional = without_none(entry.kind)
    if rule.choices:
        words = f"one of {', '.join(map(str, rule.choices))}"
    elif typing.get_origin(kind) is list:
        words = "text or a list of texts" if kind == list[str] else "a list of numbers"
    else:
        words = type_name(kind)
    words += f" of {rule.unit}" if rule.unit else ""
    words += " or null" if optional else ""
    return ", ".join([words, *rule.limits()]) + (f": {rule.pattern_help}" * bool(rule.pattern_help))
