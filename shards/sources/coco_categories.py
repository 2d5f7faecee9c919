"""Read the categories of an annotation file in COCO's formats."""

import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import ImageColor

from shards.errors import DataError
from shards.format.schema import is_printable
from shards.format.taxonomy import Category, Taxonomy, palette, rgb
from shards.raw.values import flag, integer, member

_LIST = re.compile(r"[(\[]?([^()\[\]#]*,[^()\[\]#]*)[)\]]?")  # [1, 2, 3] or 1, 2, 3 as text


def taxonomy_of(path: Path, kind: str, entries: Sequence[Any]) -> tuple[Taxonomy, list[str]]:
    """Return the classes of an annotation file; all of an instances file are things.

    A category without a color gets one of the palette by its position among the ids, so that files
    that list the same categories in another order have equal classes.

    Args:
        path: The file.
        kind: `panoptic` or `instances`.
        entries: The entries of `categories`; equal ones count once.

    Returns:
        The classes, and the names of those whose color is unreadable.

    Raises:
        DataError: A category is malformed, the list is empty, or an id occurs twice.
    """
    found: dict[tuple[int, str, bool], Any] = {}
    for entry in entries:
        try:
            id = integer("id", member(entry, "id"))
            isthing = kind == "instances" or flag("isthing", member(entry, "isthing"))
            found.setdefault((id, _name(member(entry, "name")), isthing), entry.get("color"))
        except ValueError as error:
            raise DataError(
                f"the category {reprlib.repr(entry)} is malformed: {error}",
                where=path,
                fix="correct it, and the annotations that name it",
            ) from error
    categories, odd = [], []
    for position, (fields, color) in enumerate(sorted(found.items(), key=lambda item: item[0])):
        values = _color(color)
        if color and values is None:
            odd.append(fields[1])
        categories.append(Category(*fields, values or palette(position)))
    try:
        return Taxonomy.of(f"coco_{kind}", categories), odd
    except DataError as error:
        raise error.at(path) from error


def _name(value: Any) -> str:
    """Return the name of a class, which may be a whole number.

    Raises:
        ValueError: It is another value, is empty, or contains control characters.
    """
    name = str(value) if type(value) is int else value
    if not isinstance(name, str) or not name.strip() or not is_printable(name):
        raise ValueError(f"name {reprlib.repr(value)} is not a text of printable characters")
    return name


def _color(value: Any) -> tuple[int, int, int] | None:
    """Return a color given as a list, #1c9d4c, rgb(1, 2, 3), a name, or text of a list.

    Returns:
        The color; None if there is none, or if it has another form.
    """
    try:
        if isinstance(value, str):
            numbers = _LIST.fullmatch(value.strip())
            value = numbers[1].split(",") if numbers else ImageColor.getrgb(value.strip())[:3]
            value = [part.strip() if isinstance(part, str) else part for part in value]
        return rgb([integer("color", part) for part in value])
    except (ValueError, TypeError):
        return None


def require_same_names(first: Taxonomy, second: Taxonomy, paths: Sequence[Path]) -> None:
    """Raise DataError unless both files of a split give every id that they share the same name."""
    names = {category.id: category.name for category in first.categories}
    for category in second.categories:
        if names.get(category.id, category.name) != category.name:
            raise DataError(
                f"category {category.id} is {category.name!r} here, and {names[category.id]!r} in "
                f"{paths[0].name}",
                where=paths[1],
                fix="give each category the same id in both files",
            )
