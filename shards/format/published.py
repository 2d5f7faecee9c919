"""The published data sets: their classes in the publisher's order, and the spellings of the names.

Each file in tables/ lists the classes of a data set with all names that its publisher gives them.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

DATA_SETS = ("ade20k", "cityscapes", "coco", "vistas")
_IGNORED = 255  # the train id of a label without a class


def table(data_set: str) -> list[dict[str, Any]]:
    """Load the published list of labels of a data set."""
    return json.loads((Path(__file__).parent / "tables" / f"{data_set}.json").read_bytes())


def published_order(names: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """Return the published label space that has these classes, in any order and spelling.

    Returns:
        The name of the data set, and its class names in the publisher's order; None if the names
        are not all classes, or all things, of a published data set.
    """
    for data_set in DATA_SETS:
        found = {_published_name(data_set, name) for name in names}
        for space in _label_spaces(data_set):
            if len(names) == len(space) and found == set(space):
                return data_set, space
    return None


def published_ids(names: Sequence[str]) -> tuple[str, tuple[int, ...]] | None:
    """Return the data set whose label space these classes are, and the publisher's id of each.

    None if the names are not all classes, or all things, of a published data set.
    """
    space = published_order(names)
    if space is None:
        return None
    ids = {row["name"]: row["id"] for row in table(space[0])}
    return space[0], tuple(ids[str(_published_name(space[0], name))] for name in names)


def match_names(found: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """Return for each wanted name the index of the equal name in `found`, or None.

    Names are equal if they differ only in case, spaces, hyphens, and underscores. If one of the
    lists is a published label space, all spellings of its publisher are equal too. A name that
    occurs twice in a list, or that two classes share, is equal to no other.
    """
    if list(found) == list(wanted):
        return list(range(len(wanted)))
    spaces = published_order(found), published_order(wanted)
    of_found, of_wanted = (space[0] if space else None for space in spaces)
    found_keys = _keys(found, of_found or of_wanted)
    wanted_keys = _keys(wanted, of_wanted or of_found)
    by_name, by_key = _unique(found), _unique(found_keys)
    names, keys = _unique(wanted), _unique(wanted_keys)
    rows: list[int | None] = []
    for name, key in zip(wanted, wanted_keys, strict=True):
        row = by_name.get(name) if name in names else None
        if row is None and key in keys:
            row = by_key.get(key)
        rows.append(row)
    return rows


def _keys(names: Sequence[str], data_set: str | None) -> list[str]:
    """Return for each name what equal names share."""
    if data_set is None:
        return [_plain(name) for name in names]
    return [_plain(_published_name(data_set, name) or name) for name in names]


def _unique(names: Sequence[str]) -> dict[str, int]:
    """Return the index of each name that occurs once."""
    counts = Counter(names)
    return {name: index for index, name in enumerate(names) if counts[name] == 1}


@cache
def _label_spaces(data_set: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of all classes, and those of the things, in the publisher's order."""
    rows = [row for row in table(data_set) if row.get("train_id") != _IGNORED]
    things = tuple(row["name"] for row in rows if row["isthing"])
    return tuple(row["name"] for row in rows), things


@cache
def _spellings(data_set: str) -> Mapping[str, set[str]]:
    """Return the names in the table of the classes that each spelling can stand for."""
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for row in table(data_set):
        for spelling in (row["name"], *row.get("synonyms", ())):
            spellings[_plain(spelling)].add(row["name"])
    return spellings


@cache
def _own_names(data_set: str) -> Mapping[str, str]:
    """Return the name in the table by its plain form."""
    return {_plain(name): name for name in _label_spaces(data_set)[0]}


def _published_name(data_set: str, name: str) -> str | None:
    """Return the name in the table of a class that is spelled in any published way.

    A spelling may list several names, such as "windowpane, window". The class has all of them. A
    spelling that several classes share, such as "ground", is that of none, except that "screen" is
    the class called "screen".
    """
    if own := _own_names(data_set).get(_plain(name)):
        return own
    parts = [_plain(part) for part in re.split(r"[,;]", name) if part.strip()]
    spellings = _spellings(data_set)
    owners = [spellings.get(part, set[str]()) for part in parts]
    common = set.intersection(*owners) if owners else set()
    return common.pop() if len(common) == 1 else None


def _plain(name: str) -> str:
    """Return a name without differences in case, spaces, hyphens, and underscores."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
