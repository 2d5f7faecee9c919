"""The images and the mistakes that a report shows, chosen by the counters of a pass."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.score.matching import Matches
from pipeline.score.pairs import Pairs
from pipeline.score.record import Record
from pipeline.score.semantic import ClassPixels

SHOWN = 24  # images, and mistakes
TOUCHES = 0.1  # the IoU from which a prediction and a true segment belong together, as in TIDE
_POOR = 0.5  # the IoU below which a class of an image counts as an error of its semantic map


class Outcome(NamedTuple):
    """What a network got right and wrong in one image.

    Attributes:
        number: The index of the image in the set.
        key: Its key.
        quality: PQ of all its segments together, or F1 of its instances, or its pixel accuracy, in
            percent.
        missed: The classes of true segments that were not found, once for each.
        invented: The classes of false predictions, once for each.
    """

    number: int
    key: str
    quality: float
    missed: list[int]
    invented: list[int]


class Mistake(NamedTuple):
    """A false prediction.

    Attributes:
        number: The index of the image in the set.
        key: Its key.
        category: The predicted class.
        score: The score.
        nearest: The class of the true segment with the largest IoU; -1 if none touches it.
        iou: This IoU.
    """

    number: int
    key: str
    category: int
    score: float
    nearest: int
    iou: float


def worst_images(record: Record, least_score: float) -> list[Outcome]:
    """Return the images with the lowest quality; of equal ones, those with more errors first.

    Args:
        record: The counters of all images.
        least_score: The score from which instances count, if there is no panoptic truth.
    """
    outcomes = [outcome for outcome in _outcomes(record, least_score) if outcome is not None]
    outcomes.sort(key=lambda one: (one.quality, -len(one.missed) - len(one.invented)))
    return outcomes[:SHOWN]


def confident_mistakes(record: Record) -> list[Mistake]:
    """Return the false predictions with the highest scores; a semantic map has none."""
    mistakes: list[Mistake] = []
    parts = record.panoptic if record.panoptic is not None else record.instance
    for image, counts in zip(record.images, parts or [], strict=bool(parts)):
        found = _of_pairs(counts) if isinstance(counts, Pairs) else _of_matches(counts)
        mistakes += [Mistake(image.number, image.key, *one) for one in found]
    mistakes.sort(key=lambda mistake: -mistake.score)
    return mistakes[:SHOWN]


def _outcomes(record: Record, least_score: float) -> Iterator[Outcome | None]:
    for n, image in enumerate(record.images):
        if record.panoptic is not None:
            found = _quality_of_pairs(record.panoptic[n])
        elif record.instance is not None:
            found = _quality_of_matches(record.instance[n], least_score)
        elif record.semantic is not None:
            found = _quality_of_pixels(record.semantic[n])
        else:
            return
        yield Outcome(image.number, image.key, *found) if found else None


Quality = tuple[float, list[int], list[int]] | None


def _quality_of_pairs(image: Pairs) -> Quality:
    missed, invented = image.truth[image.missed], image.predicted[image.invented]
    found = image.iou[image.hits]
    total = len(found) + (len(missed) + len(invented)) / 2
    if not total:
        return None
    return 100 * float(found.sum()) / total, missed.tolist(), invented.tolist()


def _quality_of_matches(image: Matches, least_score: float) -> Quality:
    counted = (image.ignored[0] & 1 == 0) & (image.score >= least_score)
    correct = image.hit[0] & 1 == 1
    found = image.found[counted & correct]
    is_missed = ~image.crowd
    is_missed[found[found >= 0]] = False
    missed, invented = image.truth[is_missed], image.category[counted & ~correct]
    hits = int((counted & correct).sum())
    total = hits + (len(missed) + len(invented)) / 2
    return (100 * hits / total, missed.tolist(), invented.tolist()) if total else None


def _quality_of_pixels(image: ClassPixels) -> Quality:
    true = image.truth.sum()
    if not true:
        return None
    iou = image.hit / np.maximum(image.truth + image.predicted - image.hit, 1)
    poor = iou < _POOR
    missed = image.category[poor & (image.truth > 0)]
    invented = image.category[poor & (image.truth == 0)]
    return 100 * float(image.hit.sum() / true), missed.tolist(), invented.tolist()


Found = tuple[int, float, int, float]


def _of_pairs(image: Pairs) -> Iterator[Found]:
    for p in np.flatnonzero(image.invented & np.isfinite(image.scores)):
        nearest, iou = _nearest(image.truth, image.iou[:, p])
        yield int(image.predicted[p]), float(image.scores[p]), nearest, iou


def _of_matches(image: Matches) -> Iterator[Found]:
    for d in np.flatnonzero((image.ignored[0] & 1 == 0) & (image.hit[0] & 1 == 0)):
        pairs = image.pair[:, 0] == d
        nearest, iou = _nearest(image.truth[image.pair[pairs, 1]], image.iou[pairs])
        yield int(image.category[d]), float(image.score[d]), nearest, iou


def _nearest(truth: np.ndarray, iou: np.ndarray) -> tuple[int, float]:
    if not len(iou) or iou.max() < TOUCHES:
        return -1, 0.0
    best = int(iou.argmax())
    return int(truth[best]), float(iou[best])
