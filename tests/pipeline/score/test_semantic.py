"""Mean IoU against a loop over pixels."""

import math

import numpy as np
import pytest

from pipeline.score.semantic import SemanticScores

CLASSES = 4


def by_definition(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, list[float]]:
    inter, either, real, hit = [0] * CLASSES, [0] * CLASSES, [0] * CLASSES, 0
    for prediction, truth in pairs:
        for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t == CLASSES:
                continue
            hit += p == t
            for c in range(CLASSES):
                inter[c] += p == c and t == c
                either[c] += p == c or t == c
                real[c] += t == c
    iou = [100 * inter[c] / either[c] if real[c] else math.nan for c in range(CLASSES)]
    return float(np.nanmean(iou)), 100 * hit / sum(real), iou


def random_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = rng.choice([0, 2, 3, CLASSES], (9, 7))
    prediction = np.where(rng.random((9, 7)) < 0.6, truth, rng.integers(0, CLASSES, (9, 7)))
    return np.minimum(prediction, CLASSES - 1).astype(np.int64), truth.astype(np.uint8)


def test_scores_are_those_of_the_definition_and_halves_add_up():
    rng = np.random.default_rng(0)
    pairs = [random_pair(rng) for _ in range(20)]
    whole, left, right = (SemanticScores(CLASSES) for _ in range(3))
    for n, pair in enumerate(pairs):
        whole.update(*pair)
        (left if n < 7 else right).update(*pair)
    left.merge(right)
    np.testing.assert_array_equal(left.confusion, whole.confusion)
    result, (miou, accuracy, iou) = whole.result(), by_definition(pairs)
    assert result["mIoU"] == pytest.approx(miou, rel=1e-12)
    assert result["pixel_accuracy"] == pytest.approx(accuracy, rel=1e-12)
    found = [row["IoU"] for row in result["classes"]]
    np.testing.assert_allclose(found, iou, rtol=1e-12)
    assert math.isnan(found[1])  # predicted, but never in truth


def test_accuracy_and_frequency_weighted_iou_are_those_of_their_formulas():
    rng = np.random.default_rng(1)
    scores, pairs = SemanticScores(CLASSES), [random_pair(rng) for _ in range(5)]
    for pair in pairs:
        scores.update(*pair)
    prediction, truth = (np.concatenate([pair[n].ravel() for pair in pairs]) for n in (0, 1))
    share, accuracy = {}, {}
    for c in (0, 2, 3):
        accuracy[c] = (prediction[truth == c] == c).mean()
        share[c] = (truth == c).sum() / (truth != CLASSES).sum()
    result = scores.result()
    iou = [row["IoU"] for row in result["classes"]]
    assert result["mean_accuracy"] == pytest.approx(100 * np.mean(list(accuracy.values())))
    assert result["frequency_IoU"] == pytest.approx(sum(share[c] * iou[c] for c in share))
    assert result["classes"][2]["accuracy"] == pytest.approx(100 * accuracy[2])
    assert math.isnan(result["classes"][1]["accuracy"])
    assert math.isnan(result["boundary_IoU"])  # no boundaries were given


def test_a_class_only_predicted_does_not_enter_the_mean():
    scores = SemanticScores(CLASSES)
    scores.update(np.array([[0, 1]]), np.array([[0, 0]]))
    assert scores.result()["mIoU"] == 50
    assert scores.result()["pixel_accuracy"] == 50


def test_without_truth_scores_are_nan():
    scores = SemanticScores(CLASSES)
    assert math.isnan(scores.result()["mIoU"])
    scores.update(np.zeros((2, 2), int), np.full((2, 2), CLASSES))
    assert math.isnan(scores.result()["mIoU"])
    assert math.isnan(scores.result()["pixel_accuracy"])


def test_values_outside_the_classes_are_rejected():
    scores, good = SemanticScores(CLASSES), np.zeros((2, 2), int)
    for prediction, truth, name in (
        (good + CLASSES, good, "prediction: the values 4..4"),
        (good - 1, good, "prediction: the values -1..-1"),
        (good, good + CLASSES + 1, "truth: the values 5..5"),
        (good, good[:1], "the truth "),
    ):
        with pytest.raises(ValueError, match=name):
            scores.update(prediction, truth)
    assert scores.confusion.sum() == 0
