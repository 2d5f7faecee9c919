"""Compare two evaluations of the same images with a paired bootstrap over the images."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.score.average_precision import by_class, interpolated
from pipeline.score.matching import Matches, unpack
from pipeline.score.pairs import Pairs
from pipeline.score.panoptic import Counts
from pipeline.score.record import Record
from pipeline.score.semantic import ClassPixels

RESAMPLES = {"panoptic": 2000, "instance": 200, "semantic": 2000}  # AP sorts, and is slower
INTERVAL = 95  # percent of the resamples

# Each function returns scores in percent `[B]` for weights `[B, N]`: how often each of N images
# is drawn in each of B resamples. `_scores_of` has the functions of each task.
Scores = Callable[[np.ndarray], dict[str, np.ndarray]]


def compare(one: Record, other: Record) -> list[dict[str, Any]]:
    """Return how much the scores of the second evaluation differ from those of the first.

    Each resample draws as many images as there are, with replacement, and the same ones for both.

    Returns:
        One dict per score with its `name`, the scores `one` and `other`, their `difference` (other
        minus one), the bounds `low` and `high` of its interval, and the number of `resamples`. A
        score that is undefined for one of the records is left out.
    """
    rows = []
    for task, count in RESAMPLES.items():
        pair = [_scores_of(record, task) for record in (one, other)]
        first, second = pair
        if first is None or second is None:
            continue
        images = len(one.images)
        drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), count)
        weights = np.concatenate([np.ones((1, images), int), drawn])  # the images themselves first
        before, after = first(weights), second(weights)
        for name in before:
            difference = after[name] - before[name]
            if np.isnan(difference[0]):
                continue
            tail = (100 - INTERVAL) / 2
            low, high = np.nanpercentile(difference[1:], [tail, 100 - tail])
            rows.append(
                {"name": name, "one": float(before[name][0]), "other": float(after[name][0])}
                | {"difference": float(difference[0]), "low": float(low), "high": float(high)}
                | {"resamples": count}
            )
    return rows


def _scores_of(record: Record, task: str) -> Scores | None:
    """Return the function from weights to scores; None if the record lacks the task."""
    if task == "panoptic" and record.panoptic is not None:
        return _of_segments(record.panoptic, record.things)
    if task == "instance" and record.instance is not None:
        return _of_detections(record.instance, len(record.things))
    if task == "semantic" and record.semantic is not None:
        return _of_pixels(record.semantic, len(record.things))
    return None


def _of_segments(images: list[Pairs], things: np.ndarray) -> Scores:
    counts = [Counts.of([image], len(things)) for image in images]
    columns = [np.stack(column).astype(float) for column in zip(*counts, strict=True)]  # [N, K]

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = Counts(*(weights @ column for column in columns)).by_class()
        of_groups = {"": things | True, "_th": things, "_st": ~things}
        return {
            name + suffix: _mean(values[name][:, group])
            for suffix, group in of_groups.items()
            for name in (("PQ",) if suffix else ("PQ", "SQ", "RQ"))
        }

    return scores


def _of_detections(images: list[Matches], classes: int) -> Scores:
    found = [
        (unpack(one.hit[0]), unpack(one.ignored[0]), one.image) for one in by_class(images, classes)
    ]
    true = np.zeros((len(images), classes))
    for n, image in enumerate(images):
        np.add.at(true[n], image.truth[~image.crowd], 1)

    def one_draw(weights: np.ndarray) -> np.ndarray:
        """Return the AP at each threshold, averaged over the classes that occur, `[T]`."""
        positive = weights @ true
        values = [
            interpolated(hit, ignored, positive[c], weights[image])
            for c, (hit, ignored, image) in enumerate(found)
            if positive[c]
        ]
        return 100 * np.mean(values, 0) if values else np.full(10, np.nan)

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = np.stack([one_draw(row) for row in weights])  # [B, T]
        return {"AP": values.mean(1), "AP50": values[:, 0], "AP75": values[:, 5]}

    return scores


def _of_pixels(images: list[ClassPixels], classes: int) -> Scores:
    columns = np.zeros((3, len(images), classes))
    for n, image in enumerate(images):
        columns[:, n, image.category] = image.hit, image.truth, image.predicted

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        hit, truth, predicted = (weights @ column for column in columns)
        with np.errstate(invalid="ignore"):
            iou = np.where(truth > 0, 100 * hit / (truth + predicted - hit), np.nan)
            accuracy = 100 * hit.sum(1) / truth.sum(1)
        return {"mIoU": _mean(iou), "pixel_accuracy": accuracy}

    return scores


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row without its NaN; NaN for a row that has nothing else."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(1) / known.sum(1)
