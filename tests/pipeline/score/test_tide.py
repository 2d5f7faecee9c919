"""The split of AP50 against predictions that were corrected, scored by pycocotools."""

import numpy as np
import pytest

from pipeline.score.instance import InstanceScores
from pipeline.score.tide import KINDS, errors, tide
from tests.pipeline.score.test_instance import CATEGORIES, SIZE, by_load_res, random_image

EMPTY = np.zeros(SIZE, bool)


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = EMPTY.copy()
    mask[top:bottom, left:right] = True
    return mask


def true(category: int, mask: np.ndarray) -> dict:
    return {"category": category, "iscrowd": 0, "area": float(mask.sum()), "mask": mask}


def detections(*rows: tuple[float, int, np.ndarray]) -> dict:
    scores, categories, masks = zip(*rows, strict=True)
    return {"scores": np.array(scores), "categories": np.array(categories), "masks": masks}


def matched(*images: dict) -> list:
    scores = InstanceScores(CATEGORIES)
    for n, image in enumerate(images):
        scores.update(f"{n:03d}", **image)
    return [matches for _, matches in scores.images]


def test_each_kind_is_recognized_and_corrected():
    cat, dog, far = box(0, 0, 40, 40), box(60, 60, 100, 100), box(120, 150, 150, 190)
    image = {"size": SIZE, "truth": [true(0, cat), true(1, dog), true(0, far)]} | detections(
        (0.95, 0, cat),
        (0.90, 0, box(0, 0, 40, 39)),  # duplicate
        (0.85, 0, dog),  # class
        (0.80, 1, box(60, 60, 100, 70)),  # location
        (0.75, 2, box(60, 60, 100, 75)),  # both
        (0.70, 1, box(130, 0, 160, 30)),  # background
    )
    (matches,) = matched(image)
    order = np.argsort(-matches.score)
    found = [KINDS[kind] if kind >= 0 else "true" for kind in errors(matches).kind[order]]
    assert found == ["true", "duplicate", "class", "location", "both", "background"]
    split = tide([matches], CATEGORIES)
    numbers = {name: one["number"] for name, one in split["errors"].items()}
    assert numbers == {"class": 1, "location": 1, "both": 1, "duplicate": 1, "background": 1,
                       "missed": 1}  # fmt: skip
    # Cats: one of two found, first. Dogs: none. The third class has no truth.
    assert split["AP50"] == pytest.approx(100 * (51 / 101 + 0) / 2, rel=1e-12)
    # Without the missed cat, the cats are perfect. With the class corrected, the dogs are.
    assert split["errors"]["missed"]["AP50"] == pytest.approx(100 * 50 / 101 / 2, rel=1e-12)
    assert split["errors"]["class"]["AP50"] == pytest.approx(50, rel=1e-12)
    assert split["errors"]["location"]["AP50"] == 0  # a class error of a higher score finds the dog


@pytest.mark.parametrize("kind", [*KINDS, "missed"])
def test_a_part_is_ap50_of_corrected_predictions(kind):
    """pycocotools scores detections that have their true class, their true mask, or are removed."""
    rng = np.random.default_rng(11)
    images = [random_image(rng) for _ in range(40)]
    for image in images:
        for t in image["truth"]:
            t["iscrowd"] = 0
        image["scores"] = rng.permutation(len(image["scores"]))[: len(image["scores"])] / 97 + 0.01
    matches = matched(*images)
    split = tide(matches, CATEGORIES)
    assert split["AP50"] == pytest.approx(by_load_res(images)[0][1], rel=1e-12)
    corrected = []
    for image, found in zip(images, matches, strict=True):
        mistakes = errors(found)
        wanted = {"scores": [], "categories": [], "masks": []}
        for score, category, mask in zip(
            image["scores"], image["categories"], image["masks"], strict=True
        ):
            (d,) = np.flatnonzero((found.score == score) & (found.category == category))
            if mistakes.kind[d] >= 0 and KINDS[mistakes.kind[d]] == kind:
                if mistakes.target[d] < 0:
                    continue
                target = image["truth"][mistakes.target[d]]
                category, mask = target["category"], target["mask"]
            wanted["scores"].append(score)
            wanted["categories"].append(category)
            wanted["masks"].append(mask)
        if kind == "missed":
            image["truth"] = [t for t, m in zip(image["truth"], mistakes.missed, strict=True)
                              if not m]  # fmt: skip
        corrected.append(image | wanted)
    after = by_load_res(corrected)[0][1]
    assert split["errors"][kind]["number"] > 0
    assert split["errors"][kind]["AP50"] == pytest.approx(after - split["AP50"], abs=1e-9)


def test_without_images_nothing_is_defined():
    assert np.isnan(tide([], CATEGORIES)["AP50"])
