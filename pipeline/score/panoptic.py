"""Panoptic quality (Kirillov et al., Panoptic Segmentation, 2019), counted as panopticapi does."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from shards.format.schema import Segment


class PanopticQuality:
    """Counters of panoptic quality per class; `merge` adds those of another rank.

    A true positive is a predicted and a true segment of the same class whose IoU, computed without
    void pixels, exceeds 0.5. A prediction that lies mostly on void, or on a crowd of its class, is
    not a false positive. A crowd is never a false negative.
    """

    def __init__(self, things: Sequence[bool]):
        """Start with no images; `things[c]` is true if class c is a thing."""
        self.things = np.array(things, bool)
        self.iou = np.zeros(len(things))
        self.tp = np.zeros(len(things), np.int64)
        self.fp = np.zeros(len(things), np.int64)
        self.fn = np.zeros(len(things), np.int64)

    def update(
        self,
        prediction: np.ndarray,
        predicted_classes: Mapping[int, int],
        truth: np.ndarray,
        segments: Mapping[int, Segment],
    ) -> None:
        """Count one image.

        Args:
            prediction: Integer map `[H, W]` of segment ids, 0 = none.
            predicted_classes: The class of each predicted segment, by its id in the map.
            truth: Integer map `[H, W]` of segment ids, 0 = void.
            segments: The true segments by their ids in the map. The areas that the publisher gives
                for them are used, even if the map has another number of pixels.

        Raises:
            ValueError: The maps have different shapes, a map holds an id that is not listed, an id
                is not positive, a listed prediction has no pixel, or a category is not one of the
                classes.
        """
        if prediction.shape != truth.shape:
            raise ValueError(
                f"the prediction has the shape {prediction.shape}, but the truth has {truth.shape}"
            )
        predicted = self._checked("prediction", predicted_classes.values())
        category = self._checked("truth", [s.category for s in segments.values()])
        crowd = np.array([bool(s.iscrowd) for s in segments.values()], bool)
        truth_area = np.array([s.area for s in segments.values()], float)

        # A pixel's pair (true segment, predicted segment) is encoded as one integer, so that one
        # bincount over the image counts the shared pixels of all pairs. Row and column 0 are void.
        height, width = len(category) + 1, len(predicted) + 1
        codes = _ranks("truth", truth, segments).astype(np.int32) * width
        codes += _ranks("prediction", prediction, predicted_classes).astype(np.int32, copy=False)
        shared = np.bincount(codes.ravel(), minlength=height * width).reshape(height, width)
        area = shared.sum(0)[1:]
        if not area.all():
            empty = list(predicted_classes)[int(np.argmin(area))]
            raise ValueError(f"prediction segment {empty} has no pixel in its map")

        common, void = shared[1:, 1:], shared[0, 1:]
        union = truth_area[:, None] + area - common - void
        same = category[:, None] == predicted
        hits = same & ~crowd[:, None] & (2 * common > union)  # IoU > 0.5
        t, p = hits.nonzero()
        np.add.at(self.iou, category[t], common[t, p] / union[t, p])
        np.add.at(self.tp, category[t], 1)
        np.add.at(self.fn, category[~crowd & ~hits.any(1)], 1)
        last_crowd = {int(category[n]): n for n in np.flatnonzero(crowd)}
        ignored = void.copy()
        for n in last_crowd.values():  # panopticapi counts only the last crowd of a class
            ignored += common[n] * same[n]
        np.add.at(self.fp, predicted[~hits.any(0) & (2 * ignored <= area)], 1)

    def merge(self, other: "PanopticQuality") -> None:
        """Add the counters of another rank."""
        assert np.array_equal(self.things, other.things)
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn

    def result(self) -> dict[str, Any]:
        """Return PQ, SQ, and RQ in percent over all classes, things (_th), and stuff (_st).

        The averages are over the classes that occur in the truth or the prediction; they are NaN
        if no class occurs. `classes` has a row per class; the scores of a class that does not occur
        are NaN.
        """
        occurs = self.tp + self.fp + self.fn > 0
        with np.errstate(invalid="ignore"):
            rq = self.tp / (self.tp + self.fp / 2 + self.fn / 2)
            sq = np.where(occurs, self.iou / np.maximum(self.tp, 1), np.nan)
        scores = {"PQ": 100 * sq * rq, "SQ": 100 * sq, "RQ": 100 * rq}
        groups = {"": occurs, "_th": occurs & self.things, "_st": occurs & ~self.things}
        out: dict[str, Any] = {
            name + suffix: float(values[group].mean()) if group.any() else float("nan")
            for suffix, group in groups.items()
            for name, values in scores.items()
        }
        counts = {"tp": self.tp, "fp": self.fp, "fn": self.fn}
        out["classes"] = [
            {name: values[c].item() for name, values in (scores | counts).items()}
            for c in range(len(occurs))
        ]
        return out

    def _checked(self, side: str, classes: Collection[int]) -> np.ndarray:
        categories = np.array(list(classes), np.int64)
        outside = (categories < 0) | (categories >= len(self.things))
        if outside.any():
            raise ValueError(
                f"{side}: category {categories[outside][0]} is not one of the "
                f"{len(self.things)} classes"
            )
        return categories


def _ranks(side: str, ids: np.ndarray, listed: Collection[int]) -> np.ndarray:
    """Return the map `[H, W]` with n in place of the n-th id of `listed`; void stays 0."""
    listed = [int(id) for id in listed]
    count, top = len(listed), int(ids.max())
    if listed == list(range(1, count + 1)) and ids.min() >= 0 and top <= count:
        return ids
    if ids.min() < 0 or min(listed, default=1) < 1:
        raise ValueError(f"{side}: segment ids must be positive: {sorted(listed)}")
    table = np.zeros(max(top, *listed) + 1, np.int32)
    table[listed] = np.arange(1, count + 1)
    ranks = table.take(ids)
    if (unlisted := (ranks == 0) & (ids != 0)).any():
        raise ValueError(f"{side}: id {ids[unlisted][0]} of the map is not one of the segments")
    return ranks
