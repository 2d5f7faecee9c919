"""How much AP50 each kind of error of the detections costs (Bolya et al., TIDE, 2020).

A false detection has one kind of error, found by its largest IoU with the true instances of its
class and of other classes:

- location: at least 0.1 and below 0.5 with its class;
- class: at least 0.5 with another class;
- duplicate: at least 0.5 with its class, whose instance another detection matches;
- background: below 0.1 with all instances;
- both: any other.

An instance that no detection matches is missed, unless correcting a class or a location would find
it. Crowds, and detections that AP ignores, are left out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.score.average_precision import interpolated
from pipeline.score.matching import IOUS, TOUCH, Matches

KINDS = ("class", "location", "both", "duplicate", "background")
MISSED = "missed"
_TRUE, _IGNORED = -1, -2


class Errors(NamedTuple):
    """The errors of one image.

    Attributes:
        kind: `int8 [D]`, an index of KINDS, or -1 for a true positive, or -2 for an ignored one.
        target: `int32 [D]`, the true instance that correcting a class or location error would find,
            or -1 if it is matched already, or if a higher score finds it.
        missed: `bool [G]`.
    """

    kind: np.ndarray
    target: np.ndarray
    missed: np.ndarray


def errors(image: Matches) -> Errors:
    """Return the kind of error of each detection."""
    detections, instances = len(image.score), len(image.truth)
    iou = np.zeros((detections, instances))
    d, t = image.pair.T
    iou[d, t] = image.iou
    iou[:, image.crowd] = 0
    own = image.category[:, None] == image.truth
    hit, ignored = image.hit[0] & 1 > 0, image.ignored[0] & 1 > 0
    kind = np.where(ignored, _IGNORED, _TRUE)
    target = np.full(detections, -1, np.int32)
    used = np.zeros(instances, bool)
    used[image.found[hit & ~ignored]] = True
    false = np.flatnonzero(~hit & ~ignored)
    if instances:
        same, other = np.where(own, iou, 0)[false], np.where(own, 0, iou)[false]
        located = (same.max(1) >= TOUCH) & (same.max(1) < IOUS[0])
        confused = ~located & (other.max(1) >= IOUS[0])
        rules = [confused, located, same.max(1) >= IOUS[0], iou[false].max(1) < TOUCH]
        names = ["class", "location", "duplicate", "background"]
        indices = [KINDS.index(name) for name in names]
        kind[false] = np.select(rules, indices, KINDS.index("both"))
        goal = np.where(confused, other.argmax(1), np.where(located, same.argmax(1), -1))
    else:
        kind[false] = KINDS.index("background")
        goal = np.full(len(false), -1)
    missed = ~used & ~image.crowd
    missed[goal[goal >= 0]] = False
    open_goals = set(np.flatnonzero(~used))
    for n in np.argsort(-image.score[false], kind="stable"):
        if goal[n] in open_goals:
            open_goals.discard(goal[n])
            target[false[n]] = goal[n]
    return Errors(kind, target, missed)


def tide(images: Sequence[Matches], classes: int) -> dict[str, Any]:
    """Return AP50, and for each kind of error its number and how many points correcting it gives.

    A corrected class or location makes a true positive, unless the instance is found already; all
    other false detections are removed, and missed instances are no longer counted.

    Returns:
        `AP50`; and `errors`, for each of KINDS and MISSED, a dict of `number` and `AP50`, in
        percent: the difference that correcting this kind alone makes, NaN if it leaves no instance.
    """
    found = [errors(image) for image in images]
    columns = {
        "category": [image.category for image in images],
        "score": [image.score for image in images],
        "kind": [one.kind for one in found],
        "goal": [
            np.where(one.target >= 0, image.truth[one.target], -1)
            if len(image.truth) else one.target
            for image, one in zip(images, found, strict=True)
        ],
    }  # fmt: skip
    flat = {name: np.concatenate([[], *parts]) for name, parts in columns.items()}
    positive = np.zeros(classes)
    missed = np.zeros(classes)
    for image, one in zip(images, found, strict=True):
        np.add.at(positive, image.truth[~image.crowd], 1)
        np.add.at(missed, image.truth[one.missed], 1)
    kept = flat["kind"] != _IGNORED
    category, score, kind, goal = (flat[name][kept] for name in columns)
    true = kind == _TRUE
    start = _ap50(category, score, true, positive)
    result: dict[str, Any] = {}
    for number, name in enumerate(KINDS):
        of_kind = kind == number
        fixed = of_kind & (goal >= 0)
        left = ~of_kind | fixed
        corrected = np.where(fixed, goal, category)
        ap50 = _ap50(corrected[left], score[left], (true | fixed)[left], positive)
        result[name] = {"number": int(of_kind.sum()), "AP50": np.maximum(ap50 - start, 0).item()}
    ap50 = _ap50(category, score, true, positive - missed)
    result[MISSED] = {"number": int(missed.sum()), "AP50": np.maximum(ap50 - start, 0).item()}
    return {"AP50": start, "errors": result}


def _ap50(category: np.ndarray, score: np.ndarray, true: np.ndarray, positive: np.ndarray) -> float:
    """Return the mean AP of the classes that have true instances, in percent."""
    order = np.lexsort((-score, category))
    bounds = np.searchsorted(category[order], np.arange(len(positive) + 1))
    values = []
    for c in np.flatnonzero(positive):
        hits = true[order[bounds[c] : bounds[c + 1]]][None]
        values.append(interpolated(hits, np.zeros_like(hits), positive[c])[0])
    return 100 * float(np.mean(values)) if values else float("nan")
