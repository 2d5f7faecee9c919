"""Samples whose objects are drawn as outlines in a file per image: what LabelMe and YOLO share."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pycocotools import mask as coco_mask

from shards.doctor import Doctor, Finding, Reject
from shards.errors import DataError, UsageError
from shards.files import files_below
from shards.format.manifest import digest
from shards.format.schema import IMAGES, INSTANCES, JPEG, Instance, Sample, image_ext, key_of
from shards.format.taxonomy import Taxonomy
from shards.raw.images import read_image
from shards.raw.masks import pack
from shards.raw.segmentation import to_rle
from shards.sources.split import Split

WHOLE = "train"  # the split of images that are in the folder of none
SPLITS = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)


class Shape(NamedTuple):
    """An object of an image.

    Attributes:
        category: The index of its class.
        parts: Its polygons, each as coordinates x, y, x, y, ... in pixels.
    """

    category: int
    parts: list[list[float]]


Size = tuple[int, int]
# Given the annotation file, the size of the image, and the doctor, return the objects.
ReadShapes = Callable[[Path, Size, Doctor], list[Shape]]


@dataclass(frozen=True, slots=True)
class OutlineItem:
    """A sample with outlines that has not been read yet.

    Attributes:
        source: The name of the source.
        file_name: The path of the image in the raw data set.
        image: The image.
        truth: The file with its outlines.
        classes: The names of all classes, which the numbers of the truth depend on.
        declared_size: Returns the width and height that the truth gives for the image, if it does.
        read_shapes: Returns the objects of the image.
    """

    source: str
    file_name: str
    image: Path
    truth: Path
    classes: tuple[str, ...]
    declared_size: Callable[[Path], Size | None]
    read_shapes: ReadShapes

    @property
    def key(self) -> str:
        """The sample's key in the shard set."""
        return key_of(self.file_name)

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, then the file with its outlines."""
        return self.image, self.truth

    @property
    def annotation(self) -> str:
        """A digest of what the annotations depend on besides the file."""
        return digest(self.classes)

    def load(self, doctor: Doctor) -> Sample:
        """Read and check the sample.

        Args:
            doctor: Receives the findings that keep the sample in the set.

        Raises:
            Reject: The sample has a defect that excludes it from the set.
        """
        try:
            declared = self.declared_size(self.truth)
            image, width, height = read_image(self.image, declared, doctor)
            shapes = self.read_shapes(self.truth, (width, height), doctor)
            rles = [
                to_rle(f"object {n}", shape.parts, width, height, doctor)
                for n, shape in enumerate(shapes, 1)
            ]
        except FileNotFoundError:
            raise Reject(8, f"{self.truth.name} is missing") from None
        except OSError as error:
            raise Reject(8, f"{self.truth.name} is unreadable ({error.strerror})") from error
        except Reject:
            raise
        except ValueError as error:
            raise Reject(22, f"{self.truth.name}: {error}") from error
        areas = [int(coco_mask.area(rle)) for rle in rles]
        for n, area in enumerate(areas, 1):
            if not area:
                doctor.note(15, f"object {n} has no pixel")
        largest_first = sorted(range(len(rles)), key=lambda n: (-areas[n], n))
        layers, positions = pack(rles, largest_first, height, width)
        return Sample(
            key=self.key,
            image=image,
            ext=image_ext(self.file_name),
            file_name=self.file_name,
            source=self.source,
            image_id=self.file_name,
            width=width,
            height=height,
            instances=[
                Instance(
                    id=n + 1,
                    category=shape.category,
                    iscrowd=0,
                    area=float(areas[n]),
                    bbox=coco_mask.toBbox(rles[n]).tolist(),
                    layer=layer,
                    value=value,
                )
                for n, (shape, (layer, value)) in enumerate(zip(shapes, positions, strict=True))
            ],
            layers=layers,
        )


def files_of(
    root: Path, report: Callable[[str], None], *endings: str
) -> Iterator[tuple[str, Path]]:
    """Yield (name relative to the root, path) of the files below a folder with one of the endings.

    Args:
        root: The folder.
        report: Receives a line for everything that is skipped.
        endings: The endings in lower case; none for those of images.
    """
    endings = endings or tuple(f".{ext}" for ext in (*JPEG, *IMAGES))
    for path in files_below(root, report):
        if path.name.lower().endswith(endings):
            yield path.relative_to(root).as_posix(), path


def split_of(name: str) -> str:
    """Return the split of a file: that of the first folder that is named after one, or `train`."""
    folders = PurePosixPath(name).parent.parts
    return next((SPLITS[part.lower()] for part in folders if part.lower() in SPLITS), WHOLE)


def splits_of(names: Iterable[str], root: Path, source: str) -> list[str]:
    """Return the splits of the annotated images with these names.

    Raises:
        UsageError: There are none.
    """
    found = sorted({split_of(name) for name in names}, key=["train", "val", "test"].index)
    if not found:
        fix = f"give the folder of {source}'s raw data"
        raise UsageError(f"the folder has no labels of {source}", where=root, fix=fix)
    return found


def outline_split(
    split: str, taxonomy: Taxonomy, items: Iterable[OutlineItem], root: Path
) -> Split:
    """Return the split of the items that a shard can hold; findings reject the others.

    Raises:
        DataError: There are no items.
    """
    kept, findings = [], []
    for item in items:
        try:
            _ = item.key, image_ext(item.file_name)
            kept.append(item)
        except DataError as error:
            findings.append(Finding(item.file_name, 23, error.problem.what))
    if not kept:
        raise DataError(
            f"the split {split} has no image with labels", where=root, fix="see docs/try.md"
        )
    return Split(
        name=split,
        source=kept[0].source,
        taxonomy=taxonomy,
        tasks=("instance",),
        truths=(INSTANCES,),
        licenses=(),
        items=kept,
        findings=tuple(findings),
    )
