"""Why a score is as low as it is, from the record of one pass."""

from typing import Any

import numpy as np

from pipeline.score.breakdown import by_crowding, by_size, calibration, confusion, thresholds
from pipeline.score.ladder import ladder
from pipeline.score.matching import Matches
from pipeline.score.pairs import Pairs
from pipeline.score.record import Record
from pipeline.score.tide import tide


def analyze(record: Record) -> dict[str, Any]:
    """Return the reasons of each task that was scored; all values are JSON, or NaN."""
    reasons: dict[str, Any] = {}
    if record.panoptic is not None:
        reasons["panoptic"] = _of_segments(record.panoptic, record.things)
    if record.instance is not None:
        reasons["instance"] = _of_detections(record.instance, len(record.things))
    return reasons


def _of_segments(images: list[Pairs], things: np.ndarray) -> dict[str, Any]:
    classes = len(things)
    counted = [(image, ~image.ignored & ~np.isnan(image.scores)) for image in images]
    scores = np.concatenate([[], *(image.scores[kept] for image, kept in counted)])
    correct = np.concatenate([[], *(np.any(image.hits, 0)[kept] for image, kept in counted)])
    matrix = confusion(images, classes)
    cells = sorted(np.argwhere(matrix).tolist(), key=lambda cell: -matrix[*cell])
    return {
        "ladder": ladder(images, things),
        "sizes": by_size(images, things),
        "crowding": by_crowding(images, things),
        "confusion": [[t, p, int(matrix[t, p])] for t, p in cells],
        "calibration": calibration(scores, correct > 0),
        "thresholds": thresholds(images, classes),
    }


def _of_detections(images: list[Matches], classes: int) -> dict[str, Any]:
    counted = [(image, image.ignored[0] & 1 == 0) for image in images]
    scores = np.concatenate([[], *(image.score[kept] for image, kept in counted)])
    correct = np.concatenate([[], *((image.hit[0] & 1)[kept] for image, kept in counted)]) > 0
    true = sum(int((~image.crowd).sum()) for image in images)
    order = np.argsort(-scores, kind="stable")
    f1 = 200 * correct[order].cumsum() / (np.arange(len(order)) + 1 + true)
    best = int(f1.argmax()) if len(order) and true else None
    return tide(images, classes) | {
        "calibration": calibration(scores, correct),
        "best_F1": None if best is None else float(f1[best]),
        "best_F1_threshold": None if best is None else float(scores[order][best]),
    }
