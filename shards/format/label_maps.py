"""Read truth from PNGs of integers: turn labels into classes, and ids into segments."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from shards.doctor import Reject
from shards.format.images import decode_with_opencv, opened
from shards.format.schema import Segment, map_type, png_size
from shards.format.taxonomy import Taxonomy

_STUFF = 1 << 16  # the id of a stuff segment is this number plus its label
_GRAY, _RGB, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 4, 6  # color types in the header of a PNG
_KINDS = {b"\xff\xd8": "JPEG", b"RIFF": "WebP", b"GIF8": "GIF", b"BM": "BMP"} | dict.fromkeys(
    (b"II*\0", b"MM\0*"), "TIFF"
)


class LabelMap(NamedTuple):
    """A map of integers, and the name of its file for findings."""

    name: str
    values: np.ndarray  # `uint8` or `uint16 [H, W]`


def map_size(path: Path) -> tuple[int, int]:
    """Return the width and height in the header of a map.

    Raises:
        Reject: The file is missing, unreadable, or not a PNG.
    """
    return size_in(_read(path, 24), path.name)


def read_labels(path: Path, size: tuple[int, int], channels: int = 1) -> np.ndarray:
    """Read a map file; see `labels_in`."""
    return labels_in(_read(path), path.name, size, channels)


def _read(path: Path, most: int = -1) -> bytes:
    """Return the first `most` bytes of a map."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except (FileNotFoundError, NotADirectoryError):
        raise Reject(8, f"{path.name} is missing") from None
    except OSError as error:
        raise Reject(8, f"{path.name} is unreadable ({error.strerror})") from error


def size_in(png: bytes, name: str) -> tuple[int, int]:
    """Return the width and height in the header of a map, given at least its first 24 bytes.

    Raises:
        Reject: It is not a PNG. A JPEG or a lossy WebP has other values than those that were drawn.
    """
    if size := png_size(png):
        return size
    kinds = (kind for start, kind in _KINDS.items() if png.startswith(start))
    if kind := next(kinds, None):
        raise Reject(8, f"{name} is a {kind}, not a PNG; draw the map again and save it as PNG")
    raise Reject(8, f"{name} is unreadable, because it is not a PNG")


def labels_in(png: bytes, name: str, size: tuple[int, int], channels: int = 1) -> np.ndarray:
    """Return the integers of a map: the samples of the PNG, whatever their number of bits.

    The integers of a palette picture are its indices. An opaque alpha channel is ignored, and three
    equal channels are read as one.

    Args:
        png: The bytes of the file.
        name: The name of the file in findings.
        size: The width and height of the image that the map belongs to.
        channels: 1 or 3.

    Returns:
        `uint8` or `uint16 [H, W]` for one channel, `uint8 [H, W, 3]` for three.

    Raises:
        Reject: The map is unreadable, has another size than the image, or does not hold integers.
            The size is checked before anything is decoded.
    """
    width, height = size
    found = size_in(png, name)
    if found != size:
        raise Reject(9, f"{name} is {found[0]}x{found[1]}, the image {width}x{height}")
    try:
        values, has_alpha = _samples_of(png)
    except ValueError as error:
        raise Reject(8, f"{name} is unreadable ({error})") from error
    if has_alpha:
        if (values[..., -1] != np.iinfo(values.dtype).max).any():
            raise Reject(8, f"{name} has transparent pixels; save it without an alpha channel")
        values = values[..., :-1]
    if channels == 1 and (values.shape[-1] == 1 or (values == values[..., :1]).all()):
        values = values[..., 0]
    shape = (height, width) if channels == 1 else (height, width, channels)
    if values.shape != shape or (channels == 3 and values.dtype != np.uint8):
        wanted = "class or object ids" if channels == 1 else "RGB of 8 bits"
        raise Reject(8, f"{name} has {_describe(values)}, not {wanted}")
    return values


def _samples_of(png: bytes) -> tuple[np.ndarray, bool]:
    """Return the samples of a PNG as they are stored, and whether the last channel is alpha.

    Returns:
        `uint8` or `uint16 [H, W, C]`.

    Raises:
        ValueError: The PNG is damaged, for example truncated.
    """
    with opened(io.BytesIO(png)) as picture:
        values = np.asarray(picture)
    bits, color = png[24], png[25]
    if color == _GRAY and bits < 8:  # PIL scales 2 and 4 bits to the range of 8
        values = values.astype(np.uint8) // (255 // (2**bits - 1) if bits > 1 else 1)
    if color in (_RGB, _GRAY_ALPHA, _RGB_ALPHA) and bits == 16:  # PIL keeps 8 of the 16 bits
        decoded = decode_with_opencv(png, cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.ndim != 3:
            raise ValueError("it does not decode")
        values = np.concatenate([decoded[..., 2::-1], decoded[..., 3:]], axis=-1)
    return values.reshape(*values.shape[:2], -1), color in (_GRAY_ALPHA, _RGB_ALPHA)


def _describe(values: np.ndarray) -> str:
    return f"{values.shape[-1] if values.ndim > 2 else 1} channels of {values.dtype}"


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
