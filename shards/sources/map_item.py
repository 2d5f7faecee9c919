"""Samples whose annotations are label maps: what a source describes, and how they are read."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.doctor import Doctor, Finding
from shards.errors import DataError
from shards.format.label_maps import map_size
from shards.format.manifest import digest
from shards.format.schema import (
    INSTANCES,
    SEGMENTS,
    SEMANTIC,
    Sample,
    image_ext,
    key_of,
    rights_of,
)
from shards.format.taxonomy import Taxonomy
from shards.raw.images import read_image
from shards.sources.layout import Files, Layout
from shards.sources.split import Split

ReadTruth = Callable[["MapItem", tuple[int, int], Doctor], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class MapItem:
    """A sample with label maps that has not been read yet.

    Attributes:
        source: The name of the source.
        raw: The image and its maps.
        image_id: The publisher's id of the image.
        read_truth: Called with the item, the image's (width, height), and the doctor; returns the
            fields of a sample that hold its annotations.
        depends: What the annotations depend on besides the maps, as plain JSON.
        ranges: The byte ranges (start, end, ...) of the image's annotations in a file of the whole
            split; None without such a file.
        rights: The license and attribution of the image.
    """

    source: str
    raw: Files
    image_id: str
    read_truth: ReadTruth
    depends: Any
    ranges: Sequence[int] | None
    rights: dict[str, str]

    @property
    def key(self) -> str:
        """The sample's key in the shard set."""
        return key_of(self.raw.file_name)

    @property
    def file_name(self) -> str:
        """The image's path in the image folder of its split."""
        return self.raw.file_name

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, then its maps."""
        return self.raw.image, *self.raw.maps.values()

    @property
    def annotation(self) -> str:
        """A digest of what the annotations depend on besides the maps."""
        return digest([self.depends, self.rights])

    def load(self, doctor: Doctor) -> Sample:
        """Read and check the sample.

        Args:
            doctor: Receives the findings that keep the sample in the set.

        Raises:
            Reject: The sample has a defect that excludes it from the set.
        """
        size = map_size(next(iter(self.raw.maps.values())))
        image, width, height = read_image(self.raw.image, size, doctor, mismatch=9)
        return Sample(
            key=self.key,
            image=image,
            ext=image_ext(self.file_name),
            file_name=self.file_name,
            source=self.source,
            image_id=self.image_id,
            width=width,
            height=height,
            rights=self.rights,
            **self.read_truth(self, (width, height), doctor),
        )


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a source knows about a split besides its files.

    Attributes:
        taxonomy: The classes.
        license: The license of the data set.
        read_truth: How to read the annotations of an item, see `MapItem.read_truth`.
        image_id: Returns the publisher's id of the image with a NAME.
        depends: Returns `MapItem.depends` of the image with a NAME.
        ranges: Returns `MapItem.ranges` of the image with a NAME.
    """

    taxonomy: Taxonomy
    license: Mapping[str, str]
    read_truth: ReadTruth
    image_id: Callable[[str], str] = str
    depends: Callable[[str], Any] = lambda name: None
    ranges: Callable[[str], Sequence[int] | None] = lambda name: None


def read_split(
    layout: Layout,
    describe: Callable[[Path, str, tuple[str, ...]], Description],
    root: Path,
    split: str,
    tasks: Collection[str] | None,
    report: Callable[[str], None],
) -> Split:
    """List a split; its items read the images and maps later.

    Args:
        layout: Where the files are.
        describe: Describes the split, given the root, its name, and the tasks that it serves.
        root: The folder of the raw data set.
        split: The name of the split.
        tasks: The tasks to serve; None for every task for which no image lacks a map.
        report: Receives a line for every task that is not served.

    Raises:
        UsageError: The split does not exist.
        DataError: The annotations are missing or damaged.
    """
    served, files = layout.find_files(root, split, tasks, report)
    about = describe(root, split, served)
    members = {layout.members[task] for task in served}
    rights = rights_of(about.license)
    findings = [Finding(file.file_name, 23, why) for file in files if (why := _unfit(file))]
    return Split(
        name=split,
        source=layout.source,
        taxonomy=about.taxonomy,
        tasks=served,
        truths=tuple(member for member in (SEGMENTS, INSTANCES, SEMANTIC) if member in members),
        licenses=(dict(about.license),),
        items=[
            MapItem(
                source=layout.source,
                raw=file,
                image_id=about.image_id(file.name),
                read_truth=about.read_truth,
                depends=about.depends(file.name),
                ranges=about.ranges(file.name),
                rights=rights,
            )
            for file in files
            if not _unfit(file)
        ],
        findings=tuple(findings),
    )


def _unfit(file: Files) -> str:
    """Return why the name of an image cannot be a key, or "" if it can."""
    try:
        key_of(file.file_name)
    except DataError as error:
        return error.problem.what
    return ""
