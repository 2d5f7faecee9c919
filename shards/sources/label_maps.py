"""Truth as PNGs of integers: reading them, classes from labels, segments from ids."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from shards.doctor import Reject
from shards.schema import Segment, map_type


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """By PIL, which leaves palette indices as they are. Rejects what it cannot read."""
    try:
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError:
        raise Reject(8, f"{path.name} is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, Reject):
            raise
        raise Reject(8, f"{path.name} is unreadable ({type(error).__name__})") from error


def map_size(path: Path) -> tuple[int, int]:
    """Width and height of a map, from its header."""
    with _opened(path) as picture:
        return picture.size


def read_labels(path: Path, size: tuple[int, int], channels: int = 1) -> np.ndarray:
    """The integers of a map: u8 or u16 `[H, W]`, of a palette its indices; u8 `[H, W, 3]` for 3.

    `size` is the image's width and height; a map of another one is rejected before it is decoded.
    """
    width, height = size
    with _opened(path) as picture:
        if picture.size != size:
            found = "{}x{}".format(*picture.size)
            raise Reject(9, f"{path.name} is {found}, the image {width}x{height}")
        values, mode = np.asarray(picture), picture.mode
    shape = (height, width) if channels == 1 else (height, width, channels)
    if values.dtype not in (np.uint8, np.uint16) or values.shape != shape:
        raise Reject(8, f"{path.name} has the mode {mode}, not {channels} channel of integers")
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
    for step, unlabelled, fix in ((-1, (0,), "subtract"), (1, (255, 65535), "add")):
        if all(label in unlabelled or label + step in labels for label in present):
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
