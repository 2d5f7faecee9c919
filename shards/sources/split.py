"""What a source module hands to the builder: a split of a raw data set, its samples still raw."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shards.doctor import Doctor, Finding
from shards.format.schema import Record
from shards.format.taxonomy import Taxonomy


class Item(Protocol):
    """A raw sample, light and picklable.

    `file_name` is its image as the data set names it; `files` are what it is made of, the image
    first, whether they are there or not; `annotation` is a digest of what files of the whole split
    say of it ("" for nothing).
    """

    key: str
    file_name: str
    files: tuple[Path, ...]
    annotation: str

    def load(self, doctor: Doctor) -> Record:
        """Read and check the sample: defects go to `doctor`, or are raised as Reject."""
        ...


@dataclass(frozen=True)
class Split:
    """One split: `truths` are the map members, `findings` those of no single item.

    An image that a finding of `findings` rejects is not among the items.
    """

    name: str
    source: str
    taxonomy: Taxonomy
    tasks: tuple[str, ...]
    truths: tuple[str, ...]
    licence: tuple[dict[str, Any], ...]
    items: list[Item]
    findings: tuple[Finding, ...] = ()
