"""Panoptic quality (Kirillov et al., Panoptic Segmentation, 2019), counted as panopticapi does."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from pipeline.score.pairs import BoundaryPairs, Pairs, pairs
from shards.format.schema import Segment


class Counts(NamedTuple):
    """The sum of the IoU of matches, and the numbers of each outcome, per class: `[K]`."""

    iou: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    @classmethod
    def of(cls, images: Iterable[Pairs], classes: int) -> Self:
        """Count images, in their order."""
        iou = np.zeros(classes)
        tp, fp, fn = (np.zeros(classes, np.int64) for _ in range(3))
        for image in images:
            t, p = image.hits.nonzero()
            np.add.at(iou, image.truth[t], image.iou[t, p])
            np.add.at(tp, image.truth[t], 1)
            np.add.at(fn, image.truth[image.missed], 1)
            np.add.at(fp, image.predicted[image.invented], 1)
        return cls(iou, tp, fp, fn)

    @property
    def occurs(self) -> np.ndarray:
        """Which classes occur in the truth or in the predictions, `bool [K]`."""
        return self.tp + self.fp + self.fn > 0

    def by_class(self) -> dict[str, np.ndarray]:
        """Return PQ, SQ, and RQ of each class in percent; NaN for a class that does not occur."""
        with np.errstate(invalid="ignore"):
            rq = self.tp / (self.tp + self.fp / 2 + self.fn / 2)
            sq = np.where(self.occurs, self.iou / np.maximum(self.tp, 1), np.nan)
        return {"PQ": 100 * sq * rq, "SQ": 100 * sq, "RQ": 100 * rq}

    def scores(self, things: np.ndarray) -> dict[str, float]:
        """Return PQ, SQ, and RQ in percent over all classes, things (_th), and stuff (_st).

        The averages are over the classes that occur; they are NaN if no class occurs.
        """
        groups = {"": self.occurs, "_th": self.occurs & things, "_st": self.occurs & ~things}
        return {
            name + suffix: float(values[group].mean()) if group.any() else float("nan")
            for suffix, group in groups.items()
            for name, values in self.by_class().items()
        }


class PanopticQuality:
    """The counters of images; `merge` adds those of another rank.

    A true positive is a predicted and a true segment of the same class whose IoU, computed without
    void pixels, exceeds 0.5. A prediction that lies mostly on void, or on a crowd of its class, is
    not a false positive. A crowd is never a false negative.
    """

    def __init__(self, things: Sequence[bool]):
        """Start with no images; `things[c]` is true if class c is a thing."""
        self.things = np.array(things, bool)
        self._images: list[tuple[str, Pairs]] = []

    def update(
        self,
        prediction: np.ndarray,
        predicted_classes: Mapping[int, int],
        truth: np.ndarray,
        segments: Mapping[int, Segment],
        image: str = "",
        scores: Collection[float] | None = None,
        boundaries: tuple[np.ndarray, np.ndarray] | None = None,
        box: np.ndarray | None = None,
    ) -> None:
        """Count one image.

        Args:
            prediction: Integer map `[H, W]` of segment ids, 0 = none.
            predicted_classes: The class of each predicted segment, by its id in the map.
            truth: Integer map `[H, W]` of segment ids, 0 = void.
            segments: The true segments by their ids in the map.
            image: The name of the image. Sums are in the order of names, so that they do not depend
                on the ranks.
            scores: The score of each predicted segment.
            boundaries: `bool [H, W]`, the boundary pixels of the prediction and of the truth.
            box: `int32 [P, 4]`, the box of each predicted segment, to be recorded.

        Raises:
            ValueError: `pairs` refuses the maps, or a category is not one of the classes.
        """
        self._check("prediction", predicted_classes.values())
        self._check("truth", [segment.category for segment in segments.values()])
        counted = pairs(prediction, predicted_classes, truth, segments, scores, boundaries)
        if box is not None:
            counted = counted._replace(box=box)
        self._images.append((image, counted))

    def merge(self, other: "PanopticQuality") -> None:
        """Add the images of another rank."""
        assert np.array_equal(self.things, other.things)
        self._images += other._images

    @property
    def images(self) -> list[tuple[str, Pairs]]:
        """The names and the counters of all images, in the order of names."""
        return sorted(self._images, key=lambda image: image[0])

    def counts(self) -> Counts:
        """Return the counts of all images."""
        return Counts.of((image for _, image in self.images), len(self.things))

    def boundary_counts(self) -> Counts:
        """Return the counts of the images whose boundaries were given, with boundary IoU."""
        bounded = (BoundaryPairs(*image) for _, image in self.images if image.edges.size)
        return Counts.of(bounded, len(self.things))

    def result(self) -> dict[str, Any]:
        """Return the scores as `Counts.scores` does, and a row per class in `classes`.

        If boundaries were given, there are the same scores with boundary IoU, as `boundary_PQ`.
        """
        counts = self.counts()
        columns = counts.by_class() | {"tp": counts.tp, "fp": counts.fp, "fn": counts.fn}
        scores = counts.scores(self.things)
        if any(image.edges.size for _, image in self._images):
            bounded = self.boundary_counts()
            columns["boundary_PQ"] = bounded.by_class()["PQ"]
            found = bounded.scores(self.things)
            scores |= {f"boundary_{name}": found[name] for name in ("PQ", "SQ", "RQ")}
        rows = [
            {name: values[c].item() for name, values in columns.items()}
            for c in range(len(self.things))
        ]
        return scores | {"classes": rows}

    def _check(self, side: str, classes: Collection[int]) -> None:
        for category in classes:
            if not 0 <= category < len(self.things):
                raise ValueError(
                    f"{side}: category {category} is not one of the {len(self.things)} classes"
                )
