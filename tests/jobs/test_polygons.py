"""Polygons for labelling tools, drawn again by pycocotools and by a rule of this file."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from jobs.predict.inputs import ImageFile, Images
from jobs.predict.polygons import polygons
from jobs.predict.results import POLYGONS, Results
from jobs.segmenter import Segmented
from tests.jobs.test_gallery import TAXONOMY, segmented

LEAST_IOU = 0.99


def drawn(found, height, width):
    """Return the pixels whose centers lie inside polygons, by the even-odd rule along each row.

    A center that lies on the line belongs to the pixel if the inside is to its right.
    """
    inside = np.zeros((height, width), bool)
    middle = np.arange(height) + 0.5 + 1e-6  # no corner has this height
    for polygon in found:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            for row in np.flatnonzero((min(y0, y1) <= middle) & (middle < max(y0, y1))):
                cut = x0 + (middle[row] - y0) * (x1 - x0) / (y1 - y0)
                inside[row, max(0, int(np.ceil(cut - 0.5 - 1e-4))) :] ^= True
    return inside


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def ring():
    mask = np.zeros((60, 80), np.uint8)
    cv2.circle(mask, (35, 30), 25, 1, 8)
    return mask > 0


def parts():
    mask = np.zeros((60, 80), bool)
    mask[5:20, 5:30] = mask[30:50, 10:70] = True
    mask[10:14, 10:14] = mask[35:45, 20:30] = mask[38:41, 40:60] = False  # three holes
    mask[36:38, 24:26] = True  # an island in one of them
    mask[20:24, 30:34] = True  # touches the first part at a corner
    return mask


def blob():
    rng = np.random.default_rng(0)
    return cv2.GaussianBlur(rng.random((150, 200)).astype(np.float32), (0, 0), 6) > 0.5


@pytest.mark.parametrize("mask", [ring(), parts(), blob(), np.ones((11, 11), bool)])
def test_polygons_read_back_as_the_mask(mask):
    found = polygons(mask)
    assert iou(drawn(found, *mask.shape), mask) >= LEAST_IOU


def test_smooth_outlines_have_few_corners():
    disk = np.zeros((210, 210), np.uint8)
    cv2.circle(disk, (105, 105), 100, 1, -1)
    (found,) = polygons(disk > 0)
    assert len(found) < 60


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_polygons_of_small_masks_are_exact(height, width, seed, share):
    """Below 100 pixels, one wrong pixel is more than the tolerance."""
    mask = np.random.default_rng(seed).random((height, width)) < share
    np.testing.assert_array_equal(drawn(polygons(mask), height, width), mask)


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_pycocotools_reads_the_polygons_of_a_data_set(tmp_path, task):
    one = segmented([0, 2, 0], task)
    one.result.panoptic[10:30, 4:12] = one.result.semantic[10:30, 4:12] = 0  # class cat, and void
    results = Results(tmp_path, (task,), 0.0, "weights", has_polygons=True)
    images = Images(tmp_path)
    for id in ("a", "b"):
        images.sources[id], images.names[id] = ImageFile(tmp_path / id), f"{id}.jpg"
        for name in results.files(id):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        results.write(
            id, images.names[id], "stamp", Segmented(one.image, one.result, TAXONOMY, task)
        )
    results.finish(images, TAXONOMY, {"run": "mine", "step": 4}, {})
    coco = COCO(str(tmp_path / POLYGONS))
    assert [image["file_name"] for image in coco.loadImgs([1, 2])] == ["a.jpg", "b.jpg"]
    for image in (1, 2):
        entries = coco.loadAnns(coco.getAnnIds([image]))
        regions = one.regions.regions
        assert [e["category_id"] for e in entries] == [(1, 2, 300)[r.category] for r in regions]
        for entry, region in zip(entries, regions, strict=True):
            mask = one.regions.ids == region.id
            assert iou(coco.annToMask(entry).astype(bool), mask) >= LEAST_IOU
            assert entry["area"] == mask.sum()
            assert ("score" in entry) == (task == "panoptic")
    document = json.loads((tmp_path / POLYGONS).read_text())
    assert len({entry["id"] for entry in document["annotations"]}) == 2 * len(regions)
