"""The breakdowns of PQ against removed predictions, loops, and examples counted by hand."""

import math

import numpy as np
import pytest

from pipeline.score.breakdown import (
    THRESHOLDS,
    by_crowding,
    by_size,
    calibration,
    confusion,
    thresholds,
)
from pipeline.score.pairs import Pairs, pairs
from pipeline.score.panoptic import Counts
from shards.format.schema import Segment
from tests.pipeline.score.test_panoptic import THINGS, random_image

FLAGS = np.array(THINGS)


def counted(image: tuple, scores: dict[int, float]) -> Pairs:
    """Return the counters of an image, leaving out the predictions without a score."""
    prediction, predicted, truth, real = image
    classes = {p["id"]: p["category"] for p in predicted if p["id"] in scores}
    kept = np.where(np.isin(prediction, list(classes)), prediction, 0)
    segments = {g["id"]: Segment(**g, bbox=[]) for g in real}
    return pairs(kept, classes, truth, segments, [scores[id] for id in classes])


def scored_images(seed: int, count: int) -> list[tuple[tuple, dict[int, float]]]:
    rng = np.random.default_rng(seed)
    images = [random_image(rng) for _ in range(count)]
    return [(i, {p["id"]: rng.integers(1, 50) / 50 for p in i[1]}) for i in images]


def test_a_threshold_is_judged_as_if_the_predictions_below_it_were_removed():
    images = scored_images(0, 40)
    found = thresholds([counted(*image) for image in images], len(THINGS))
    for n in (0, 7, 25, 44, 49):
        limit = THRESHOLDS[n]
        left = [
            counted(i, {id: s for id, s in scores.items() if np.float32(s) > limit})
            for i, scores in images
        ]
        counts = Counts.of(left, len(THINGS))
        assert found["PQ"][n] == pytest.approx(counts.scores(FLAGS)["PQ"], rel=1e-12)
        tp, fp, fn = (values.sum() for values in counts[1:])
        assert found["F1"][n] == pytest.approx(200 * tp / (2 * tp + fp + fn), rel=1e-12)
    assert found["PQ"][round(found["best_PQ"] * 50)] == max(found["PQ"])


def test_sizes_and_crowding_divide_the_counts():
    images = [counted(*image) for image in scored_images(1, 60)]
    total = [int(values.sum()) for values in Counts.of(images, len(THINGS))[1:]]
    for rows in (by_size(images, FLAGS), by_crowding(images, FLAGS)):
        assert [sum(row[key] for row in rows) for key in ("tp", "fp", "fn")] == total
    assert sum(row["images"] for row in by_crowding(images, FLAGS)) == 60


def test_sizes_are_those_of_coco():
    truth = np.zeros((100, 200), np.uint8)
    truth[:, :100], truth[:31, 100:131], truth[50:82, 100:132] = 1, 2, 3
    areas = {1: 10_000, 2: 961, 3: 1024}
    segments = {n: Segment(n, 0, 0, area, []) for n, area in areas.items()}
    image = pairs(np.where(truth == 2, 0, truth), {1: 0, 3: 1}, truth, segments)
    small, medium, large = by_size([image], FLAGS)
    outcomes = [[row[key] for key in ("tp", "fp", "fn")] for row in (small, medium, large)]
    assert outcomes == [[0, 0, 1], [0, 1, 1], [1, 0, 0]]
    assert (small["PQ"], large["PQ"]) == (0, 100)
    assert by_crowding([image], FLAGS)[0]["images"] == 1


def test_confusion_is_that_of_a_loop_over_pairs():
    classes = len(THINGS)
    images = [counted(*image) for image in scored_images(2, 60)]
    expected = np.zeros((classes + 1, classes + 1), int)
    for image in images:
        covered = set()
        for t, category in enumerate(image.truth):
            if image.crowd[t]:
                continue
            hits = [p for p in range(len(image.predicted)) if image.iou[t, p] > 0.5]
            for p in hits:
                expected[category, image.predicted[p]] += 1
                covered.add(p)
            expected[category, classes] += not hits
        for p, category in enumerate(image.predicted):
            if p not in covered and not image.ignored[p]:
                expected[classes, category] += 1
    found = confusion(images, classes)
    np.testing.assert_array_equal(found, expected)
    assert found[:-1, :-1].sum() > np.trace(found)  # some classes are confused


def test_the_calibration_error_is_that_of_its_formula():
    rng = np.random.default_rng(3)
    scores = rng.random(500)
    correct = rng.random(500) < scores**2
    found = calibration(scores, correct)
    error = 0.0
    for low in range(10):
        inside = [n for n in range(500) if low <= 10 * scores[n] < low + 1]
        error += abs(sum(scores[n] - correct[n] for n in inside)) / 500
    assert found["ECE"] == pytest.approx(100 * error, rel=1e-12)
    assert sum(found["number"]) == 500
    assert math.isnan(calibration(np.zeros(0), np.zeros(0, bool))["ECE"])
    assert calibration(np.ones(3), np.ones(3, bool))["ECE"] == 0


def test_without_images_nothing_is_defined():
    found = thresholds([], len(THINGS))
    assert found["best_PQ"] is None
    assert found["best_F1"] is None
    assert all(math.isnan(row["PQ"]) for row in by_size([], FLAGS) + by_crowding([], FLAGS))
