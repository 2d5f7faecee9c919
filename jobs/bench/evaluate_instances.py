"""Detections for the benchmark of AP, and the peers that score them."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.score.average_precision import RECALLS, SCORES
from pipeline.score.instance import InstanceScores

SIZE, THINGS = (480, 640), 80  # of an image; number of classes
INSTANCES = 8  # per image


def detections(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Return the arguments of `InstanceScores.update` for one image, with masks as run lengths."""
    truth = []
    for _ in range(INSTANCES):
        truth.append((int(rng.integers(THINGS)), _ellipse(rng)))
    masks, categories = [], []
    for n in range(count):
        category, mask = truth[n % INSTANCES]
        masks.append(np.roll(mask, rng.integers(-9, 10, 2), (0, 1)))
        categories.append(category if rng.random() < 0.8 else int(rng.integers(THINGS)))
    return {
        "size": SIZE,
        "scores": rng.random(count),
        "categories": np.array(categories),
        "masks": [_encoded(mask) for mask in masks],
        "truth": [
            {"category": c, "iscrowd": 0, "area": float(mask.sum()), "rle": _encoded(mask)}
            for c, mask in truth
        ],
    }


def _ellipse(rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    center, axes = rng.integers(60, [580, 420]).tolist(), rng.integers(8, 60, 2).tolist()
    cv2.ellipse(mask, center, axes, int(rng.integers(180)), 0, 360, 1, -1)
    return mask


def _encoded(mask: np.ndarray) -> Any:
    return run_lengths.encode(np.asfortranarray(mask))


def average_precisions(pictures: list[dict[str, Any]]) -> list[float]:
    """Return our twelve numbers."""
    scores = InstanceScores(THINGS)
    for n, picture in enumerate(pictures):
        scores.update(f"{n:06d}", **picture)
    result = scores.result()
    return [result[name] for name in SCORES + RECALLS]


def ap_works(pictures: list[dict[str, Any]]) -> dict[str, Callable[[], list[float]]]:
    """Return the three implementations as functions that return the twelve numbers in percent."""
    import hotcoco

    truth, results = coco_documents(pictures)

    def of(library: Any, evaluator: Any) -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            known = library()
            known.dataset = truth
            known.createIndex()
            copies = [dict(result) for result in results]  # because pycocotools changes them
            evaluation = evaluator(known, known.loadRes(copies), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return [100 * float(value) for value in evaluation.stats]

    return {
        "ours": lambda: average_precisions(pictures),
        "pycocotools": lambda: of(COCO, COCOeval),
        "hotcoco": lambda: of(lambda: hotcoco.COCO(truth), hotcoco.COCOeval),
    }


def coco_documents(pictures: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the truth and the results as the documents of COCO."""
    height, width = SIZE
    annotations, results = [], []
    for n, picture in enumerate(pictures):
        for one in picture["truth"]:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": n, "category_id": one["category"]}
                | {"iscrowd": 0, "area": one["area"], "segmentation": _text(one["rle"])}
                | {"bbox": run_lengths.toBbox(one["rle"]).tolist()}
            )
        for score, category, mask in zip(
            picture["scores"], picture["categories"], picture["masks"], strict=True
        ):
            results.append(
                {"image_id": n, "category_id": int(category), "score": float(score)}
                | {"segmentation": _text(mask)}
            )
    images = [{"id": n, "height": height, "width": width} for n in range(len(pictures))]
    categories = [{"id": c, "name": str(c)} for c in range(THINGS)]
    truth = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    return truth, results


def _text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}
