"""Average precision of instance masks, by pycocotools from the masks in memory of all ranks."""

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
    """The predictions and the truth of images as compressed run lengths.

    `merge` adds the images of another rank.
    """

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
        """Add one image.

        Args:
            image_id: The id of the image.
            size: Its height and width.
            scores: `[N]`, the scores of the predictions.
            categories: `[N]`, their classes.
            masks: Their masks, each `bool [H, W]`.
            truth: The `category`, `iscrowd`, and `area` (the publisher's) of each true instance,
                and either `mask` (`bool [H, W]`) or `rle` (compressed run lengths as pycocotools
                returns them).

        Raises:
            ValueError: The image was added before, the numbers of masks and scores differ, or a
                mask has another size than the image.
        """
        if image_id in self.images:
            raise ValueError(f"image {image_id} was added before")
        shapes = [mask.shape for mask in masks]
        if shapes != [size] * len(scores):
            raise ValueError(
                f"image {image_id}: the masks have the sizes {shapes}, "
                f"but {len(scores)} masks of size {size} are expected"
            )
        shapes = [t["rle"] if "rle" in t else _encode(t["mask"][None])[0] for t in truth]
        if any(tuple(shape["size"]) != tuple(size) for shape in shapes):
            raise ValueError(f"image {image_id}: a true mask has another size than {size}")
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
        """Add the images of another rank.

        Raises:
            ValueError: An image was added on both ranks.
        """
        assert self.num_categories == other.num_categories
        if both := self.images.keys() & other.images.keys():
            raise ValueError(f"image {min(both)} was added on two ranks")
        self.images |= other.images

    def result(self) -> dict[str, Any]:
        """Return AP (IoU 0.50:0.05:0.95), AP50, AP75, APs, APm, APl, and the AP of each class.

        The values are in percent. A value is NaN if there is no true instance, and 0 if there are
        true instances but no predictions. The order in which the images were added does not matter.
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
        by_class = precision.mean((0, 1))  # -1 for a category without truth
        stats = zip(SCORES, evaluation.stats[:6], strict=True)
        return {name: _percent(value) for name, value in stats} | {
            "classes": [_percent(value) for value in by_class]
        }

    def _coco(self, images: list[dict], annotations: list[dict]) -> COCO:
        coco = COCO()
        # The stubs of pycocotools demand fields, such as file names, that COCOeval never reads.
        dataset: Any = {
            "images": images,
            "annotations": [a | {"id": n} for n, a in enumerate(annotations, start=1)],
            "categories": [{"id": c, "name": str(c)} for c in range(self.num_categories)],
        }
        coco.dataset = dataset
        coco.createIndex()
        return coco


def _annotation(image: int, entry: dict[str, Any]) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("iscrowd", "area", "score") if key in entry}
    return kept | {
        "image_id": image,
        "category_id": entry["category"],
        "segmentation": entry["rle"],
    }


def _encode(masks: Sequence[np.ndarray]) -> list[Mapping[str, Any]]:
    """Return the compressed run lengths of masks, each `bool [H, W]`."""
    return [run_lengths.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


def _percent(value: float) -> float:
    return 100 * float(value) if value > -1 else float("nan")
