"""Each rung of the ladder against PQ of predictions whose maps were edited."""

import numpy as np
import pytest

from pipeline.score.ladder import LOCATED, RUNGS, ladder
from pipeline.score.panoptic import PanopticQuality
from tests.pipeline.score.test_panoptic import THINGS, counters, random_image, update


class Maps:
    """One image as maps and dictionaries: `prediction`, `classes`, `truth`, and `real`."""

    def __init__(self, image: tuple):
        self.prediction, predicted, self.truth, self.real = image
        self.prediction = self.prediction.copy()
        self.classes = {p["id"]: p["category"] for p in predicted}

    def iou(self, g: dict, id: int) -> float:
        a, b = self.truth == g["id"], self.prediction == id
        common = (a & b).sum()
        return common / max(g["area"] + b.sum() - common - (b & (self.truth == 0)).sum(), 1)

    def hit(self, g: dict) -> bool:
        """Return whether a true segment is found."""
        return any(c == g["category"] and self.iou(g, id) > 0.5 for id, c in self.classes.items())

    def count(self) -> dict[str, list]:
        quality = PanopticQuality(THINGS)
        present = set(np.unique(self.prediction).tolist())
        predicted = [{"id": i, "category": c} for i, c in self.classes.items() if i in present]
        update(quality, self.prediction, predicted, self.truth, self.real)
        return counters(quality)

    def new_id(self) -> int:
        return max([0, *self.classes]) + 1


def classes(maps: Maps) -> None:
    for id in maps.classes:
        covered = [g for g in maps.real if not g["iscrowd"] and maps.iou(g, id) > 0.5]
        if covered:
            maps.classes[id] = max(covered, key=lambda g: maps.iou(g, id))["category"]


def masks(maps: Maps) -> None:
    options = [
        (maps.iou(g, id), g["id"], id)
        for g in maps.real
        for id, c in maps.classes.items()
        if c == g["category"] and not g["iscrowd"] and (maps.truth == g["id"]).any()
    ]
    taken: list[tuple] = []
    for iou, g, id in sorted(options, key=lambda option: -option[0]):  # stable
        if iou >= LOCATED and all(g != t[0] and id != t[1] for t in taken):
            taken.append((g, id))
    for _, id in taken:
        maps.prediction[maps.prediction == id] = 0
    for g, id in taken:
        maps.prediction[maps.truth == g] = id


def merge(maps: Maps) -> None:
    before = maps.prediction.copy()
    class_of = np.full(before.shape, -1)
    for id, c in maps.classes.items():
        class_of[before == id] = c
    good = {}
    for g in maps.real:
        own = (maps.truth == g["id"]) & (class_of == g["category"])
        if not g["iscrowd"] and own.sum() > g["area"] / 2:
            good[g["id"]] = (own, g["category"])
    ids = {}
    for g, (own, c) in good.items():
        ids[g] = maps.new_id()
        maps.classes[ids[g]] = c
        maps.prediction[own] = ids[g]
    for id in np.unique(before[before > 0]).tolist():
        mask = before == id
        on = {g: (own & mask).sum() for g, (own, _) in good.items()}
        if sum(on.values()) > (mask & (maps.truth > 0)).sum() / 2:
            maps.prediction[mask & (maps.prediction == id)] = ids[max(on, key=lambda g: on[g])]


def misses(maps: Maps) -> None:
    missed = [g for g in maps.real if not g["iscrowd"] and not maps.hit(g)]
    for g in missed:
        id = maps.new_id()
        maps.classes[id] = g["category"]
        maps.prediction[maps.truth == g["id"]] = id


def inventions(maps: Maps) -> None:
    false = []
    for id, c in maps.classes.items():
        alone = Maps((np.where(maps.prediction == id, id, 0), [], maps.truth, maps.real))
        alone.classes = {id: c}
        if sum(alone.count()["fp"]):
            false.append(id)
    maps.prediction[np.isin(maps.prediction, false)] = 0


@pytest.mark.parametrize("edit", [classes, masks, merge, misses, inventions])
def test_a_rung_is_pq_of_corrected_predictions(edit):
    rng = np.random.default_rng(3)
    changed = 0
    for _ in range(120):
        image = random_image(rng)
        quality = PanopticQuality(THINGS)
        update(quality, *image)
        (pairs,) = (pairs for _, pairs in quality.images)
        maps = Maps(image)
        edit(maps)
        expected = maps.count()
        edited = PanopticQuality(THINGS)
        edited._images.append(("", RUNGS[edit.__name__](pairs)))
        found = counters(edited)
        np.testing.assert_allclose(found.pop("iou"), expected.pop("iou"), rtol=1e-12)
        assert found == expected
        changed += counters(edited) != counters(quality)
    assert changed > 3


def test_each_rung_corrects_its_error():
    """A cat called a dog: perfect classes give PQ 100, and the other rungs say what they can."""
    truth = np.array([[1] * 8 + [2] * 8])
    quality = PanopticQuality((True, True, False))
    segments = [
        {"id": 1, "category": 0, "iscrowd": 0, "area": 8},
        {"id": 2, "category": 2, "iscrowd": 0, "area": 8},
    ]
    update(quality, truth, [{"id": 1, "category": 1}, {"id": 2, "category": 2}], truth, segments)
    rungs = ladder([pairs for _, pairs in quality.images], quality.things)
    assert quality.result()["PQ"] == pytest.approx(100 / 3)
    assert rungs["classes"]["PQ"] == 100
    assert rungs["masks"]["PQ"] == pytest.approx(100 / 3)
    assert rungs["inventions"]["PQ"] == 50
    assert rungs["misses"]["PQ"] == 100  # the exact cat covers the dog
