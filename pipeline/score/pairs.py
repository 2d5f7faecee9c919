"""The pixels that each true and each predicted segment of one image share.

PQ, its ladder, and its breakdowns are functions of these counts, so that the maps are read once.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np

from shards.format.schema import Segment

# OpenCV's histogram counts a pixel in 0.7 ns, which is a third of the time of numpy's bincount. It
# needs codes of 16 bits, and its result has float32, which holds numbers up to 2^24 exactly.
_CODES, _PIXELS = 1 << 16, 1 << 24


class Columns(NamedTuple):
    """The arrays of `Pairs`; T is the number of true segments, and P that of predicted ones.

    Attributes:
        truth: `int32 [T]`, the class of each true segment.
        crowd: `bool [T]`.
        area: `float64 [T]`, the publisher's area in pixels, which need not be the number of pixels.
        predicted: `int32 [P]`, the class of each predicted segment.
        scores: `float32 [P]`, its score; NaN if it has none.
        box: `int32 [P, 4]`, its left, top, width, and height; 0 if they are not known.
        shared: `int32 [T + 1, P + 1]`, the shared pixels. Row 0 is the truth's void, and column 0
            the pixels without a prediction.
        edges: `int32 [T + 2, P + 2]`, the shared pixels of the boundaries, with the inner pixels of
            all segments in the last row and column; `[0, 0]` if they were not counted.
    """

    truth: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    box: np.ndarray
    shared: np.ndarray
    edges: np.ndarray


class Pairs(Columns):
    """The segments of one image, and what follows from the pixels that they share.

    A prediction hits a true segment of its class, which is not a crowd, if their IoU without the
    void pixels exceeds 0.5. A prediction that hits nothing is ignored if more than half of it lies
    on void and on the last crowd of its class, as panopticapi counts.
    """

    @cached_property
    def common(self) -> np.ndarray:
        """The shared pixels of each true and each predicted segment, `[T, P]`."""
        return self.shared[1:, 1:]

    @cached_property
    def predicted_area(self) -> np.ndarray:
        """The number of pixels of each prediction, `[P]`."""
        return self.shared.sum(0)[1:]

    @cached_property
    def union(self) -> np.ndarray:
        """The union of each pair without the prediction's pixels on void, `float64 [T, P]`."""
        return self.area[:, None] + (self.predicted_area - self.shared[0, 1:]) - self.common

    @cached_property
    def iou(self) -> np.ndarray:
        """The IoU of each pair without void, of whatever classes, `float64 [T, P]`."""
        return self.common / np.maximum(self.union, 1)

    @cached_property
    def covers(self) -> np.ndarray:
        """Whether the IoU of a pair exceeds 0.5 and the truth is not a crowd, `bool [T, P]`."""
        return (2 * self.common > self.union) & ~self.crowd[:, None]

    @cached_property
    def same(self) -> np.ndarray:
        """Whether the classes of a pair are equal, `bool [T, P]`."""
        return np.equal.outer(self.truth, self.predicted)

    @cached_property
    def hits(self) -> np.ndarray:
        """Which pairs are true positives, `bool [T, P]`."""
        return self.covers & self.same

    @cached_property
    def found(self) -> np.ndarray:
        """Which true segments are hit, `bool [T]`."""
        return np.asarray(self.hits.any(1))

    @cached_property
    def missed(self) -> np.ndarray:
        """Which true segments are false negatives, `bool [T]`."""
        return ~self.crowd & ~self.found

    @cached_property
    def ignored(self) -> np.ndarray:
        """Which predictions are neither true nor false, `bool [P]`."""
        ignored = self.shared[0, 1:].copy()
        last_crowd = {int(self.truth[n]): n for n in np.flatnonzero(self.crowd)}
        for n in last_crowd.values():  # panopticapi counts only the last crowd of a class
            ignored += self.common[n] * self.same[n]
        return (2 * ignored > self.predicted_area) & ~self.hits.any(0)

    @cached_property
    def invented(self) -> np.ndarray:
        """Which predictions are false positives, `bool [P]`."""
        return ~self.hits.any(0) & ~self.ignored

    def with_predictions(
        self, predicted: np.ndarray, scores: np.ndarray, shared: np.ndarray
    ) -> "Pairs":
        """Return the same truth with other predictions; those without a pixel are dropped."""
        kept = shared.sum(0)[1:] > 0
        columns = np.concatenate([[True], kept])
        return self._replace(
            predicted=predicted[kept],
            scores=scores[kept],
            shared=shared[:, columns],
            box=np.zeros((kept.sum(), 4), np.int32),
            edges=np.zeros((0, 0), np.int32),
        )


class BoundaryPairs(Pairs):
    """Pairs whose IoU is the smaller of those of the masks and of their boundaries."""

    @cached_property
    def iou(self) -> np.ndarray:
        """The smaller IoU of each pair without void, `float64 [T, P]`."""
        common = self.edges[1:-1, 1:-1]
        truth, predicted = self.edges.sum(1)[1:-1], self.edges.sum(0)[1:-1]
        union = truth[:, None] + (predicted - self.edges[0, 1:-1]) - common
        return np.minimum(super().iou, common / np.maximum(union, 1))

    @cached_property
    def covers(self) -> np.ndarray:
        """Whether the smaller IoU exceeds 0.5 and the truth is not a crowd, `bool [T, P]`."""
        return (self.iou > 0.5) & ~self.crowd[:, None]


def pairs(
    prediction: np.ndarray,
    predicted_classes: Mapping[int, int],
    truth: np.ndarray,
    segments: Mapping[int, Segment],
    scores: Collection[float] | None = None,
    boundaries: tuple[np.ndarray, np.ndarray] | None = None,
) -> Pairs:
    """Count the shared pixels of one image.

    Args:
        prediction: Integer map `[H, W]` of segment ids, 0 = none.
        predicted_classes: The class of each predicted segment, by its id in the map.
        truth: Integer map `[H, W]` of segment ids, 0 = void.
        segments: The true segments by their ids in the map. The areas that the publisher gives for
            them are used, even if the map has another number of pixels.
        scores: The score of each predicted segment; None if they have none.
        boundaries: `bool [H, W]`, the boundary pixels of the prediction and of the truth.

    Raises:
        ValueError: The maps have different shapes, a map holds an id that is not listed, an id is
            not positive, or a listed prediction has no pixel.
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"the prediction has the shape {prediction.shape}, but the truth has {truth.shape}"
        )
    height, width = len(segments) + 1, len(predicted_classes) + 1
    rows = _ranks("truth", truth, segments)
    columns = _ranks("prediction", prediction, predicted_classes)
    shared = histogram(rows, columns, height, width)
    if not (area := shared.sum(0)[1:]).all():
        empty = list(predicted_classes)[int(np.argmin(area))]
        raise ValueError(f"prediction segment {empty} has no pixel in its map")
    edges = np.zeros((0, 0), np.int32)
    if boundaries is not None:
        of_prediction, of_truth = boundaries
        rows = np.where(of_truth | (rows == 0), rows, height)
        columns = np.where(of_prediction | (columns == 0), columns, width)
        edges = histogram(rows, columns, height + 1, width + 1)
    given = segments.values()
    return Pairs(
        truth=np.array([segment.category for segment in given], np.int32),
        crowd=np.array([bool(segment.iscrowd) for segment in given], bool),
        area=np.array([segment.area for segment in given], float),
        predicted=np.array(list(predicted_classes.values()), np.int32),
        scores=np.full(width - 1, np.nan, np.float32)
        if scores is None
        else np.array(scores, np.float32),
        box=np.zeros((width - 1, 4), np.int32),
        shared=shared,
        edges=edges,
    )


def histogram(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> np.ndarray:
    """Count the pixels of each pair of values of two maps.

    Args:
        rows: Integer map of values below `height`.
        columns: Integer map of the same shape of values below `width`.
        height: The number of values of the first map.
        width: That of the second one.

    Returns:
        `int32 [height, width]`.
    """
    size = height * width
    if size > _CODES or rows.ndim != 2 or not rows.size:
        codes = rows.astype(np.int64) * width + columns
        return np.bincount(codes.ravel(), minlength=size).reshape(height, width).astype(np.int32)
    codes = rows.astype(np.uint16)
    codes *= np.uint16(width)
    codes += columns.astype(np.uint16)
    counts = np.zeros(size, np.int32)
    band = max(1, _PIXELS // codes.shape[1])
    for start in range(0, len(codes), band):
        part = cv2.calcHist([codes[start : start + band]], [0], None, [size], [0, size])
        counts += part.ravel().astype(np.int32)
    return counts.reshape(height, width)


def _ranks(side: str, ids: np.ndarray, listed: Collection[int]) -> np.ndarray:
    """Return the map `[H, W]` of the positions (from 1) of its ids in `listed`; void stays 0."""
    listed = [int(id) for id in listed]
    count, top, least = len(listed), int(ids.max()), int(ids.min())
    if listed == list(range(1, count + 1)) and least >= 0 and top <= count:
        return ids
    if least < 0 or min(listed, default=1) < 1:
        raise ValueError(f"{side}: segment ids must be positive: {sorted(listed)}")
    table = np.zeros(max(top, *listed) + 1, np.int32)
    table[listed] = np.arange(1, count + 1)
    ranks = table.take(ids)
    if (unlisted := (ranks == 0) & (ids != 0)).any():
        raise ValueError(f"{side}: id {ids[unlisted][0]} of the map is not one of the segments")
    return ranks
