"""Mean intersection over union and pixel accuracy from one confusion matrix."""

from typing import Any

import numpy as np


class SemanticScores:
    """Confusion matrix [truth, prediction] in pixels; those of several ranks add up by `merge`."""

    def __init__(self, num_classes: int):
        self.confusion = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one image: integer maps [H, W] of classes; truth is `num_classes` where ignored.

        Raises ValueError for maps of unequal size and for values that are no class.
        """
        classes = len(self.confusion)
        if prediction.shape != truth.shape:
            raise ValueError(f"prediction is {prediction.shape}, truth is {truth.shape}")
        for side, values, top in (
            ("prediction", prediction, classes - 1),
            ("truth", truth, classes),
        ):
            if values.min() < 0 or values.max() > top:
                raise ValueError(f"{side}: {values.min()}..{values.max()} is not within 0..{top}")
        pairs = truth.astype(np.int64) * classes + prediction
        counts = np.bincount(pairs.ravel(), minlength=(classes + 1) * classes)
        self.confusion += counts.reshape(-1, classes)[:-1]

    def merge(self, other: "SemanticScores") -> None:
        """Add the pixels of another rank."""
        assert self.confusion.shape == other.confusion.shape
        self.confusion += other.confusion

    def result(self) -> dict[str, Any]:
        """mIoU over the classes in truth, pixel accuracy, and IoU of each class, in percent.

        NaN where there is no truth: a class that is only predicted has no IoU of its own, but its
        pixels count against the classes they were taken from.
        """
        hits = self.confusion.diagonal()
        truth, predicted = self.confusion.sum(1), self.confusion.sum(0)
        present = truth > 0
        iou = np.full(len(hits), np.nan)
        np.divide(100 * hits, truth + predicted - hits, out=iou, where=present)
        nothing = float("nan")
        return {
            "mIoU": float(iou[present].mean()) if present.any() else nothing,
            "pixel_accuracy": 100 * float(hits.sum() / truth.sum()) if present.any() else nothing,
            "classes": iou.tolist(),
        }
