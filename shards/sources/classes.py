"""Load `classes.yaml`: the classes, the ignored labels, and the license of a data set.

docs/folder.md describes the file for users.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shards.checked import PlainLoader, checked
from shards.errors import DataError
from shards.files import read_regular
from shards.format.schema import is_printable
from shards.format.taxonomy import Category, Taxonomy, palette

CLASSES = "classes.yaml"
_SEE = "see docs/folder.md"


@dataclass(frozen=True)
class _Class:
    """An entry of `classes`."""

    id: int
    name: str
    isthing: bool = False
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class _Description:
    """The content of `classes.yaml`."""

    classes: list[_Class]
    name: str = "folder"
    ignored: list[int] = field(default_factory=list)
    licence: dict[str, str] = field(default_factory=dict)


def load_classes(path: Path) -> tuple[Taxonomy, list[int], dict[str, str]]:
    """Load the classes, the ignored labels, and the license from a YAML file.

    Raises:
        DataError: The file is missing or malformed; the error names the file or the entry.
    """
    try:
        description = checked(_Description, _read_yaml(path))
    except ValueError as error:
        fix = f"correct it, {_SEE}; a text such as 'no' or '3.10' needs quotes"
        raise DataError(str(error), where=path, fix=fix) from error
    categories = [
        Category(entry.id, entry.name, entry.isthing, entry.color or palette(index))
        for index, entry in enumerate(description.classes)
    ]
    try:
        taxonomy = Taxonomy.of(description.name, categories)
    except DataError as error:
        raise error.at(path) from error
    for name, count in Counter(taxonomy.names).items():
        if count > 1 or not name.strip() or not is_printable(name):
            why = "occurs twice" if count > 1 else "is empty or has control characters"
            raise DataError(f"the class name {name!r} {why}", where=path, fix="change it")
    if both := {category.id for category in categories} & set(description.ignored):
        raise DataError(
            f"{both.pop()} is a class and also ignored",
            where=path,
            fix="remove it from one of the lists",
        )
    return taxonomy, description.ignored, description.licence


def _read_yaml(path: Path) -> Any:
    """Return the content of the file.

    Raises:
        DataError: The file is missing.
        ValueError: It is not YAML, or has an alias, which a few lines could repeat without end.
    """
    try:
        return yaml.load(read_regular(path), Loader=PlainLoader)
    except FileNotFoundError:
        others = [other.name for other in sorted(path.parent.glob("[Cc]lasses.*"))]
        fix = f"rename {others[0]}" if others else "list the classes in it"
        raise DataError("the file is missing", where=path, fix=f"{fix}, {_SEE}") from None
    except Exception as error:  # PyYAML raises almost any class for a damaged file
        raise ValueError(f"invalid YAML ({' '.join(str(error).split())})") from error
