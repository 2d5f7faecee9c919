"""Read truth from PNGs of integers: turn labels into classes, and ids into segments."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from shards.doctor import Reject
from shards.format.schema import Segment, map_type
from shards.format.taxonomy import Taxonomy

_STUFF = 1 << 16  # the id of a stuff segment is this number plus its label


class LabelMap(NamedTuple):
    """A map of integers, and the name of its file for findings."""

    name: str
    values: np.ndarray  # `uint8` or `uint16 [H, W]`


@contextmanager
def _opened(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open a picture with PIL, which leaves palette indices as they are.

    Raises:
        Reject: The file is missing or unreadable.
    """
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
    """Return the width and height in the header of a map."""
    with _opened(path, path.name) as picture:
        return picture.size


def read_labels(path: Path, size: tuple[int, int], channels: int = 1) -> np.ndarray:
    """Read a map file; see `labels_in`."""
    return labels_in(path, path.name, size, channels)


def labels_in(
    file: Path | BinaryIO, name: str, size: tuple[int, int], channels: int = 1
) -> np.ndarray:
    """Read the integers of a map; the integers of a palette picture are its indices.

    Args:
        file: The PNG.
        name: The name of the file in findings.
        size: The width and height of the image that the map belongs to.
        channels: 1 or 3.

    Returns:
        `uint8` or `uint16 [H, W]` for one channel, `uint8 [H, W, 3]` for three.

    Raises:
        Reject: The map is missing, is unreadable, has another size than the image, or does not hold
            integers. The size is checked before anything is decoded.
    """
    width, height = size
    with _opened(file, name) as picture:
        if picture.size != size:
            found = "{}x{}".format(*picture.size)
            raise Reject(9, f"{name} is {found}, the image {width}x{height}")
        values, mode = np.asarray(picture), picture.mode
    shape = (height, width) if channels == 1 else (height, width, channels)
    if values.dtype not in (np.uint8, np.uint16) or values.shape != shape:
        raise Reject(8, f"{name} has the mode {mode}, not integers in {channels} channel(s)")
    return values


def classes_of(values: np.ndarray, labels: Mapping[int, int], name: str) -> np.ndarray:
    """Turn a map of labels `[H, W]` into a map of classes.

    Args:
        values: The labels.
        labels: For each label c + 1 if it is class c, and 0 if it is ignored.
        name: The name of the file in findings.

    Raises:
        Reject: A label is unknown. The finding says so if all labels seem to be shifted by one.
    """
    present = np.flatnonzero(np.bincount(values.ravel())).tolist()
    if unknown := [label for label in present if label not in labels]:
        listed = ", ".join(map(str, unknown[:5])) + ", …" * (len(unknown) > 5)
        raise Reject(14, f"{name} has the unknown label {listed}{_shift_hint(present, labels)}")
    classes = np.zeros(present[-1] + 1, map_type(max(labels.values())))
    classes[present] = [labels[label] for label in present]
    return classes[values]


def _shift_hint(present: Sequence[int], labels: Mapping[int, int]) -> str:
    """Return a hint if every label would be known after subtracting or adding 1."""
    for step, unlabeled, fix in ((-1, (0,), "subtract"), (1, (255, 65535), "add")):
        if all(label in unlabeled or label + step in labels for label in present):
            return f": the labels seem to be off by one, because all are known if you {fix} 1"
    return ""


def segments_of(
    ids: np.ndarray, entry: Callable[[int], tuple[int, int]]
) -> tuple[list[Segment], np.ndarray]:
    """Return the segments of an id map, in the order of their ids, and the numbered map.

    Args:
        ids: The publisher's ids `[H, W]`, 0 = void.
        entry: Returns the class index and the crowd flag (0 or 1) of an id.

    Returns:
        The segments, with their areas and boxes in the map; and the numbered map, `uint8` or
        `uint16 [H, W]`, in which the pixels of the n-th segment (from 1) hold n.
    """
    areas = np.bincount(ids.ravel())
    present = np.flatnonzero(areas)
    present = present[present > 0]
    numbers = np.zeros(len(areas), map_type(len(present)))
    numbers[present] = np.arange(1, len(present) + 1)
    numbered = numbers[ids]
    segments = []
    for id, bbox in zip(present.tolist(), _boxes(numbered, len(present)), strict=True):
        category, iscrowd = entry(id)
        segments.append(Segment(id, category, iscrowd, int(areas[id]), bbox))
    return segments, numbered


def _boxes(numbered: np.ndarray, count: int) -> list[list[float]]:
    """Return the box (x, y, width, height) of each value from 1 to `count` in a map `[H, W]`.

    One pass over the runs of equal values replaces one pass over the map per value. (scipy has
    `find_objects`, but its import costs 20 MiB in each loader process of a training run.)
    """
    height, width = numbered.shape
    changes = np.ones((height, width), bool)  # true where a run starts; every row starts a run
    changes[:, 1:] = numbered[:, 1:] != numbered[:, :-1]
    starts = np.flatnonzero(changes)
    values = numbered.ravel()[starts]
    rows, left = np.divmod(starts, width)
    right = np.append(starts[1:], numbered.size) - rows * width
    first = np.full((2, count + 1), max(height, width))  # x, y
    last = np.zeros((2, count + 1), int)  # x, y, both exclusive
    for axis, (starts_at, ends_at) in enumerate([(left, right), (rows, rows + 1)]):
        np.minimum.at(first[axis], values, starts_at)
        np.maximum.at(last[axis], values, ends_at)
    return np.concatenate([first, last - first])[:, 1:].T.tolist()


def labels_of(taxonomy: Taxonomy, ignored: Iterable[int]) -> dict[int, int]:
    """Return c + 1 for the label of each class c, and 0 for the `ignored` labels."""
    classes = {c.id: n for n, c in enumerate(taxonomy.categories, start=1)}
    return dict.fromkeys(ignored, 0) | classes


def truth_of_maps(
    labels: Mapping[int, int],
    things: Sequence[bool],
    classes_map: tuple[str, np.ndarray],
    instances_map: tuple[str, np.ndarray] | None,
) -> dict[str, Any]:
    """Return the truth fields of a Sample from a map of labels and an optional map of instances.

    Panoptic truth consists of the stuff in the map of labels and the things in the map of
    instances. A thing's pixels outside every instance are void. The id of a thing's segment is its
    instance number; the id of a stuff segment is 65536 + its label.

    Args:
        labels: For each label c + 1 if it is class c, and 0 if it is ignored.
        things: For each class, whether it is a thing.
        classes_map: The name and the labels `[H, W]` of the map of labels.
        instances_map: The name and the instance numbers `[H, W]` (0 = no instance), or None.

    Raises:
        Reject: A label is unknown, or an instance does not lie on one thing class.
    """
    labels_map = LabelMap(*classes_map)
    classes = classes_of(labels_map.values, labels, labels_map.name)
    fields: dict[str, Any] = {"semantic": classes}
    if instances_map is not None:
        instances = LabelMap(*instances_map)
        class_of = _classes_of_instances(instances, classes, things)
        is_stuff = np.array([False, *(not thing for thing in things)])  # by c + 1
        stuff_ids = labels_map.values + np.uint32(_STUFF)
        stuff = np.where(is_stuff[classes], stuff_ids, np.uint32(0))
        fields["segments"], fields["segments_map"] = segments_of(
            np.where(instances.values > 0, instances.values, stuff),
            lambda id: ((class_of[id] if id < _STUFF else labels[id - _STUFF]) - 1, 0),
        )
    return fields


def _classes_of_instances(
    instances: LabelMap, classes: np.ndarray, things: Sequence[bool]
) -> list[int]:
    """Return for each instance number c + 1, where c is the class that the instance lies on.

    Args:
        instances: The map of instance numbers.
        classes: The map of c + 1 `[H, W]`.
        things: For each class, whether it is a thing.

    Raises:
        Reject: An instance lies on several classes, or on a class that is not a thing.
    """
    numbers = instances.values
    is_thing = np.array([False, *things])  # by c + 1
    class_of = np.zeros(int(numbers.max()) + 1, classes.dtype)
    class_of[numbers] = classes
    class_of[0] = 0
    for wrong, why in (
        ((numbers > 0) & (class_of[numbers] != classes), "is on several classes"),
        ((numbers > 0) & ~is_thing[classes], "is on a class that is not a thing"),
    ):
        if wrong.any():
            raise Reject(13, f"instance {numbers[wrong][0]} of {instances.name} {why}")
    return class_of.tolist()
