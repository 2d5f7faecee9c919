"""The classes of the published data sets, as the paper's code registers them."""

import json
from pathlib import Path
from typing import NamedTuple

_FILE = Path(__file__).parents[1] / "data" / "official_classes.json"


class Official(NamedTuple):
    """A published label space.

    Attributes:
        names: The name of each class, in the order of the released weights.
        things: The indices of the things.
        instance: The names of the classes of the instance task, in their order.
        synonyms: The publisher's longer name of each class; `names` if it has none.
    """

    names: list[str]
    things: list[int]
    instance: list[str]
    synonyms: list[str]


OFFICIAL = {
    data_set: Official(
        row["names"], row["things"], row["instance"], row.get("synonyms", row["names"])
    )
    for data_set, row in json.loads(_FILE.read_bytes()).items()
}


def is_same(ours: str, official: str) -> bool:
    """Return whether our name is the first of the names in the official one."""
    return ours == official.split(",")[0].strip()
