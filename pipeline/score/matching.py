"""Match the detections of one image with its true instances as pycocotools does.

What is kept of an image are numbers per detection and per pair, so that its masks can be freed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as run_lengths

IOUS = np.linspace(0.5, 0.95, 10)  # thresholds, as pycocotools computes them
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # all, small, …, pixels
DETECTIONS = 100  # the best per class and image
TOUCH = 0.1  # the least IoU of the pairs that are kept, TIDE's bound of background
_HIGHEST = np.minimum(IOUS, 1 - 1e-10)


class Matches(NamedTuple):
    """What AP and its split need of one image: G true instances and D detections.

    Detections are sorted by class, and those of a class by falling score.

    Attributes:
        truth: `int32 [G]`, the class of each true instance.
        crowd: `bool [G]`.
        area: `float64 [G]`, the publisher's area in pixels.
        category: `int32 [D]`, the class of each detection.
        score: `float64 [D]`.
        pixels: `int32 [D]`, the area of each detection.
        pair: `int32 [N, 2]`, the pairs (detection, true instance) of any classes whose IoU is at
            least TOUCH. The IoU with a crowd is the share of the detection in it.
        iou: `float64 [N]`, their IoU.
        hit: `uint16 [A, D]` for each of AREAS: bit t is set if the detection has a match, perhaps
            an ignored one, at the IoU of IOUS[t].
        ignored: `uint16 [A, D]`: bit t is set if the detection counts neither as true nor as false.
        found: `int32 [D]`, the true instance that the detection matches at IoU 0.5 (AREAS[0]), or
            -1.
    """

    truth: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    category: np.ndarray
    score: np.ndarray
    pixels: np.ndarray
    pair: np.ndarray
    iou: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    found: np.ndarray


def match(
    scores: np.ndarray,
    categories: np.ndarray,
    masks: Sequence[Mapping[str, Any]],
    truth: Sequence[Mapping[str, Any]],
) -> Matches:
    """Match the detections of one image.

    Args:
        scores: `[D]`.
        categories: `[D]`.
        masks: The run lengths of each detection, as pycocotools encodes them.
        truth: The `category`, `iscrowd`, `area`, and `rle` of each true instance.
    """
    order = _best_of_each_class(np.asarray(scores, float), np.asarray(categories, np.int32))
    category = np.asarray(categories, np.int32)[order]
    chosen = [masks[n] for n in order]
    pixels = np.array([run_lengths.area(mask) for mask in chosen], np.int32)
    crowd = np.array([bool(t["iscrowd"]) for t in truth], bool)
    area = np.array([t["area"] for t in truth], float)
    classes = np.array([t["category"] for t in truth], np.int32)
    iou = np.zeros((len(chosen), len(truth)))
    if chosen and truth:
        true = [t["rle"] for t in truth]
        iou = np.asarray(run_lengths.iou(chosen, true, crowd.astype(np.uint8)))
    touching = np.argwhere(iou >= TOUCH).astype(np.int32)
    hit, ignored, found = _greedy(iou, category, pixels, classes, crowd, area)
    return Matches(
        classes, crowd, area, category, np.asarray(scores, float)[order], pixels,
        touching, iou[touching[:, 0], touching[:, 1]], hit, ignored, found,
    )  # fmt: skip


def unpack(bits: np.ndarray) -> np.ndarray:
    """Return the flags `bool [T, D]` of bits `uint16 [D]`."""
    return (bits >> np.arange(len(IOUS), dtype=np.uint16)[:, None] & 1).astype(bool)


def _best_of_each_class(scores: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """Return the indices of the best DETECTIONS of each class; equal scores keep their order."""
    order = np.lexsort((-scores, categories))
    ordered = categories[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return order[rank < DETECTIONS]


def _greedy(
    iou: np.ndarray,
    category: np.ndarray,
    pixels: np.ndarray,
    classes: np.ndarray,
    crowd: np.ndarray,
    area: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give each detection, in the order of scores, the best free true instance of its class.

    One that counts goes before one that is ignored, and a crowd stays free. Of equal IoU the last
    instance is taken.

    Returns:
        `hit`, `ignored`, and `found` as in `Matches`.
    """
    outside = (area < AREAS[:, :1]) | (area > AREAS[:, 1:])  # [A, G]
    ignorable = (outside | crowd)[:, None]  # [A, 1, G]
    taken = np.zeros((len(AREAS), len(IOUS), len(area)), bool)
    bit = 1 << np.arange(len(IOUS))
    far = (pixels < AREAS[:, :1]) | (pixels > AREAS[:, 1:])
    hit = np.zeros(far.shape, np.uint16)
    ignored = np.where(far, bit.sum(), 0).astype(np.uint16)
    found = np.full(len(pixels), -1, np.int32)
    candidates = (iou >= _HIGHEST[0]) & (category[:, None] == classes)
    for d in np.flatnonzero(candidates.any(1)):
        near = np.flatnonzero(candidates[d])
        free = (iou[d, near] >= _HIGHEST[:, None]) & (~taken[..., near] | crowd[near])
        counts = free & ~ignorable[..., near]
        value = np.where(counts, 2 + iou[d, near], np.where(free, iou[d, near], -1))
        best = len(near) - 1 - value[..., ::-1].argmax(-1)
        matched = free.any(-1)  # [A, T]
        a, t = matched.nonzero()
        chosen = near[best[a, t]]
        taken[a, t, chosen] = True
        of_ignored = np.zeros_like(matched)
        of_ignored[a, t] = ignorable[a, 0, chosen]
        hit[:, d] = matched @ bit
        ignored[:, d] = np.where(matched, of_ignored, far[:, d, None]) @ bit
        if matched[0, 0]:
            found[d] = near[best[0, 0]]
    return hit, ignored, found
