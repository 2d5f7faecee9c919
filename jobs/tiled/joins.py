"""Which segments of different tiles are one."""

from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle

from jobs.tiled.grid import Tile
from jobs.tiled.runs import Runs, encode_window

AGREEMENT = 0.5  # intersection over union in the overlap, above which two segments are one


class Part(NamedTuple):
    """A segment as one tile shows it: its class, and its mask in the whole image."""

    category: int
    runs: Runs


class Joins:
    """Joins of segments of tiles that overlap.

    Two segments of one class are one if, inside the window that their tiles share, the intersection
    of their masks is more than AGREEMENT of their union. Pairs are joined in the order of their
    agreement, and never so that two segments of the same tile become one.

    Args:
        size: Height and width of the image.
    """

    def __init__(self, size: tuple[int, int]):
        self._size = size
        self._tile_of: dict[int, int] = {}
        self._tiles = 0
        self._recent: list[tuple[Tile, dict[int, Part]]] = []
        self._pairs: list[tuple[float, int, int]] = []

    def add(self, tile: Tile, parts: dict[int, Part]) -> None:
        """Compare the parts of a tile, by their numbers, with those of earlier tiles.

        Tiles come row by row.
        """
        self._tile_of |= dict.fromkeys(parts, self._tiles)
        self._tiles += 1
        reach = tile.rows.start
        self._recent = [pair for pair in self._recent if pair[0].rows.stop > reach]
        for other, earlier in self._recent:
            if window := tile.overlap(other):
                rows, columns = window
                inside = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
                frame = encode_window(inside, rows.start, columns.start, self._size)
                self._pairs += _agreements(earlier, parts, frame)
        self._recent.append((tile, parts))

    def groups(self) -> list[list[int]]:
        """Return the numbers of the parts of each segment, in the order of the first ones."""
        group = {number: [number] for number in self._tile_of}
        for _, first, second in sorted(self._pairs, key=lambda pair: (-pair[0], *pair[1:])):
            ours, theirs = group[first], group[second]
            tiles = {self._tile_of[number] for number in ours}
            if tiles.isdisjoint(self._tile_of[number] for number in theirs):
                ours += theirs
                group |= dict.fromkeys(theirs, ours)
        return [sorted(found) for number, found in group.items() if number == min(found)]


def _agreements(
    ours: dict[int, Part], theirs: dict[int, Part], frame: Runs
) -> list[tuple[float, int, int]]:
    """Return the agreement inside a frame, and the numbers, of each pair that may be one."""
    first, second = (_inside(parts, frame) for parts in (ours, theirs))
    if not (first and second):
        return []
    is_crowd = [0] * len(second)
    agreement = np.asarray(rle.iou(list(first.values()), list(second.values()), is_crowd))
    numbers, others = list(first), list(second)
    return [
        (float(agreement[i, j]), numbers[i], others[j])
        for i, j in np.argwhere(agreement > AGREEMENT).tolist()
        if ours[numbers[i]].category == theirs[others[j]].category
    ]


def _inside(parts: dict[int, Part], frame: Runs) -> dict[int, Runs]:
    """Return the masks of the parts that have pixels inside a frame, cut to it."""
    cut = {n: rle.merge([part.runs, frame], intersect=True) for n, part in parts.items()}
    return {number: runs for number, runs in cut.items() if rle.area(runs)}
