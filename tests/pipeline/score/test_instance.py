"""AP and AR against the documented use of pycocotools: COCO objects and loadRes."""

import contextlib
import copy
import io
import math

import numpy as np
import pytest
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.score.average_precision import RECALLS, SCORES
from pipeline.score.instance import InstanceScores

CATEGORIES = 3
SIZE = (160, 200)


def blob(rng: np.random.Generator) -> np.ndarray:
    height, width = np.exp(rng.uniform(np.log(5), np.log(170), 2)).astype(int)
    y, x = rng.integers(0, SIZE[0] - 4), rng.integers(0, SIZE[1] - 4)
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def random_image(rng: np.random.Generator) -> dict:
    truth = []
    for _ in range(rng.integers(0, 7)):
        mask = blob(rng)
        crowd = int(rng.random() < 0.2)
        area = float(mask.sum() * rng.uniform(0.8, 1.2))
        truth.append(
            {"category": int(rng.integers(2)), "iscrowd": crowd, "area": area, "mask": mask}
        )
    masks, categories = [], []
    for t in truth:
        for _ in range(rng.integers(0, 3)):
            masks.append(np.roll(t["mask"], rng.integers(-4, 5, 2), (0, 1)))
            categories.append(t["category"] if rng.random() < 0.9 else 2)
    for _ in range(rng.integers(0, 3)):
        masks.append(blob(rng))
        categories.append(int(rng.integers(CATEGORIES)))
    return {
        "size": SIZE,
        "scores": rng.integers(1, 20, len(masks)) / 20,  # with ties
        "categories": np.array(categories, int),
        "masks": np.array(masks).reshape(-1, *SIZE),
        "truth": truth,
    }


def compressed(mask: np.ndarray) -> dict:
    rle = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
    return rle | {"counts": rle["counts"].decode()}


def by_load_res(images: list[dict]) -> tuple[list[float], list[list[float]]]:
    """Return the twelve statistics, and AP and AP50 of each category, in percent."""
    truth, results = COCO(), []
    annotations = []
    for n, image in enumerate(images):
        for t in image["truth"]:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": n, "category_id": t["category"]}
                | {
                    "iscrowd": t["iscrowd"],
                    "area": t["area"],
                    "segmentation": compressed(t["mask"]),
                }
            )
        for score, category, mask in zip(
            image["scores"], image["categories"], image["masks"], strict=True
        ):
            results.append(
                {"image_id": n, "category_id": int(category), "score": float(score)}
                | {"segmentation": compressed(mask)}
            )
    truth.dataset = {
        "info": {},
        "images": [{"id": n, "height": SIZE[0], "width": SIZE[1]} for n in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"c{c}"} for c in range(CATEGORIES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()

        def evaluated(categories):
            evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "segm")
            evaluation.params.catIds = categories
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            return 100 * evaluation.stats

        return evaluated(list(range(CATEGORIES))), [evaluated([c])[:2] for c in range(CATEGORIES)]


def test_scores_are_those_of_pycocotools_and_halves_join():
    rng = np.random.default_rng(0)
    images = [random_image(rng) for _ in range(30)]
    whole, left, right = (InstanceScores(CATEGORIES) for _ in range(3))
    for n, image in enumerate(images):
        whole.update(f"{n:03d}", **image)
        (left if n % 2 else right).update(f"{n:03d}", **image)
    left.merge(right)
    stats, by_class = by_load_res(images)
    result = whole.result()
    assert [result[name] for name in SCORES + RECALLS] == pytest.approx(stats, rel=1e-12)
    assert min(stats) > 0
    assert len({round(s, 6) for s in stats}) == len(stats) - 1  # AR100 is AR10, because N < 10
    rows = [[row["AP"], row["AP50"]] for row in result["classes"]]
    np.testing.assert_allclose(rows[:2], by_class[:2], rtol=1e-12)
    assert by_class[2][0] == -100  # the value of pycocotools for a class without truth
    assert np.isnan(rows[2]).all()
    np.testing.assert_equal(left.result(), result)


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_crowded_images_are_those_of_pycocotools(seed):
    """Many detections of few instances: ties, more than 100 per class, and lost matches."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(6):
        image = random_image(rng)
        count = int(rng.integers(0, 260)) if len(image["masks"]) else 0
        chosen = rng.integers(0, max(1, len(image["masks"])), count)
        images.append(image | {
            "scores": rng.integers(1, 40, count) / 40,
            "categories": np.where(rng.random(count) < 0.9, 0, image["categories"][chosen]),
            "masks": image["masks"][chosen],
        })  # fmt: skip
    found = InstanceScores(CATEGORIES)
    for n, image in enumerate(images):
        found.update(f"{n:03d}", **image)
    result, (stats, _) = found.result(), by_load_res(images)
    known = [result[name] for name in SCORES + RECALLS]
    np.testing.assert_allclose(np.nan_to_num(known, nan=-100), stats, rtol=1e-12)


def test_truth_may_come_as_run_lengths():
    image = random_image(np.random.default_rng(5))
    by_mask, by_rle = InstanceScores(CATEGORIES), InstanceScores(CATEGORIES)
    by_mask.update("a", **image)
    for t in image["truth"]:
        t["rle"] = compressed(t.pop("mask"))
    by_rle.update("a", **image)
    np.testing.assert_equal(by_rle.result(), by_mask.result())


def test_without_truth_or_prediction_scores_are_defined(capsys):
    nothing = {"scores": np.zeros(0), "categories": np.zeros(0, int)}
    none = np.zeros((0, *SIZE), bool)
    mask = np.zeros((1, *SIZE), bool)
    mask[0, :40, :40] = True
    scores = InstanceScores(CATEGORIES)
    assert all(math.isnan(scores.result()[name]) for name in SCORES)
    scores.update("a", SIZE, **nothing, masks=none, truth=[])
    scores.update("b", SIZE, np.array([0.9]), np.array([0]), mask, [])
    assert math.isnan(scores.result()["AP"])
    crowd = {"category": 1, "iscrowd": 1, "area": 1600, "mask": mask[0]}
    scores.update("c", SIZE, **nothing, masks=none, truth=[crowd])
    assert math.isnan(scores.result()["AP"])  # a crowd need not be found
    scores.update("d", SIZE, **nothing, masks=none, truth=[crowd | {"iscrowd": 0}])
    assert scores.result()["AP"] == 0
    assert math.isnan(scores.result()["APs"])
    scores.update("e", SIZE, np.array([0.9]), np.array([1]), mask, [crowd | {"iscrowd": 0}])
    # One of two is found, first: precision 1 at the 51 of 101 recall points up to one half.
    assert scores.result()["AP"] == pytest.approx(100 * 51 / 101, rel=1e-12)
    assert capsys.readouterr().out == ""


def test_a_repeated_image_and_masks_of_another_size_are_rejected():
    rng = np.random.default_rng(7)
    image = random_image(rng)
    scores, other = InstanceScores(CATEGORIES), InstanceScores(CATEGORIES)
    scores.update("a", **image)
    other.update("a", **image)
    with pytest.raises(ValueError, match="image a was added before"):
        scores.update("a", **image)
    with pytest.raises(ValueError, match="image a was added on two ranks"):
        scores.merge(other)
    with pytest.raises(ValueError, match="image b: the masks have the sizes"):
        scores.update("b", **(image | {"size": (10, 10)}))
    wrong = [{"category": 0, "iscrowd": 0, "area": 4, "mask": np.ones((2, 2), bool)}]
    with pytest.raises(ValueError, match="image c: a true mask has another size"):
        scores.update("c", **(image | {"truth": wrong}))
    assert [name for name, _ in scores.images] == ["a"]
