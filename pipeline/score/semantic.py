"""IoU, accuracy, and Boundary IoU of classes from confusion matrices in pixels."""

from typing import Any, NamedTuple

import numpy as np

from pipeline.score.pairs import histogram


class ClassPixels(NamedTuple):
    """The pixels of the classes that occur in one image, `int32 [C]` each.

    Attributes:
        category: The class.
        hit: The pixels whose true and predicted class it is.
        truth: The pixels whose true class it is.
        predicted: The pixels that are predicted as it and are not ignored.
    """

    category: np.ndarray
    hit: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


class SemanticScores:
    """The confusion matrix `[truth, prediction]` in pixels; `merge` adds that of another rank."""

    def __init__(self, num_classes: int):
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.edges = np.zeros((3, num_classes), np.int64)  # boundary pixels: hit, true, predicted
        self._images: list[tuple[str, ClassPixels]] = []

    def update(
        self,
        prediction: np.ndarray,
        truth: np.ndarray,
        image: str = "",
        boundaries: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Count one image.

        Args:
            prediction: Integer map `[H, W]` of classes.
            truth: Integer map `[H, W]` of classes, and `num_classes` for ignored pixels.
            image: The name of the image.
            boundaries: `bool [H, W]`, the boundary pixels of the prediction and of the truth.

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
        counts = histogram(truth, prediction, classes + 1, classes)[:-1]
        self.confusion += counts
        pixels = np.stack([counts.diagonal(), counts.sum(1), counts.sum(0)]).astype(np.int32)
        occurring = np.flatnonzero(pixels.any(0)).astype(np.int32)
        self._images.append((image, ClassPixels(occurring, *pixels[:, occurring])))
        if boundaries is not None:
            of_prediction, of_truth = boundaries
            rows = np.where(of_truth | (truth == classes), truth, classes + 1)
            columns = np.where(of_prediction, prediction, classes)
            edges = histogram(rows, columns, classes + 2, classes + 1)
            self.edges[0] += edges[:classes, :classes].diagonal()
            self.edges[1] += edges[:classes].sum(1)
            self.edges[2] += edges.sum(0)[:classes] - edges[classes, :classes]

    def merge(self, other: "SemanticScores") -> None:
        """Add the pixels of another rank."""
        assert self.confusion.shape == other.confusion.shape
        self.confusion += other.confusion
        self.edges += other.edges
        self._images += other._images

    @property
    def images(self) -> list[tuple[str, ClassPixels]]:
        """The names and the pixels of all images, in the order of names."""
        return sorted(self._images, key=lambda image: image[0])

    def result(self) -> dict[str, Any]:
        """Return scores over all classes, and those of each class in `classes`, in percent.

        `mIoU` and `mean_accuracy` are means over the classes in the truth, `frequency_IoU` weights
        IoU by the true pixels, and `boundary_IoU` is the mean IoU of the boundary pixels. A class
        that is only predicted has the IoU NaN, but its pixels lower the IoU of the classes that
        they belong to.
        """
        hits = self.confusion.diagonal()
        truth, predicted = self.confusion.sum(1), self.confusion.sum(0)
        present = truth > 0
        rows = {
            "IoU": _percent(hits, truth + predicted - hits, present),
            "accuracy": _percent(hits, truth, present),
            "boundary_IoU": _percent(
                self.edges[0], self.edges[1] + self.edges[2] - self.edges[0], self.edges[1] > 0
            ),
        }
        share = truth[present] / max(1, truth.sum())
        undefined = float("nan")
        return {
            "mIoU": _mean(rows["IoU"]),
            "pixel_accuracy": 100 * float(hits.sum() / truth.sum()) if present.any() else undefined,
            "mean_accuracy": _mean(rows["accuracy"]),
            "frequency_IoU": float(share @ rows["IoU"][present]) if present.any() else undefined,
            "boundary_IoU": _mean(rows["boundary_IoU"]),
            "classes": [
                {name: values[c].item() for name, values in rows.items()} for c in range(len(hits))
            ],
        }


def _percent(part: np.ndarray, whole: np.ndarray, present: np.ndarray) -> np.ndarray:
    values = np.full(len(part), np.nan)
    np.divide(100 * part, whole, out=values, where=present)
    return values


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
