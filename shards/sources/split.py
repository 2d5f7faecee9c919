"""The interface between the sources and the builder: a split of a raw data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shards.doctor import Doctor, Finding
from shards.format.schema import Sample
from shards.format.taxonomy import Taxonomy


class Item(Protocol):
    """A sample that has not been read yet: small, and picklable."""

    @property
    def key(self) -> str:
        """The sample's key in the shard set."""
        ...

    @property
    def file_name(self) -> str:
        """The image's name in the raw data set."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the sample is made of, the image first; they may be missing."""
        ...

    @property
    def annotation(self) -> str:
        """A digest of what files of the whole split say about the sample; "" if there are none."""
        ...

    def load(self, doctor: Doctor) -> Sample:
        """Read and check the sample.

        Args:
            doctor: Receives the findings that keep the sample in the set.

        Raises:
            Reject: The sample has a defect that excludes it from the set.
        """
        ...


@dataclass(frozen=True)
class Split:
    """One split of a raw data set.

    Attributes:
        name: The name of the split.
        source: The name of the source.
        taxonomy: The classes.
        tasks: The tasks that the split has annotations for.
        truths: The map members of a sample.
        licenses: The licenses of the data set.
        items: The samples, except for images that a finding of `findings` rejects.
        findings: The findings that are not about a single item.
    """

    name: str
    source: str
    taxonomy: Taxonomy
    tasks: tuple[str, ...]
    truths: tuple[str, ...]
    licenses: tuple[dict[str, Any], ...]
    items: Sequence[Item]
    findings: tuple[Finding, ...] = ()
