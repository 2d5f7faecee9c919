"""Parsed values are compared with their declared types, and an error names the value."""

import dataclasses
from typing import Any

import pytest
import yaml

from shards.checked import MAX_DEPTH, PlainLoader, checked


@dataclasses.dataclass(frozen=True)
class Point:
    at: tuple[int, int]
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Drawing:
    points: tuple[Point, ...]
    scale: float | None = None
    labels: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    extra: Any = None


def test_values_become_the_declared_classes() -> None:
    value = {"points": [{"at": [1, 2]}], "scale": 3, "labels": {"a": ["é"]}, "extra": [{"b": 1.5}]}
    drawing = checked(Drawing, value)
    assert drawing == Drawing((Point((1, 2)),), 3.0, {"a": ["é"]}, [{"b": 1.5}])
    assert isinstance(drawing.scale, float)
    assert checked(Drawing, {"points": []}) == Drawing(())


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the value is null, not a mapping"),
        ([], "the value is a list, not a mapping"),
        ({}, "points is missing"),
        ({"points": [], "point": []}, "point is unknown"),
        ({"points": {}}, "points is a mapping, not a list"),
        ({"points": [{"at": [1, 2]}, {"at": [1]}]}, r"points\[1\]\.at has 1 entries, not 2"),
        ({"points": [{"at": [1, True]}]}, r"points\[0\]\.at\[1\] is true, not a whole number"),
        ({"points": [{"at": [1, 2.0]}]}, r"points\[0\]\.at\[1\] is 2.0, not a whole number"),
        ({"points": [{"at": [1, 2**63]}]}, "is 9223372036854775808, not a whole number of 64 bits"),
        ({"points": [{"at": [1, 2], "name": 5}]}, r"points\[0\]\.name is 5, not a text"),
        ({"points": [{"at": [1, 2], "name": "\ud800"}]}, r"name is not Unicode text"),
        ({"points": [], "scale": float("nan")}, "scale is nan, not a finite number"),
        ({"points": [], "scale": float("inf")}, "scale is inf, not a finite number"),
        ({"points": [], "scale": 10**400}, "scale is 1000.*…, not a whole number of 64 bits"),
        ({"points": [], "scale": "1"}, "scale is '1', not a finite number"),
        ({"points": [], "labels": {"a": "text"}}, "labels.a is 'text', not a list"),
        ({"points": [], "labels": {3: []}}, "labels is 3, not a text|labels.3"),
        ({"points": [], "extra": nested(MAX_DEPTH + 1)}, "extra is nested deeper than 32"),
        ({"points": [], "extra": {"a": float("nan")}}, "extra is nan"),
        ({"points": [], "extra": {1, 2}}, "extra is {1, 2}, which JSON does not have"),
    ],
)
def test_another_value_is_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(Drawing, value)


def test_hashes_of_64_bits_are_values_of_any_type() -> None:
    assert checked(Any, [2**64 - 1, nested(MAX_DEPTH - 1)])[0] == 2**64 - 1
    with pytest.raises(ValueError, match="not a whole number of 64 bits"):
        checked(Any, 2**64)


def test_yaml_has_no_aliases() -> None:
    assert yaml.load("a: &x [1]", Loader=PlainLoader) == {"a": [1]}
    with pytest.raises(yaml.YAMLError, match="alias"):
        yaml.load("a: &x [1]\nb: *x", Loader=PlainLoader)
