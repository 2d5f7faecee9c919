"""`classes.yaml` of data of one's own: classes, labels of none, licence. See docs/folder.md"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shards.errors import DataError
from shards.format.taxonomy import Category, Taxonomy, palette

CLASSES = "classes.yaml"


@dataclass
class _Class:
    id: int = MISSING
    name: str = MISSING
    isthing: bool = False
    color: list[int] | None = None


@dataclass
class _Description:
    """What `classes.yaml` holds."""

    name: str = "folder"
    classes: list[Any] = MISSING
    ignored: list[int] = field(default_factory=list)
    licence: dict[str, str] = field(default_factory=dict)


def load_classes(path: Path) -> tuple[Taxonomy, list[int], dict[str, str]]:
    """The classes, the labels of none and the licence. Raises DataError naming what is wrong."""
    try:
        text = path.read_text()
        document = yaml.safe_load(text)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; list the classes there, see docs/folder.md") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no YAML ({error}); correct it") from error
    if "${" in text:  # OmegaConf would put the environment in its place
        raise DataError(f"{path} has '${{' in it; take it out")
    description = _typed(path, _Description, document)
    categories = []
    for place, row in enumerate(description.classes):
        one = _typed(f"{path}: classes[{place}]", _Class, row)
        color = tuple(palette(place) if one.color is None else one.color)
        if len(color) != 3 or not all(0 <= part <= 255 for part in color):
            raise DataError(f"{path}: color {one.color} of {one.name} is not three of 0 to 255")
        categories.append(Category(one.id, one.name, one.isthing, color))
    try:
        taxonomy = Taxonomy.of(description.name, categories)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if both := {category.id for category in categories} & set(description.ignored):
        raise DataError(f"{path}: {both.pop()} is a class and ignored; take it out of one list")
    return taxonomy, description.ignored, description.licence


def _typed(where: Path | str, kind: type, value: Any) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), value))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: {str(error).splitlines()[0]}; correct it, see docs/folder.md"
        ) from error
