"""Average precision of instance masks by pycocotools, from masks in memory and over ranks."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class InstanceScores:
    """Predictions and truth of many images as compressed run lengths; `merge` joins ranks."""

    def __init__(self, num_categories: int):
        self.num_categories = num_categories
        self.images: dict[str, dict[str, Any]] = {}

    def update(
        self,
        image_id: str,
        size: tuple[int, int],
        scores: np.ndarray,
        categories: np.ndarray,
        masks: Sequence[np.ndarray],
        truth: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add one image of `size` (H, W).

        scores [n], categories [n] and masks (n times bool [H, W]) are the predictions. truth holds
        {"category", "iscrowd", "area"} and either "mask" (bool [H, W]) or "rle" (compressed, as
        pycocotools gives); the area is the publisher's. Raises ValueError for an image seen before
        and for a mask of another size.
        """
        if image_id in self.images:
            raise ValueError(f"image {image_id} is scored twice")
        shapes = [mask.shape for mask in masks]
        if shapes != [size] * len(scores):
            raise ValueError(f"image {image_id}: masks {shapes} for {len(scores)} x {size}")
        shapes = [t["rle"] if "rle" in t else _encode(t["mask"][None])[0] for t in truth]
        if any(tuple(shape["size"]) != tuple(size) for shape in shapes):
            raise ValueError(f"image {image_id}: a mask of truth is not {size}")
        self.images[image_id] = {
            "size": tuple(size),
            "truth": [
                {"category": int(t["category"]), "iscrowd": int(t["iscrowd"]), "area": t["area"]}
                | {"rle": shape}
                for t, shape in zip(truth, shapes, strict=True)
            ],
            "predictions": [
                {"category": int(category), "score": float(score), "rle": shape}
                for category, score, shape in zip(categories, scores, _encode(masks), strict=True)
            ],
        }

    def merge(self, other: "InstanceScores") -> None:
        """Add the images of another rank; raises ValueError where both have one."""
        assert self.num_categories == other.num_categories
        if both := self.images.keys() & other.images.keys():
            raise ValueError(f"image {min(both)} is scored twice")
        self.images |= other.images

    def result(self) -> dict[str, Any]:
        """AP (IoU 0.50:0.05:0.95), AP50, AP75, APs, APm, APl in percent, and AP of each category.

        NaN where there is no truth to find; 0 where there is, and no prediction. The order in which
        images came does not matter.
        """
        images, truth, predictions = [], [], []
        for number, name in enumerate(sorted(self.images), start=1):
            image = self.images[name]
            height, width = image["size"]
            images.append({"id": number, "height": height, "width": width})
            truth += [_annotation(number, t) for t in image["truth"]]
            predictions += [
                _annotation(number, p | {"area": run_lengths.area(p["rle"]), "iscrowd": 0})
                for p in image["predictions"]
            ]
        if not truth:
            classes = [float("nan")] * self.num_categories
            return dict.fromkeys(SCORES, float("nan")) | {"classes": classes}
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(
                self._coco(images, truth), self._coco(images, predictions), iouType="segm"
            )
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category]
        by_class = precision.mean((0, 1))  # -1 throughout where a category has no truth
        stats = zip(SCORES, evaluation.stats[:6], strict=True)
        return {name: _percent(value) for name, value in stats} | {
            "classes": [_percent(value) for value in by_class]
        }

    def _coco(self, images: list[dict], annotations: list[dict]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": images,
            "annotations": [a | {"id": n} for n, a in enumerate(annotations, start=1)],
            "categories": [{"id": c, "name": str(c)} for c in range(self.num_categories)],
        }
        coco.createIndex()
        return coco


def _annotation(image: int, entry: dict[str, Any]) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("iscrowd", "area", "score") if key in entry}
    return kept | {
        "image_id": image,
        "category_id": entry["category"],
        "segmentation": entry["rle"],
    }


def _encode(masks: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Compressed run lengths of bool masks [H, W]."""
    return [run_lengths.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


def _percent(value: float) -> float:
    return 100 * float(value) if value > -1 else float("nan")
