"""Precision and recall over the detections of many images, as pycocotools accumulates them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.score.matching import AREAS, IOUS, Matches, unpack

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RECALLS = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_BEST = (1, 10, 100)  # detections per class and image of the first three recalls
_LEVELS = np.linspace(0.0, 1.0, 101)  # of recall


class Detections(NamedTuple):
    """The detections of one class in all images, sorted by falling score.

    Attributes:
        number: The number of true instances that count, `[A]` for each of AREAS.
        rank: `[N]`, the position of each detection among those of its class and image.
        hit: `uint16 [A, N]`, as in `Matches`.
        ignored: `uint16 [A, N]`, as in `Matches`.
        image: `[N]`, the index of its image.
    """

    number: np.ndarray
    rank: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    image: np.ndarray


def average_precision(images: Sequence[Matches], classes: int) -> dict[str, Any]:
    """Return SCORES, RECALLS, and `classes` with the AP and the AP50 of each class.

    The values are in percent. A value is NaN if there is no true instance, and 0 if there are true
    instances but no detections.
    """
    precision = np.full((len(IOUS), classes, len(AREAS)), np.nan)
    recall = np.full((len(IOUS), classes, len(AREAS), len(_BEST)), np.nan)
    for c, detections in enumerate(by_class(images, classes)):
        for a in np.flatnonzero(detections.number):
            number, hit, ignored = detections.number[a], detections.hit[a], detections.ignored[a]
            for n, best in enumerate(_BEST):
                kept = detections.rank < best
                true = unpack(hit[kept]) & ~unpack(ignored[kept])
                recall[:, c, a, n] = true.sum(1) / number
            precision[:, c, a] = interpolated(unpack(hit), unpack(ignored), number)
    scores = [precision[..., 0], precision[0, :, 0], precision[5, :, 0]]
    scores += [precision[..., a] for a in (1, 2, 3)]
    recalls = [recall[:, :, 0, n] for n in range(len(_BEST))]
    recalls += [recall[:, :, a, -1] for a in (1, 2, 3)]
    means = zip(SCORES + RECALLS, scores + recalls, strict=True)
    return {name: _percent(values) for name, values in means} | {
        "classes": [
            {"AP": _percent(precision[:, c, 0]), "AP50": _percent(precision[0, c, 0])}
            for c in range(classes)
        ]
    }


def by_class(images: Sequence[Matches], classes: int) -> list[Detections]:
    """Return the detections of each class, sorted by score; equal ones in the order of images."""
    if not images:
        images = [_NOTHING]
    category = np.concatenate([image.category for image in images])
    score = np.concatenate([image.score for image in images])
    hit = np.concatenate([image.hit for image in images], 1)
    ignored = np.concatenate([image.ignored for image in images], 1)
    number = np.repeat(np.arange(len(images)), [len(image.score) for image in images])
    first = np.concatenate([np.searchsorted(i.category, i.category) for i in images])
    within = np.concatenate([np.arange(len(image.score)) for image in images])
    truth = np.concatenate([image.truth for image in images])
    area = np.concatenate([image.area for image in images])
    crowd = np.concatenate([image.crowd for image in images])
    counts = ~crowd & (area >= AREAS[:, :1]) & (area <= AREAS[:, 1:])
    order = np.lexsort((-score, category))
    bounds = np.searchsorted(category[order], np.arange(classes + 1))
    found = []
    for c in range(classes):
        own = order[bounds[c] : bounds[c + 1]]
        of_class = (counts & (truth == c)).sum(1)
        rank = (within - first)[own]
        found.append(Detections(of_class, rank, hit[:, own], ignored[:, own], number[own]))
    return found


def interpolated(
    hit: np.ndarray, ignored: np.ndarray, number: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean precision at 101 levels of recall for each threshold.

    Args:
        hit: `bool [T, N]`, whether a detection has a match; sorted by falling score.
        ignored: `bool [T, N]`, whether it does not count.
        number: The number of true instances.
        weights: `[N]`, how often each detection counts; None for once.

    Returns:
        `[T]`.
    """
    once = 1 if weights is None else weights
    tp = np.cumsum((hit & ~ignored) * once, 1, dtype=float)
    fp = np.cumsum((~hit & ~ignored) * once, 1, dtype=float)
    precision = tp / (fp + tp + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(hit), 1))], 1)
    index = [np.searchsorted(row, _LEVELS, side="left") for row in tp / number]
    return np.array([row[n].mean() for row, n in zip(padded, index, strict=True)])


def _percent(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return 100 * float(known.mean()) if known.size else float("nan")


_NONE = np.zeros(0, np.int32)
_NO_BITS = np.zeros((len(AREAS), 0), np.uint16)
_NOTHING = Matches(_NONE, _NONE > 0, _NONE / 1.0, _NONE, _NONE / 1.0, _NONE,
                   np.zeros((0, 2), np.int32), _NONE / 1.0, _NO_BITS, _NO_BITS, _NONE)  # fmt: skip
