"""The tiles of an image: equal windows that overlap their neighbors."""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from shards.errors import UsageError

LEAST_SIDE = 32  # pixels of a tile
OVERLAP = 8  # by default, tiles overlap by their side divided by this
LARGEST_OVERLAP = 3  # as OVERLAP; up to it, no pixel lies in three tiles of a row


@dataclass(frozen=True)
class Tiling:
    """Sizes of tiles, in pixels of the image.

    Attributes:
        side: The longest side of a tile.
        overlap: The least number of rows or columns that two neighbors share.
    """

    side: int
    overlap: int

    @classmethod
    def of(cls, side: int | None, overlap: int | None) -> Self | None:
        """Return the tiling of a command line; None if it gives no side.

        Raises:
            UsageError: The sizes do not fit each other.
        """
        if side is None:
            if overlap is not None:
                fix = "give --tile too, or leave it out"
                raise UsageError("belongs to --tile", where="--tile-overlap", fix=fix)
            return None
        if side < LEAST_SIDE:
            fix = f"give at least {LEAST_SIDE} pixels"
            raise UsageError("the tiles are too small", where=f"--tile {side}", fix=fix)
        most = side // LARGEST_OVERLAP
        if overlap is not None and not 1 <= overlap <= most:
            raise UsageError(
                f"the overlap of tiles of {side} pixels must be 1 to {most} pixels",
                where=f"--tile-overlap {overlap}",
                fix=f"leave it out for {side // OVERLAP}",
            )
        return cls(side, overlap or side // OVERLAP)

    def tiles(self, height: int, width: int) -> list["Tile"]:
        """Return the tiles of an image, row by row."""
        columns = self._spans(width)
        return [Tile(row, column) for row in self._spans(height) for column in columns]

    def _spans(self, length: int) -> list["Span"]:
        """Divide a side into the fewest spans, which are as short as the overlap allows."""
        if length <= self.side:
            return [Span(0, length, 0, 0)]
        count = math.ceil((length - self.overlap) / (self.side - self.overlap))
        side = math.ceil((length + (count - 1) * self.overlap) / count)
        starts = [n * (length - side) // (count - 1) for n in range(count)]
        shared = [0, *(a + side - b for a, b in itertools.pairwise(starts)), 0]
        return [Span(s, s + side, *shared[n : n + 2]) for n, s in enumerate(starts)]


class Span(NamedTuple):
    """The rows or the columns of a tile.

    Attributes:
        start: The first one.
        stop: The one after the last.
        before: The number that the previous tile shares.
        after: The number that the next tile shares.
    """

    start: int
    stop: int
    before: int
    after: int

    @property
    def core(self) -> slice:
        """The part up to the middle of each overlap, relative to the start."""
        return slice(self.before // 2, self.stop - self.start - (self.after - self.after // 2))

    def weights(self) -> np.ndarray:
        """Return the window by which scores are blended, `float32 [n]`.

        It is 1 except in the overlaps, where it falls linearly to the edge, so that the windows of
        all tiles add up to 1 at every pixel.
        """
        weights = np.ones(self.stop - self.start, np.float32)
        rise, fall = ((np.arange(n, dtype=np.float32) + 0.5) / max(n, 1) for n in self[2:])
        weights[: self.before] = rise
        weights[len(weights) - self.after :] = fall[::-1]
        return weights


class Tile(NamedTuple):
    """A window of an image."""

    rows: Span
    columns: Span

    @property
    def index(self) -> tuple[slice, slice]:
        """The window as an index into the image."""
        rows, columns = self
        return slice(rows.start, rows.stop), slice(columns.start, columns.stop)

    @property
    def core(self) -> tuple[slice, slice]:
        """The pixels that are nowhere farther from a seam, as an index into the window."""
        return self.rows.core, self.columns.core

    def overlap(self, other: Self) -> tuple[slice, slice] | None:
        """Return the window that two tiles share, as an index into the image."""
        (top, bottom), (left, right) = (
            (max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(self, other, strict=True)
        )
        if top >= bottom or left >= right:
            return None
        return slice(top, bottom), slice(left, right)
