"""PQ by size, crowding, and threshold, confusion between classes, and the reliability of scores.

Everything follows from the counters of one pass. Values are in percent, and NaN if undefined.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.score.pairs import Pairs
from pipeline.score.panoptic import Counts

SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}  # areas below, in pixels, as of COCO
CROWDING = {"1-4": 5, "5-9": 10, "10-19": 20, "20 or more": np.inf}  # true segments per image
SCORE_BINS = 10
THRESHOLDS = np.arange(50) / 50


def by_size(images: Sequence[Pairs], things: np.ndarray) -> list[dict[str, Any]]:
    """Return the scores of the segments of each size.

    True segments and their matches have the publisher's area, and false positives their own.
    """
    edges = list(SIZES.values())
    counts = [Counts.of((), len(things)) for _ in SIZES]
    for image in images:
        true, predicted = (np.searchsorted(edges, area, side="right")
                           for area in (image.area, image.predicted_area))  # fmt: skip
        t, p = image.hits.nonzero()
        iou = image.iou[t, p]
        for size, count in enumerate(counts):
            of_size = true[t] == size
            np.add.at(count.iou, image.truth[t][of_size], iou[of_size])
            np.add.at(count.tp, image.truth[t][of_size], 1)
            np.add.at(count.fn, image.truth[image.missed & (true == size)], 1)
            np.add.at(count.fp, image.predicted[image.invented & (predicted == size)], 1)
    return [_row(name, count, things) for name, count in zip(SIZES, counts, strict=True)]


def by_crowding(images: Sequence[Pairs], things: np.ndarray) -> list[dict[str, Any]]:
    """Return the scores of the images with so many true segments, crowds not counted."""
    edges = list(CROWDING.values())
    bins = [np.searchsorted(edges, (~image.crowd).sum(), side="right") for image in images]
    rows = []
    for number, name in enumerate(CROWDING):
        chosen = [image for image, bin in zip(images, bins, strict=True) if bin == number]
        counts = Counts.of(chosen, len(things))
        rows.append(_row(name, counts, things) | {"images": len(chosen)})
    return rows


def confusion(images: Sequence[Pairs], classes: int) -> np.ndarray:
    """Match segments by their masks (IoU > 0.5), whatever their classes, and count the classes.

    Returns:
        `int64 [K + 1, K + 1]`: the numbers of pairs by true class and predicted class. Column K
        counts true segments that no prediction covers, and row K predictions that cover no true
        segment and are not ignored.
    """
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for image in images:
        t, p = image.covers.nonzero()
        np.add.at(matrix, (image.truth[t], image.predicted[p]), 1)
        np.add.at(matrix[:, classes], image.truth[~image.crowd & ~image.covers.any(1)], 1)
        free = image.invented & ~image.covers.any(0)
        np.add.at(matrix[classes], image.predicted[free], 1)
    return matrix


def calibration(scores: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Compare scores with the share of predictions that are correct.

    Args:
        scores: `[N]`, from 0 to 1.
        correct: `bool [N]`.

    Returns:
        `ECE`, the mean difference between score and accuracy over SCORE_BINS bins of equal width,
        weighted by their numbers of predictions; and the `number`, mean `score`, and `accuracy` of
        each bin that is not empty, from the lowest scores on.
    """
    bins = np.clip((scores * SCORE_BINS).astype(int), 0, SCORE_BINS - 1)
    number = np.bincount(bins, minlength=SCORE_BINS)
    filled = number > 0
    mean, accuracy = (
        np.bincount(bins, values, SCORE_BINS)[filled] / number[filled]
        for values in (scores, correct)
    )
    gap = number[filled] * np.abs(mean - accuracy)
    return {
        "ECE": 100 * float(gap.sum() / len(scores)) if len(scores) else float("nan"),
        "number": number[filled].tolist(),
        "score": (100 * mean).round(2).tolist(),
        "accuracy": (100 * accuracy).round(2).tolist(),
    }


def thresholds(images: Sequence[Pairs], classes: int) -> dict[str, Any]:
    """Return PQ and F1 if predictions whose score is at most a threshold were removed.

    The pixels of removed predictions become void. F1 is that of all segments together.

    Returns:
        `threshold`, `PQ`, and `F1`, each a list; and `best_PQ` and `best_F1`, the least thresholds
        with the highest values, None if the value is undefined.
    """
    found, false, iou = (np.zeros((len(THRESHOLDS) + 1, classes)) for _ in range(3))
    true = np.zeros(classes)
    for image in images:
        passed = np.searchsorted(THRESHOLDS, np.nan_to_num(image.scores, nan=1.0), side="left")
        t, p = image.hits.nonzero()
        np.add.at(iou, (passed[p], image.truth[t]), image.iou[t, p])
        if len(t):
            highest = np.where(image.hits, passed, 0).max(1)[image.found]
            np.add.at(found, (highest, image.truth[image.found]), 1)
        wrong = image.invented
        np.add.at(false, (passed[wrong], image.predicted[wrong]), 1)
        np.add.at(true, image.truth[~image.crowd], 1)
    # Row i of the sums counts what passes threshold i, and so at least i + 1 of the thresholds.
    tp, fp, iou = (values[::-1].cumsum(0)[::-1][1:] for values in (found, false, iou))
    occurs = (true > 0) | (fp > 0)
    pq = iou / np.maximum((tp + fp + true) / 2, 0.5)
    with np.errstate(invalid="ignore"):
        quality = 100 * (pq * occurs).sum(1) / occurs.sum(1)
        f1 = 200 * tp.sum(1) / (tp.sum(1) + fp.sum(1) + true.sum())
    return {"threshold": THRESHOLDS.tolist()} | {
        key: value
        for name, values in (("PQ", quality), ("F1", f1))
        for key, value in ((name, values.tolist()), (f"best_{name}", _best(values)))
    }


def _best(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(THRESHOLDS[np.nanargmax(values)])


def _row(name: str, counts: Counts, things: np.ndarray) -> dict[str, Any]:
    scores = counts.scores(things)
    numbers = {key: int(getattr(counts, key).sum()) for key in ("tp", "fp", "fn")}
    return {"name": name} | {key: scores[key] for key in ("PQ", "SQ", "RQ")} | numbers
