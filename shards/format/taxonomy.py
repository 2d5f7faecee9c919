"""Label spaces: which categories there are, in which order, and which of them are things."""

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from shards.checked import checked
from shards.errors import DataError, some_of
from shards.format.schema import MAX_VALUE


@dataclass(frozen=True)
class Category:
    """One class: the publisher's id and name, thing or stuff, and an RGB color for pictures."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Taxonomy:
    """An ordered label space. A class index is a position in `categories`."""

    name: str
    categories: tuple[Category, ...]

    @classmethod
    def of(cls, name: str, categories: Iterable[Category]) -> "Taxonomy":
        """Return a taxonomy of the categories in the publisher's order, which is that of the ids.

        Things and stuff are mixed in this order: only `isthing` tells them apart. Released weights
        of the published data sets have their classes in the same order.

        Raises:
            DataError: There are no categories, or an id occurs twice.
        """
        taxonomy = cls(name, tuple(sorted(categories, key=lambda c: c.id)))
        if problem := taxonomy.problem():
            raise DataError(problem, where=name, fix="correct the list of categories")
        return taxonomy

    def problem(self) -> str:
        """Return why this is not a label space, or ""."""
        ids = [c.id for c in self.categories]
        if not ids:
            return "the list of categories is empty"
        if len(ids) > MAX_VALUE:  # class c has the value c + 1 in a map
            return f"the list has {len(ids)} categories, more than {MAX_VALUE}"
        if len(set(ids)) < len(ids):
            repeated = next(one for one, count in Counter(ids).items() if count > 1)
            return f"category id {repeated} occurs twice"
        for category in self.categories:
            if not all(isinstance(part, int) and 0 <= part <= 255 for part in category.color):
                return f"the color {list(category.color)} is not three numbers from 0 to 255"
        return ""

    def __len__(self) -> int:
        return len(self.categories)

    @property
    def things(self) -> tuple[bool, ...]:
        """For each class, whether it is a thing."""
        return tuple(c.isthing for c in self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""
        return tuple(c.name for c in self.categories)

    @cached_property
    def _index(self) -> dict[int, int]:
        return {c.id: i for i, c in enumerate(self.categories)}

    def index(self, id: int) -> int:
        """Return the class index of a publisher's category id.

        Raises:
            DataError: The id is unknown.
        """
        try:
            return self._index[id]
        except KeyError:
            raise DataError(
                f"category id {id} is not one of the {len(self)} categories",
                where=self.name,
                fix="correct the annotation or add the category",
            ) from None

    def difference(self, other: "Taxonomy") -> str:
        """Return how the classes differ from those of another label space, or "" if they are equal.

        Equal classes have equal names and flags in the same order. The ids, the colors, and the
        names of the label spaces may differ, because nothing that is trained depends on them.
        """
        if (self.names, self.things) == (other.names, other.things):
            return ""
        if sorted(self.names) != sorted(other.names):
            first, second = (
                [name for name in a.names if name not in b.names]
                for a, b in ((self, other), (other, self))
            )
            parts = [f"{len(self)} and {len(other)} of them"] if len(self) != len(other) else []
            parts += [f"only the first has {some_of(first, 6)}"] if first else []
            parts += [f"only the second has {some_of(second, 6)}"] if second else []
            return ", ".join(parts)
        ours, others = (list(zip(a.names, a.things, strict=True)) for a in (self, other))
        if unlike := Counter(ours) - Counter(others):
            name, thing = next(iter(unlike))
            return f"{name!r} is a thing only in the {'first' if thing else 'second'}"
        index = next(n for n in range(len(self)) if ours[n] != others[n])
        names = f"{self.names[index]!r} and {other.names[index]!r}"
        return f"they are in another order, class {index} is {names}"

    def to_json(self) -> dict[str, Any]:
        """Return the taxonomy as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Taxonomy":
        """Return the taxonomy that `to_json` made the values of.

        Raises:
            ValueError: The values are not those of a taxonomy.
        """
        taxonomy = checked(cls, value)
        if problem := taxonomy.problem():
            raise ValueError(problem)
        return taxonomy


def palette(index: int) -> tuple[int, int, int]:
    """Return a color for a category whose publisher gives none; neighbors differ in hue."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.65, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def rgb(values: Iterable[int]) -> tuple[int, int, int]:
    """Return a color that a file gives as a tuple.

    Raises:
        DataError: The color is not three numbers from 0 to 255.
    """
    parts = tuple(values)
    if len(parts) != 3 or not all(isinstance(n, int) and 0 <= n <= 255 for n in parts):
        raise DataError(
            f"the color {list(parts)} is not three numbers from 0 to 255", fix="correct it"
        )
    return parts
