"""Cityscapes: compare the shards of generated sets with the publisher's rules for the raw maps."""

import numpy as np
import pytest

from shards.format.manifest import Manifest
from tests.shards import raw_cityscapes
from tests.shards.raw_maps import (
    assert_segments,
    made,
    pixels,
    samples,
    segment_masks,
    semantic_labels,
)

# the label of every train id
CLASSES = [*(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23), *(24, 25, 26, 27, 28, 31, 32, 33)]
THINGS = CLASSES[11:]

LAYOUT = raw_cityscapes


def published(raw, split, name):
    """Return category, crowd, and mask by id, by the rules of the publisher's panoptic script."""
    ids = pixels(raw_cityscapes.maps(raw, split, name)[1])
    expected = {}
    for id in np.unique(ids).tolist():
        label = id if id < 1000 else id // 1000
        if label in CLASSES:
            expected[id] = label, int(id < 1000 and label in THINGS), ids == id
    return expected


@pytest.mark.parametrize(("split", "count"), [("train", 3), ("val", 2)])
def test_segments_are_the_publishers(raw, out, split, count):
    read = samples(out / split)
    assert len(read) == count
    crowds = 0
    for name, sample in read.items():
        expected = published(raw, split, name)
        assert_segments(sample.segments, segment_masks(sample), out / split, expected)
        crowds += sum(crowd for _, crowd, _ in expected.values())
        assert sample.file_name == f"ulm/{name}_leftImg8bit.png"
    assert crowds


def test_semantic_truth_is_the_map_of_labels(raw, out):
    for name, sample in samples(out / "train").items():
        labels = pixels(raw_cityscapes.maps(raw, "train", name)[0])
        ours = semantic_labels(sample, out / "train")
        assert np.array_equal(ours, np.where(np.isin(labels, CLASSES), labels, -1))


def test_the_classes_are_the_19_of_the_benchmark(out):
    manifest = Manifest.load(out / "val")
    assert [c.id for c in manifest.taxonomy.categories] == CLASSES
    assert manifest.taxonomy.things == (False,) * 11 + (True,) * 8
    assert manifest.tasks == ("panoptic", "instance", "semantic")
    assert manifest.members == ("png", "json", "segments.png", "semantic.png")
    assert "cityscapes-dataset.com" in manifest.licence[0]["url"]


def test_a_set_of_instances_alone_has_the_8_things_in_the_publishers_order(raw, tmp_path):
    made(raw_cityscapes, raw, tmp_path, tasks=("instance",))
    manifest = Manifest.load(tmp_path / "train")
    assert [c.id for c in manifest.taxonomy.categories] == THINGS
    assert manifest.taxonomy.names[:3] == ("person", "rider", "car")
