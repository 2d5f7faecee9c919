"""Mapillary Vistas: shards of generated sets, every task against its own raw truth."""

import json

import numpy as np
import pytest

from shards.manifest import Manifest
from tests.shards import raw_vistas
from tests.shards.raw import panoptic_ids
from tests.shards.raw_maps import (
    assert_segments,
    made,
    pixels,
    samples,
    segment_masks,
    semantic_labels,
    write,
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write(raw_vistas, tmp_path_factory.mktemp("vistas"))


@pytest.fixture(scope="module")
def out(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    made(raw_vistas, raw, out)
    return out


@pytest.mark.parametrize(("split", "count"), [("train", 3), ("val", 2)])
def test_segments_are_those_of_the_panoptic_json(raw, out, split, count):
    document = json.loads(raw_vistas.panoptic_json(raw, split).read_text())
    published = {one["image_id"]: one["segments_info"] for one in document["annotations"]}
    read = samples(out / split)
    assert read.keys() == published.keys()
    assert len(read) == count
    for name, sample in read.items():
        ids = panoptic_ids(raw_vistas.maps(raw, split, name)[2])
        expected = {
            entry["id"]: (entry["category_id"], entry["iscrowd"], ids == entry["id"])
            for entry in published[name]
        }
        assert_segments(sample["json"]["segments"], segment_masks(sample), out / split, expected)
        assert np.array_equal(sample["segments"] == 0, ids == 0)
    assert any(crowd for _, crowd, _ in expected.values())


def test_instances_are_the_values_of_their_map(raw, out):
    for name, sample in samples(out / "train").items():
        values = pixels(raw_vistas.maps(raw, "train", name)[1])
        expected = {
            value: (value // 256 + 1, 0, values == value)
            for value in np.unique(values).tolist()
            if raw_vistas.LABELS[value // 256][1]
        }
        assert 0 in expected  # the first bird
        entries = sample["json"]["instances"]
        masks = [sample["layers"][entry["layer"]] == entry["value"] for entry in entries]
        assert_segments(entries, masks, out / "train", expected)
        assert len(sample["layers"]) == 1


def test_semantic_truth_is_the_map_of_labels(raw, out):
    for name, sample in samples(out / "train").items():
        labels = pixels(raw_vistas.maps(raw, "train", name)[0])
        ours = semantic_labels(sample, out / "train")
        assert np.array_equal(ours, np.where(labels == 4, -1, labels + 1))


def test_classes_are_those_that_the_config_evaluates(out):
    manifest = Manifest.load(out / "train")
    assert manifest.taxonomy.names == ("Bird", "Person", "Curb", "Sky")
    assert [c.id for c in manifest.taxonomy.categories] == [1, 3, 2, 4]
    assert manifest.taxonomy.categories[1].color == (2, 4, 6)
    assert manifest.tasks == ("panoptic", "instance", "semantic")
    assert manifest.members == ("jpg", "json", *("segments.png", "instances.png", "semantic.png"))
