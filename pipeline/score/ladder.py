"""What PQ would be if one kind of error were corrected, from the counters of one pass.

Each rung edits the predictions of every image and counts them again. The edits are functions of
the shared pixels alone, so that neither the maps nor the network are needed.
"""

from collections.abc import Callable, Iterable

import numpy as np

from pipeline.score.pairs import Pairs
from pipeline.score.panoptic import Counts

LOCATED = 0.1  # the IoU from which a prediction has found a segment, as in TIDE


def perfect_classes(image: Pairs) -> Pairs:
    """Give each prediction the class of the true segment whose mask it has (IoU > 0.5)."""
    if not image.common.size:
        return image
    best = np.where(image.covers, image.iou, -1).argmax(0)
    classes = np.where(image.covers.any(0), image.truth[best], image.predicted)
    return image._replace(predicted=classes)


def perfect_masks(image: Pairs) -> Pairs:
    """Give predictions the exact masks of true segments of their class.

    A prediction takes the mask of the segment that it overlaps most, if their IoU is at least
    LOCATED. Each true segment gives its mask once, to the largest IoU first. The former pixels of
    these predictions become void, and other predictions lose the pixels of the masks.
    """
    iou = np.where(image.same & ~image.crowd[:, None], image.iou, 0)
    iou[image.shared[1:].sum(1) == 0] = 0
    truths, predictions = [], []
    while iou.size and iou.max() >= LOCATED:
        t, p = np.unravel_index(iou.argmax(), iou.shape)
        truths.append(t)
        predictions.append(p)
        iou[t], iou[:, p] = 0, 0
    columns = np.array(predictions, int) + 1
    shared = image.shared.copy()
    shared[:, 0] += shared[:, columns].sum(1)
    shared[:, columns] = 0
    _draw(shared, np.array(truths, int) + 1, columns)
    return image.with_predictions(image.predicted, image.scores, shared)


def perfect_merge(image: Pairs) -> Pairs:
    """Group the pixels of each class into the true segments, without changing any pixel's class.

    A true segment that has its class in more than half of its area becomes one prediction, of all
    pixels in it that have its class. What is left of a prediction joins the segment that it
    overlaps most, if more than half of it (void excluded) lies on such segments, and otherwise
    stays as it is.
    """
    own = image.common * (image.same & ~image.crowd[:, None])
    own[2 * own.sum(1) <= image.area] = 0
    grouped = np.flatnonzero(own.any(1))
    if not len(grouped):
        return image
    rest = image.shared.copy()
    rest[1:, 1:] -= own
    joins = 2 * own.sum(0) > image.predicted_area - image.shared[0, 1:]
    target = own.argmax(0)
    joined = np.zeros((len(rest), len(grouped)), rest.dtype)
    joined[grouped + 1, np.arange(len(grouped))] = own[grouped].sum(1)
    scores = []
    for n, t in enumerate(grouped):
        joined[:, n] += rest[:, 1:][:, joins & (target == t)].sum(1)
        scores.append(image.scores[own[t] > 0].max())
    rest[:, 1:][:, joins] = 0
    return image.with_predictions(
        np.concatenate([image.predicted, image.truth[grouped]]),
        np.concatenate([image.scores, np.array(scores, np.float32)]),
        np.concatenate([rest, joined], 1),
    )


def no_misses(image: Pairs) -> Pairs:
    """Add the exact segment of every true segment that is not found; others lose its pixels."""
    missed = np.flatnonzero(image.missed & (image.shared[1:].sum(1) > 0))
    added = np.zeros((len(image.shared), len(missed)), image.shared.dtype)
    shared = np.concatenate([image.shared, added], 1)
    _draw(shared, missed + 1, image.shared.shape[1] + np.arange(len(missed)))
    return image.with_predictions(
        np.concatenate([image.predicted, image.truth[missed]]),
        np.concatenate([image.scores, np.ones(len(missed), np.float32)]),
        shared,
    )


def no_inventions(image: Pairs) -> Pairs:
    """Remove every false positive; its pixels become void."""
    columns = np.flatnonzero(image.invented) + 1
    shared = image.shared.copy()
    shared[:, 0] += shared[:, columns].sum(1)
    shared[:, columns] = 0
    return image.with_predictions(image.predicted, image.scores, shared)


RUNGS: dict[str, Callable[[Pairs], Pairs]] = {
    "classes": perfect_classes,
    "masks": perfect_masks,
    "merge": perfect_merge,
    "misses": no_misses,
    "inventions": no_inventions,
}


def ladder(images: Iterable[Pairs], things: np.ndarray) -> dict[str, dict[str, float]]:
    """Return PQ, SQ, and RQ (see `Counts.scores`) after each edit alone, by the names of RUNGS."""
    images = list(images)
    return {
        name: Counts.of(map(edit, images), len(things)).scores(things)
        for name, edit in RUNGS.items()
    }


def _draw(shared: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """Give the true segments in `rows` to the predictions in `columns`, pair by pair."""
    pixels = shared[rows].sum(1)
    shared[rows] = 0
    shared[rows, columns] = pixels
