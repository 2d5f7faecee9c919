"""Predictions in COCO's formats: panoptic segments, and results of instances."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as rle
from scipy.ndimage import find_objects

from jobs.tiled.runs import encode
from pipeline.score.inference import Result
from shards.format.taxonomy import Taxonomy

_DIGITS = 4  # of a score


def id_colors(ids: np.ndarray) -> np.ndarray:
    """Return the RGB image of COCO's panoptic format: id = R + 256·G + 65536·B."""
    return np.stack([ids, ids >> 8, ids >> 16], -1).astype(np.uint8)


def categories(taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """Return the classes as the `categories` of COCO's panoptic JSON."""
    return [
        {
            "id": category.id,
            "name": category.name,
            "isthing": int(category.isthing),
            "color": list(category.color),
        }
        for category in taxonomy.categories
    ]


def panoptic_entry(id: str, result: Result, taxonomy: Taxonomy) -> dict[str, Any]:
    """Return the annotation of an image in COCO's panoptic format."""
    infos, boxes = [], find_objects(result.panoptic)
    for segment in result.segments:
        rows, columns = boxes[segment["id"] - 1]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        mask = result.panoptic[rows, columns] == segment["id"]
        infos.append({
            "id": segment["id"],
            "category_id": taxonomy.categories[segment["category"]].id,
            "isthing": int(segment["isthing"]),
            "score": round(segment["score"], _DIGITS),
            "area": int(mask.sum()),
            "bbox": [columns.start, rows.start, width, height],
            "iscrowd": 0,
        })  # fmt: skip
    return {"image_id": id, "file_name": f"{id}.png", "segments_info": infos}


def instance_entries(
    id: str, result: Result, taxonomy: Taxonomy, threshold: float
) -> list[dict[str, Any]]:
    """Return the instances of an image in COCO's format of results, with the names of classes.

    Args:
        id: The id of the image.
        result: The predictions.
        taxonomy: The classes.
        threshold: The least score. Empty masks and scores that round to 0 are always left out.
    """
    entries = []
    for n, (score, category) in enumerate(zip(result.scores, result.categories, strict=True)):
        rounded = round(float(score), _DIGITS)
        if not (rounded > 0 and score >= threshold):
            continue
        encoded = encode(result.masks, n)
        if not rle.area(encoded):
            continue
        entries.append({
            "image_id": id,
            "category_id": taxonomy.categories[category].id,
            "category_name": taxonomy.names[category],
            "score": rounded,
            "segmentation": _text(encoded),
            "bbox": rle.toBbox(encoded).tolist(),
        })  # fmt: skip
    return entries


def scored_masks(id: int | str, result: Result, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    """Return all instances of an image in COCO's format of results, with exact scores.

    There are no boxes, because pycocotools would take the areas of instances from them.
    """
    found = zip(result.scores.tolist(), result.categories.tolist(), strict=True)
    return [
        {
            "image_id": id,
            "category_id": taxonomy.categories[category].id,
            "score": score,
            "segmentation": _text(encode(result.masks, n)),
        }
        for n, (score, category) in enumerate(found)
    ]


def _text(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """Return run lengths as JSON values."""
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}
