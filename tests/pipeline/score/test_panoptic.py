"""Panoptic quality against a slow implementation of its definition, and corner cases."""

import copy
import functools
import math

import numpy as np
import pytest

from pipeline.score.panoptic import PanopticQuality
from shards.format.schema import Segment

THINGS = (True, False, True, True, False)


def segment(number: int, category: int, area: float = 0, iscrowd: int = 0) -> dict:
    return {"id": number, "category": category, "iscrowd": iscrowd, "area": area}


def by_definition(images: list[tuple], things=THINGS) -> dict[str, list]:
    """Return the sum of IoU, TP, FP, and FN per class, from sets of pixels, pair by pair."""
    count = {name: [0] * len(things) for name in ("iou", "tp", "fp", "fn")}
    for prediction, predicted, truth, real in images:

        @functools.cache
        def region(side, number, maps=(truth, prediction)):
            return set(np.flatnonzero(maps[side] == number).tolist())

        void = region(0, 0)
        matched_truth, matched_prediction = set(), set()
        for g in real:
            for p in predicted:
                if g["iscrowd"] or g["category"] != p["category"]:
                    continue
                a, b = region(0, g["id"]), region(1, p["id"])
                iou = len(a & b) / (g["area"] + len(b) - len(a & b) - len(b & void))
                if iou > 0.5:
                    count["iou"][g["category"]] += iou
                    count["tp"][g["category"]] += 1
                    matched_truth.add(g["id"])
                    matched_prediction.add(p["id"])
        crowds = {}
        for g in real:
            if g["iscrowd"]:
                crowds[g["category"]] = g["id"]
            elif g["id"] not in matched_truth:
                count["fn"][g["category"]] += 1
        for p in predicted:
            if p["id"] in matched_prediction:
                continue
            b = region(1, p["id"])
            excused = len(b & void)
            if p["category"] in crowds:
                excused += len(b & region(0, crowds[p["category"]]))
            if excused / len(b) <= 0.5:
                count["fp"][p["category"]] += 1
    return count


def random_image(rng: np.random.Generator) -> tuple:
    """Return truth of blocks with void and crowds, and a shifted, noisy copy as prediction."""
    height, width = rng.integers(6, 13, 2)
    blocks = rng.integers(0, rng.integers(2, 8), (4, 4))
    truth = np.kron(blocks, np.ones((3, 3), int))[:height, :width]
    prediction = np.roll(truth, rng.integers(0, 3, 2), (0, 1)).copy()
    noise = rng.random(prediction.shape) < rng.choice([0, 0.1, 0.3])
    prediction[noise] = rng.integers(0, 9, noise.sum())
    if rng.random() < 0.3:
        prediction = rng.integers(0, 3, prediction.shape)
    if rng.random() < 0.2:
        truth = np.where(rng.random(truth.shape) < 0.7, 0, truth)
    categories = rng.integers(0, rng.integers(1, 6), 9)
    follow = categories if rng.random() < 0.8 else rng.permutation(categories)
    ids = np.arange(10)
    if rng.random() < 0.5:  # large ids, as in the files of COCO
        ids[1:] = rng.choice(2**12, 9, replace=False) + 2**12
    real = [
        segment(int(ids[n]), int(categories[n]), (truth == n).sum(), int(rng.random() < 0.2))
        for n in np.unique(truth).tolist()
        if n
    ]
    if rng.random() < 0.2:
        real.append(segment(2**16, 2, 7))  # listed, but without a pixel
    for g in real:
        g["area"] += int(rng.random() < 0.2)  # the publisher's area is not always the count
    predicted = [
        {"id": int(ids[n]), "category": int(follow[n])} for n in np.unique(prediction).tolist() if n
    ]
    return ids[prediction], predicted, ids[truth], real


def update(
    quality: PanopticQuality,
    prediction: np.ndarray,
    predicted: list[dict],
    truth: np.ndarray,
    real: list[dict],
) -> None:
    """Count an image whose segments are lists of dicts."""
    segments = {g["id"]: Segment(**g, bbox=[]) for g in real}
    quality.update(prediction, {p["id"]: p["category"] for p in predicted}, truth, segments)


def counters(quality: PanopticQuality) -> dict[str, list]:
    return {name: values.tolist() for name, values in quality.counts()._asdict().items()}


def test_counts_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    total = np.zeros(4)
    for _ in range(2000):
        image = random_image(rng)
        quality = PanopticQuality(THINGS)
        update(quality, *image)
        found, expected = counters(quality), by_definition([image])
        np.testing.assert_allclose(found.pop("iou"), expected.pop("iou"), rtol=1e-12)
        assert found == expected
        total += [sum(values) for values in counters(quality).values()]
    assert total.min() > 100  # every kind of outcome occurred


def test_merged_halves_equal_the_whole_and_scores_follow_from_the_counts():
    rng = np.random.default_rng(1)
    images = [random_image(rng) for _ in range(40)]
    whole, left, right = (PanopticQuality(THINGS) for _ in range(3))
    for n, image in enumerate(images):
        update(whole, *image)
        update(left if n < 17 else right, *image)
    left.merge(right)
    assert counters(left).pop("tp") == counters(whole).pop("tp")
    result, count = whole.result(), by_definition(images)
    assert left.result()["PQ"] == pytest.approx(result["PQ"], rel=1e-12)
    pq = [
        100 * i / (tp + fp / 2 + fn / 2)
        for i, tp, fp, fn in zip(*(count[n] for n in ("iou", "tp", "fp", "fn")), strict=True)
    ]
    assert [row["PQ"] for row in result["classes"]] == pytest.approx(pq, rel=1e-12)
    assert result["PQ"] == pytest.approx(np.mean(pq), rel=1e-12)
    assert result["PQ_th"] == pytest.approx(np.mean([pq[0], pq[2], pq[3]]), rel=1e-12)
    assert result["PQ_st"] == pytest.approx(np.mean([pq[1], pq[4]]), rel=1e-12)
    for row in result["classes"]:
        assert row["PQ"] == pytest.approx(row["SQ"] * row["RQ"] / 100, rel=1e-12)


@pytest.mark.parametrize(("extra", "tp"), [(0, 0), (1, 1)])
def test_an_iou_of_exactly_one_half_is_not_a_match(extra, tp):
    truth = np.array([[1] * 6 + [2] * 6])
    prediction = np.array([[1] * (3 + extra) + [0] * (9 - extra)])
    quality = PanopticQuality(THINGS)
    update(quality, prediction, [segment(1, 0)], truth, [segment(1, 0, 6), segment(2, 1, 6)])
    counts = quality.counts()
    assert (counts.tp[0], counts.fn[0], counts.fp[0]) == (tp, 1 - tp, 1 - tp)


@pytest.mark.parametrize(("on_void", "fp"), [(5, 1), (6, 0)])
def test_a_prediction_more_than_half_on_void_is_not_a_false_positive(on_void, fp):
    truth = np.array([[0] * on_void + [1] * (10 - on_void) + [1] * 30])
    prediction = np.array([[1] * 10 + [0] * 30])
    quality = PanopticQuality(THINGS)
    update(quality, prediction, [segment(1, 0)], truth, [segment(1, 0, (truth == 1).sum())])
    counts = quality.counts()
    assert (counts.fp.sum(), counts.fn.sum(), counts.tp.sum()) == (fp, 1, 0)


def test_only_the_last_crowd_of_a_class_excuses_predictions():
    truth, prediction = np.array([[1] * 5 + [2] * 5]), np.array([[1] * 5 + [2] * 5])
    quality = PanopticQuality(THINGS)
    crowds = [segment(1, 0, 5, iscrowd=1), segment(2, 0, 5, iscrowd=1)]
    update(quality, prediction, [segment(1, 0), segment(2, 0)], truth, crowds)
    counts = quality.counts()
    assert (counts.tp[0], counts.fp[0], counts.fn[0]) == (0, 1, 0)


def test_without_truth_or_prediction_scores_are_defined():
    empty = np.zeros((4, 4), int)
    full = np.ones((4, 4), int)
    quality = PanopticQuality(THINGS)
    assert all(math.isnan(quality.result()[name]) for name in ("PQ", "SQ", "RQ", "PQ_th"))
    update(quality, empty, [], empty, [])
    assert math.isnan(quality.result()["PQ"])
    update(quality, full, [segment(1, 0)], empty, [])
    assert math.isnan(quality.result()["PQ"])  # all of it is on void, so it is not a false positive
    update(quality, empty, [], full, [segment(1, 1, 16)])
    result = quality.result()
    assert (result["PQ"], result["SQ"], result["RQ"], result["PQ_st"]) == (0, 0, 0, 0)
    assert math.isnan(result["PQ_th"])
    assert math.isnan(result["classes"][0]["PQ"])
    assert result["classes"][1] == {"PQ": 0, "SQ": 0, "RQ": 0, "tp": 0, "fp": 0, "fn": 1}


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.int32, np.int64])
def test_maps_of_any_integer_type_count_alike(kind):
    ids = np.array([[1, 1, 2, 0]])
    quality = PanopticQuality(THINGS)
    segments = [segment(1, 0, 2), segment(2, 1, 1)]
    update(quality, ids.astype(kind), segments, ids.astype(kind), segments)
    assert quality.result()["PQ"] == 100


def test_maps_and_lists_that_disagree_are_rejected():
    ids = np.array([[1, 1, 2, 2]])
    good = [segment(1, 0, 2), segment(2, 0, 2)]
    for name, predicted, real in (
        ("prediction: id 2 ", good[:1], good),
        ("truth: id 1 ", good, good[1:]),
        ("prediction segment 3 has no pixel", [*good, segment(3, 0)], good),
        ("prediction: category 5 is not one of the 5 classes", [good[0], segment(2, 5)], good),
        ("truth: segment ids", good, [segment(-1, 0)]),
    ):
        quality = PanopticQuality(THINGS)
        before = copy.deepcopy(counters(quality))
        with pytest.raises(ValueError, match=name):
            update(quality, ids, predicted, ids, real)
        assert counters(quality) == before
    with pytest.raises(ValueError, match="the truth "):
        update(PanopticQuality(THINGS), ids, good, ids.T, good)
