"""Truth as PNGs of integers: reading them, classes from labels, segments from ids."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from scipy import ndimage

from shards.doctor import Reject
from shards.format.schema import Segment, map_type
from shards.format.taxonomy import Taxonomy

_STUFF = 1 << 16  # before the label in a stuff segment's id


@contextmanager
def _opened(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """By PIL, which leaves palette indices as they are. Rejects what it cannot read."""
    try:
        with Image.open(file) as picture:
            yield picture
    except FileNotFoundError:
        raise Reject(8, f"{name} is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, Reject):
            raise
        raise Reject(8, f"{name} is unreadable ({type(error).__name__})") from error


def map_size(path: Path) -> tuple[int, int]:
    """Width and height of a map, from its header."""
    with _opened(path, path.name) as picture:
        return picture.size


def read_labels(path: Path, size: tuple[int, int], channels: int = 1) -> np.ndarray:
    """`labels_in` of a file."""
    return labels_in(path, path.name, size, channels)


def labels_in(
    file: Path | BinaryIO, name: str, size: tuple[int, int], channels: int = 1
) -> np.ndarray:
    """The integers of a map: u8 or u16 `[H, W]`, of a palette its indices; u8 `[H, W, 3]` for 3.

    `size` is the image's width and height; a map of another one is rejected before it is decoded.
    """
    width, height = size
    with _opened(file, name) as picture:
        if picture.size != size:
            found = "{}x{}".format(*picture.size)
            raise Reject(9, f"{name} is {found}, the image {width}x{height}")
        values, mode = np.asarray(picture), picture.mode
    shape = (height, width) if channels == 1 else (height, width, channels)
    if values.dtype not in (np.uint8, np.uint16) or values.shape != shape:
        raise Reject(8, f"{name} has the mode {mode}, not {channels} channel of integers")
    return values


def classes_of(values: np.ndarray, labels: Mapping[int, int], name: str) -> np.ndarray:
    """A map of labels `[H, W]` as one of classes: `labels` gives c + 1 for class c, 0 for ignored.

    Rejects unknown labels, and says so where all labels of the file `name` seem shifted by one.
    """
    present = np.flatnonzero(np.bincount(values.ravel())).tolist()
    if strange := [label for label in present if label not in labels]:
        listed = ", ".join(map(str, strange[:5])) + ", …" * (len(strange) > 5)
        raise Reject(14, f"{name} has the unknown label {listed}{_shifted(present, labels)}")
    classes = np.zeros(present[-1] + 1, map_type(max(labels.values())))
    classes[present] = [labels[label] for label in present]
    return classes[values]


def _shifted(present: list[int], labels: Mapping[int, int]) -> str:
    """A remark where every label would be known if it were one less, or one more."""
    for step, unlabeled, fix in ((-1, (0,), "subtract"), (1, (255, 65535), "add")):
        if all(label in unlabeled or label + step in labels for label in present):
            return f": the map looks off by one, for all are known once you {fix} 1"
    return ""


def segments_of(
    ids: np.ndarray, entry: Callable[[int], tuple[int, int]]
) -> tuple[list[Segment], np.ndarray]:
    """The segments of an id map `[H, W]` (0 = void) by id, and the map with their places from 1.

    `entry(id)` is the class index and whether it is a crowd. Areas and boxes are those of the map.
    """
    areas = np.bincount(ids.ravel())
    present = np.flatnonzero(areas)
    present = present[present > 0]
    places = np.zeros(len(areas), map_type(len(present)))
    places[present] = np.arange(1, len(present) + 1)
    numbered = places[ids]
    segments = []
    for id, (rows, columns) in zip(present.tolist(), ndimage.find_objects(numbered), strict=True):
        category, iscrowd = entry(id)
        bbox = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        segments.append(Segment(id, category, iscrowd, int(areas[id]), bbox))
    return segments, numbered


def labels_of(taxonomy: Taxonomy, ignored: Iterable[int]) -> dict[int, int]:
    """c + 1 by label for class c, 0 for the labels of no class."""
    classes = {c.id: n for n, c in enumerate(taxonomy.categories, start=1)}
    return dict.fromkeys(ignored, 0) | classes


def truth_of_maps(
    labels: Mapping[int, int],
    things: int,
    classes_map: tuple[str, np.ndarray],
    instances_map: tuple[str, np.ndarray] | None,
) -> dict[str, Any]:
    """A Record's fields of truth from a map of labels and one of the things' numbers, if any.

    A map is its name and its values `[H, W]`. `labels` gives c + 1 for class c, 0 for none, and the
    first `things` classes are things. Panoptic truth is the stuff of the labels and the things of
    the instances; a thing's pixels in no instance are void. The id of a thing's segment is its
    number, that of a stuff segment 65536 + the id of its class.
    """
    name, values = classes_map
    classes = classes_of(values, labels, name)
    fields: dict[str, Any] = {"semantic": classes}
    if instances_map is not None:
        name, numbers = instances_map
        of = _classes_of_instances(numbers, classes, things, name)
        stuff = np.where(classes > things, values + np.uint32(_STUFF), np.uint32(0))
        fields["segments"], fields["segments_map"] = segments_of(
            np.where(numbers > 0, numbers, stuff),
            lambda id: ((of[id] if id < _STUFF else labels[id - _STUFF]) - 1, 0),
        )
    return fields


def _classes_of_instances(
    numbers: np.ndarray, classes: np.ndarray, things: int, name: str
) -> list[int]:
    """c + 1 by instance for its class c, from the map of classes `[H, W]` below it.

    Rejects an instance, of the file `name`, that is not on one thing class.
    """
    of = np.zeros(int(numbers.max()) + 1, classes.dtype)
    of[numbers] = classes
    of[0] = 0
    for wrong, why in (
        ((numbers > 0) & (of[numbers] != classes), "is on several classes"),
        ((numbers > 0) & ((classes < 1) | (classes > things)), "is on a class that is no thing"),
    ):
        if wrong.any():
            raise Reject(13, f"instance {numbers[wrong][0]} of {name} {why}")
    return of.tolist()
