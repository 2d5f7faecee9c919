"""Load `classes.yaml`: the classes, the ignored labels, and the license of a data set.

docs/folder.md describes the file for users.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shards.errors import DataError
from shards.format.taxonomy import Category, Taxonomy, palette, rgb

CLASSES = "classes.yaml"
_SEE = "see docs/folder.md"


@dataclass
class _Class:
    """An entry of `classes`."""

    id: int = MISSING
    name: str = MISSING
    isthing: bool = False
    color: list[int] | None = None


@dataclass
class _Description:
    """The content of `classes.yaml`."""

    name: str = "folder"
    classes: list[Any] = MISSING
    ignored: list[int] = field(default_factory=list)
    licence: dict[str, str] = field(default_factory=dict)


def load_classes(path: Path) -> tuple[Taxonomy, list[int], dict[str, str]]:
    """Load the classes, the ignored labels, and the license from a YAML file.

    Raises:
        DataError: The file is missing or malformed; the error names the file or the entry.
    """
    description = _typed(path, _Description, _read_yaml(path))
    categories = []
    for index, row in enumerate(description.classes):
        where = f"{path}: classes[{index}]"
        entry = _typed(where, _Class, row)
        try:
            color = palette(index) if entry.color is None else rgb(entry.color)
        except DataError as error:
            raise error.at(where) from error
        categories.append(Category(entry.id, entry.name, entry.isthing, color))
    try:
        taxonomy = Taxonomy.of(description.name, categories)
    except DataError as error:
        raise error.at(path) from error
    if both := {category.id for category in categories} & set(description.ignored):
        raise DataError(
            f"{both.pop()} is a class and also ignored",
            where=path,
            fix="remove it from one of the lists",
        )
    return taxonomy, description.ignored, description.licence


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text()
        document = yaml.safe_load(text)
    except FileNotFoundError:
        raise DataError(
            "the file is missing", where=path, fix=f"list the classes in it, {_SEE}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise DataError(f"invalid YAML ({message})", where=path, fix="correct it") from error
    if "${" in text:  # OmegaConf would interpolate it, even from environment variables
        raise DataError("the file contains '${'", where=path, fix="remove it")
    return document


def _typed(where: Path | str, kind: type, value: Any) -> Any:
    """Convert plain YAML values to the dataclass `kind`.

    Raises:
        DataError: A field is missing, unknown, or of the wrong type.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), value))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise DataError(
            str(error).splitlines()[0], where=where, fix=f"correct it, {_SEE}"
        ) from error
