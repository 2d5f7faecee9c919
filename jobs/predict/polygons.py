"""Polygons of masks for labelling tools, as a data set in COCO's format."""

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle
from scipy.ndimage import find_objects

from jobs.segmenter import Segmented

SMALL = 100  # pixels of a mask up to which polygons are exact
LEAST_IOU = 0.992  # of the mask and its polygons as pycocotools draws them; others reach 0.99
TOLERANCES = (2.0, 1.0, 0.5, 0.0)  # pixels by which a polygon may differ; with 0 it is exact

Ring = np.ndarray
"""The corners of a closed line between pixels, `float32 [N, 2]`, as x and y."""


def annotations(segmented: Segmented) -> list[dict[str, Any]]:
    """Return the regions of an image that are drawn as annotations of COCO, without ids.

    A region has one polygon for each of its parts that do not touch. A hole is cut out by a line of
    no width, which leads from the outline to the hole and back, because the format has no holes.
    """
    ids, regions = segmented.regions
    boxes = find_objects(ids)
    scores = {segment["id"]: segment["score"] for segment in segmented.result.segments}
    found = []
    for region in regions:
        rows, columns = boxes[region.id - 1]
        mask = ids[rows, columns] == region.id
        score = {} if segmented.task == "semantic" else {"score": round(scores[region.id], 4)}
        found.append({
            "category_id": segmented.taxonomy.categories[region.category].id,
            "segmentation": [
                np.add(polygon, (columns.start, rows.start)).ravel().tolist()
                for polygon in polygons(mask)
            ],
            "area": int(mask.sum()),
            "bbox": [columns.start, rows.start, *mask.shape[::-1]],
            "iscrowd": 0,
            **score,
        })  # fmt: skip
    return found


def polygons(mask: np.ndarray) -> list[Ring]:
    """Return the polygons of a mask, `bool [H, W]`, with the fewest corners that LEAST_IOU allows.

    Their coordinates are those of COCO: the pixel in the upper left corner reaches from 0 to 1.
    """
    parts = _parts(mask)
    found: list[Ring] = []
    for tolerance in TOLERANCES if np.count_nonzero(mask) > SMALL else (0.0,):
        found = [_joined(part, tolerance) for part in parts]
        found = [polygon for polygon in found if len(polygon) > 2]
        if _iou(found, mask) >= LEAST_IOU:
            break
    return found


def _parts(mask: np.ndarray) -> list[list[Ring]]:
    """Return the rings of each part of a mask, the outline first.

    OpenCV connects the centers of pixels. Here every pixel is doubled, so that it has a center in
    each quarter, which tells the corner of the pixel that is meant.
    """
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts: dict[int, list[Ring]] = {}
    if hierarchy is not None:
        parents = hierarchy[0, :, 3].tolist()
        order = sorted(range(len(contours)), key=lambda n: parents[n] >= 0)
        for n in order:
            owner = parents[n] if parents[n] >= 0 else n
            parts.setdefault(owner, []).append(_corners(contours[n][:, 0]))
    return list(parts.values())


def _corners(doubled: np.ndarray) -> Ring:
    """Return the corners of pixels along a line through doubled pixels, each once."""
    corners = (doubled + 1) // 2
    return corners[(corners != np.roll(corners, 1, axis=0)).any(1)].astype(np.float32)


def _joined(rings: list[Ring], tolerance: float) -> Ring:
    """Return one polygon that follows an outline and, by lines to and fro, each of its holes.

    A tolerance applies to the middles of the sides of pixels, because the line through those of a
    slanted edge has no steps.
    """
    if tolerance:
        rings = [(ring + np.roll(ring, -1, axis=0)) / 2 for ring in rings]
    outline, *holes = (cv2.approxPolyDP(ring, tolerance, closed=True)[:, 0] for ring in rings)
    for hole in sorted(
        (hole for hole in holes if len(hole) > 2), key=lambda hole: hole[:, 0].min()
    ):
        first = hole[:, 0].argmin()
        hole = np.roll(hole, -first, axis=0)
        near = np.square(outline - hole[0]).sum(1).argmin()
        bridge = [outline[: near + 1], hole, hole[:1], outline[near:]]
        outline = np.concatenate(bridge)
    return outline


def _iou(found: list[Ring], mask: np.ndarray) -> float:
    height, width = mask.shape
    if not found:
        return 0.0
    flat = [polygon.ravel().astype(float).tolist() for polygon in found]
    ours = rle.merge(rle.frPyObjects(flat, height, width))
    true = rle.encode(np.asfortranarray(mask, np.uint8))
    return np.asarray(rle.iou([ours], [true], [0])).item()
