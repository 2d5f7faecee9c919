"""The comparison of two evaluations against scores of images that are really drawn."""

import numpy as np
import pytest

from pipeline.score import compare as module
from pipeline.score.compare import compare
from pipeline.score.instance import InstanceScores
from pipeline.score.panoptic import PanopticQuality
from pipeline.score.record import Image, Record
from pipeline.score.semantic import ClassPixels, SemanticScores
from tests.pipeline.score import test_instance, test_panoptic, test_semantic

IMAGES, CLASSES = 12, 5
THINGS = test_panoptic.THINGS


def evaluated(seed: int, drawn: np.ndarray | None = None) -> tuple[Record, dict[str, float]]:
    """Return the record of random images, and the scores of the images `drawn` (all, once)."""
    rng = np.random.default_rng(seed)
    kinds = [test_panoptic.random_image, test_instance.random_image, test_semantic.random_pair]
    images = [[kind(rng) for kind in kinds] for _ in range(IMAGES)]
    for _, instance, _ in images:  # the order of equal scores is arbitrary, and AP depends on it
        instance["scores"] = rng.random(len(instance["scores"]))
    record, scores = {}, {}
    for numbers in (np.arange(IMAGES), np.arange(IMAGES) if drawn is None else drawn):
        segments, pixels = PanopticQuality(THINGS), SemanticScores(CLASSES)
        detections = InstanceScores(CLASSES)
        for position, n in enumerate(numbers):
            panoptic, instance, semantic = images[n]
            test_panoptic.update(segments, *panoptic)
            detections.update(f"{position:03d}", **instance)
            pixels.update(*semantic, f"{position:03d}")
        parts = {"panoptic": segments, "instance": detections, "semantic": pixels}
        record = record or {name: [i for _, i in part.images] for name, part in parts.items()}
        scores = {name: v for part in parts.values() for name, v in part.result().items()}
    about = {"data": "f", "names": list("abcde"), "things": list(THINGS)}
    return Record(about, [Image(f"{n:03d}", n, 9, 9) for n in range(IMAGES)], **record), scores


def test_the_scores_are_those_of_the_evaluations():
    (one, first), (other, second) = evaluated(0), evaluated(1)
    rows = {row["name"]: row for row in compare(one, other)}
    wanted = {"PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "AP75", "mIoU", "pixel_accuracy"}
    assert rows.keys() == wanted
    for name, row in rows.items():
        assert row["one"] == pytest.approx(first[name], rel=1e-12)
        assert row["other"] == pytest.approx(second[name], rel=1e-12)
        assert row["difference"] == pytest.approx(second[name] - first[name], abs=1e-9)
        assert row["low"] < row["high"]


def test_a_resample_has_the_scores_of_the_images_that_it_draws():
    rng = np.random.default_rng(2)
    for seed in range(4):
        drawn = np.sort(rng.integers(0, IMAGES, IMAGES))
        record, expected = evaluated(seed, drawn)
        weights = np.bincount(drawn, minlength=IMAGES)[None]
        for task in module.RESAMPLES:
            scores = module._scores_of(record, task)
            assert scores is not None
            for name, (value,) in scores(weights).items():
                assert value == pytest.approx(expected[name], rel=1e-12, nan_ok=True)


def test_equal_evaluations_differ_by_nothing_and_swapped_ones_by_the_opposite():
    (one, _), (other, _) = evaluated(0), evaluated(1)
    assert {(r["difference"], r["low"], r["high"]) for r in compare(one, one)} == {(0, 0, 0)}
    for there, back in zip(compare(one, other), compare(other, one), strict=True):
        opposite = -there["difference"], -there["high"], -there["low"]
        assert (back["difference"], back["low"], back["high"]) == pytest.approx(opposite)


def test_the_interval_holds_the_true_difference_as_often_as_it_says(monkeypatch):
    """Two predictors of 80 % and 78 % of pixels, each on 60 images with its own difficulty."""
    monkeypatch.setattr(module, "RESAMPLES", {"semantic": 300})
    rng, held = np.random.default_rng(3), 0
    for _ in range(200):
        easy = rng.normal(0, 0.08, 60)  # of both predictors alike
        records = []
        for mean in (0.80, 0.78):
            accuracy = np.clip(mean + easy + rng.normal(0, 0.03, 60), 0, 1)
            hits = (1000 * accuracy).astype(int)
            pixels = [
                ClassPixels(np.arange(2), *np.array([[hit, 0], [1000, 0], [hit, 1000 - hit]]))
                for hit in hits
            ]
            about = {"data": "f", "names": ["a", "b"], "things": [False, False]}
            images = [Image(f"{n:02d}", n, 1, 1000) for n in range(60)]
            records.append(Record(about, images, semantic=pixels))
        (row,) = (r for r in compare(*records) if r["name"] == "pixel_accuracy")
        held += row["low"] <= -2 <= row["high"]
        assert row["high"] - row["low"] < 4  # unpaired, it would be about 6 points wide
    assert 0.9 < held / 200 < 0.99
