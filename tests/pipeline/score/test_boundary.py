"""Boundary IoU and boundary PQ against the formula: erode each mask, and compare what is lost."""

import math

import cv2
import numpy as np
import pytest

from pipeline.score.boundary import boundary
from pipeline.score.panoptic import PanopticQuality
from pipeline.score.semantic import SemanticScores
from shards.format.schema import Segment

CLASSES = 3


def lost(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask that an erosion by 2 % of the diagonal removes."""
    height, width = mask.shape
    times = max(1, round(0.02 * math.sqrt(height**2 + width**2)))
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=times)[1:-1, 1:-1]
    return mask & (eroded == 0)


def random_maps(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a truth of blobs, whose value 0 is void, and a shifted and spotted prediction."""
    height, width = rng.integers(40, 130, 2)
    noise = cv2.resize(rng.random((5, 6)).astype(np.float32), (int(width), int(height)))
    truth = np.digitize(noise, [0.25, 0.45, 0.6, 0.75]).astype(np.uint8)
    prediction = np.roll(truth, rng.integers(0, 5, 2), (0, 1))
    prediction[rng.random(prediction.shape) < 0.01] = 0
    return truth, prediction.astype(np.int32)


def test_the_boundary_is_what_an_erosion_removes():
    rng = np.random.default_rng(0)
    for _ in range(30):
        truth, _ = random_maps(rng)
        found = boundary(truth)
        for label in np.unique(truth):
            np.testing.assert_array_equal(found & (truth == label), lost(truth == label))
    assert boundary(np.ones((3, 1), np.uint8)).all()
    assert boundary(np.ones((300, 400), np.uint16)).sum() == 300 * 400 - 280 * 380


def test_boundary_pq_is_that_of_the_formula():
    rng = np.random.default_rng(1)
    total = {"iou": np.zeros(CLASSES), "tp": np.zeros(CLASSES, int), "fn": np.zeros(CLASSES, int)}
    quality = PanopticQuality((True,) * CLASSES)
    for n in range(40):
        truth, prediction = random_maps(rng)
        areas = {int(g): float((truth == g).sum()) for g in np.unique(truth) if g}
        segments = {
            g: Segment(g, g % CLASSES, int(g == 4 and n % 2), area, []) for g, area in areas.items()
        }
        classes = {int(p): int(p) % CLASSES for p in np.unique(prediction) if p}
        edges = boundary(prediction), boundary(truth)
        quality.update(prediction, classes, truth, segments, f"{n:02d}", boundaries=edges)
        for g, segment in segments.items():
            if segment.iscrowd:
                continue
            found = False
            for p, category in classes.items():
                if category != segment.category:
                    continue
                ious = []
                for a, b in (
                    (truth == g, prediction == p),
                    (lost(truth == g), lost(prediction == p)),
                ):
                    union = a.sum() + b.sum() - (a & b).sum() - (b & (truth == 0)).sum()
                    ious.append((a & b).sum() / union)
                if min(ious) > 0.5:
                    total["iou"][category] += min(ious)
                    total["tp"][category] += 1
                    found = True
            total["fn"][segment.category] += not found
    counts = quality.boundary_counts()
    np.testing.assert_allclose(counts.iou, total["iou"], rtol=1e-12)
    np.testing.assert_array_equal(counts.tp, total["tp"])
    np.testing.assert_array_equal(counts.fn, total["fn"])
    assert counts.tp.sum() > 20
    result = quality.result()
    assert result["boundary_PQ"] < result["PQ"]
    assert result["boundary_PQ"] == pytest.approx(
        np.mean([row["boundary_PQ"] for row in result["classes"]]), rel=1e-12
    )


def test_boundary_iou_of_classes_is_that_of_the_formula():
    rng = np.random.default_rng(2)
    scores = SemanticScores(CLASSES)
    common, either = np.zeros(CLASSES), np.zeros(CLASSES)
    for _ in range(20):
        truth, prediction = random_maps(rng)
        truth, prediction = np.minimum(truth, CLASSES), np.minimum(prediction, CLASSES - 1)
        scores.update(prediction, truth, boundaries=(boundary(prediction), boundary(truth)))
        for c in range(CLASSES):
            a, b = lost(truth == c), lost(prediction == c) & (truth != CLASSES)
            common[c] += (a & b).sum()
            either[c] += (a | b).sum()
    result = scores.result()
    rows = [row["boundary_IoU"] for row in result["classes"]]
    np.testing.assert_allclose(rows, 100 * common / either, rtol=1e-12)
    assert result["boundary_IoU"] == pytest.approx(np.mean(rows), rel=1e-12)
