"""What a source module hands to the builder: a split of a raw data set, its samples still raw."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shards.schema import Record
from shards.taxonomy import Taxonomy


class Item(Protocol):
    """A raw sample, light and picklable. `files` are what it is made of, the image first."""

    key: str
    file_name: str
    files: tuple[Path, ...]

    def load(self) -> Record:
        """Read and check the sample. Raises DataError naming the file and the fix."""
        ...


@dataclass(frozen=True)
class Split:
    """One split. `annotations` are the files that describe all of it, `truths` the map members."""

    name: str
    source: str
    taxonomy: Taxonomy
    tasks: tuple[str, ...]
    truths: tuple[str, ...]
    licence: tuple[dict[str, Any], ...]
    annotations: tuple[Path, ...]
    items: list[Item]
