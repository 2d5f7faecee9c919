"""The fixed pictures of each evaluation."""

import numpy as np
import pytest

from pipeline.data.store import Store
from pipeline.pictures import gallery
from pipeline.pictures.gallery import Gallery, class_map
from pipeline.pictures.regions import Region, RegionMap
from pipeline.score.inference import Result
from shards.format.images import image_of


def result_of(height: int, width: int) -> Result:
    """Return one segment of class 3 in the upper half, and class 5 everywhere as semantic."""
    panoptic = np.zeros((height, width), np.int32)
    panoptic[: height // 2] = 1
    segments = [{"id": 1, "category": 3, "isthing": True, "score": 0.9}]
    semantic = np.full((height, width), 5)
    return Result(panoptic, segments, np.empty(0), np.empty(0, int), [], semantic, np.empty(0))


def test_a_class_map_has_the_classes_of_its_regions():
    ids = np.array([[0, 1], [2, 7]])
    regions = RegionMap(ids, [Region(1, 4), Region(2, 0)])
    assert class_map(regions).tolist() == [[0, 5], [1, 0]]  # 7 is not a region
    assert class_map(RegionMap(ids, [])).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(("task", "classes"), [("panoptic", {0, 4}), ("semantic", {6})])
def test_pictures_are_the_first_of_the_set_in_its_order(photographs, monkeypatch, task, classes):
    monkeypatch.setattr(gallery, "COUNT", 2)
    monkeypatch.setattr(gallery, "MAX_SIDE", 50)
    store, kept = Store(photographs / "val"), Gallery(task)
    for number in (2, 1, 0):
        sample = store.load(number)
        image = image_of(sample)
        kept.add(number, image, sample, result_of(*image.shape[:2]))
    pictures = kept.gathered()
    assert [picture.name for picture in pictures] == [store.load(n).key for n in (0, 1)]
    for picture in pictures:
        assert max(picture.image.shape) == 50
        assert picture.truth.shape == picture.prediction.shape == picture.image.shape[:2]
        assert set(np.unique(picture.prediction).tolist()) == classes
    true = np.unique(store.load(0).classes()).tolist()
    assert set(np.unique(pictures[0].truth).tolist()) <= {*true, 0}
