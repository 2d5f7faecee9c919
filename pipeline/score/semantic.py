"""Mean intersection over union and pixel accuracy from one confusion matrix."""

from typing import Any

import numpy as np


class SemanticScores:
    """The confusion matrix `[truth, prediction]` in pixels; `merge` adds that of another rank."""

    def __init__(self, num_classes: int):
        self.confusion = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one image.

        Args:
            prediction: Integer map `[H, W]` of classes.
            truth: Integer map `[H, W]` of classes, and `num_classes` for ignored pixels.

        Raises:
            ValueError: The maps differ in size, or a value is not a class.
        """
        classes = len(self.confusion)
        if prediction.shape != truth.shape:
            raise ValueError(
                f"the prediction has the shape {prediction.shape}, but the truth has {truth.shape}"
            )
        for side, values, top in (
            ("prediction", prediction, classes - 1),
            ("truth", truth, classes),
        ):
            if values.min() < 0 or values.max() > top:
                raise ValueError(
                    f"{side}: the values {values.min()}..{values.max()} are not within 0..{top}"
                )
        pairs = truth.astype(np.int64) * classes + prediction
        counts = np.bincount(pairs.ravel(), minlength=(classes + 1) * classes)
        self.confusion += counts.reshape(-1, classes)[:-1]

    def merge(self, other: "SemanticScores") -> None:
        """Add the pixels of another rank."""
        assert self.confusion.shape == other.confusion.shape
        self.confusion += other.confusion

    def result(self) -> dict[str, Any]:
        """Return mIoU, pixel accuracy, and the IoU of each class in percent.

        mIoU is the mean over the classes in the truth. A class that is only predicted has the IoU
        NaN, but its pixels lower the IoU of the classes that they belong to.
        """
        hits = self.confusion.diagonal()
        truth, predicted = self.confusion.sum(1), self.confusion.sum(0)
        present = truth > 0
        iou = np.full(len(hits), np.nan)
        np.divide(100 * hits, truth + predicted - hits, out=iou, where=present)
        undefined = float("nan")
        return {
            "mIoU": float(iou[present].mean()) if present.any() else undefined,
            "pixel_accuracy": 100 * float(hits.sum() / truth.sum()) if present.any() else undefined,
            "classes": iou.tolist(),
        }
