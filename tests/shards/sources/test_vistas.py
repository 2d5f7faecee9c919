"""Mapillary Vistas: compare the shards of generated sets with the annotations of every task."""

import json

import numpy as np
import pytest

from shards.errors import DataError
from shards.format.manifest import Manifest
from tests.shards import raw_vistas
from tests.shards.raw import edit, panoptic_ids
from tests.shards.raw_maps import (
    assert_segments,
    findings,
    made,
    pixels,
    samples,
    segment_masks,
    semantic_labels,
    write,
)

LAYOUT = raw_vistas


@pytest.mark.parametrize(("split", "count"), [("train", 3), ("val", 2)])
def test_segments_are_those_of_the_panoptic_json(raw, out, split, count):
    document = json.loads(raw_vistas.panoptic_json(raw, split).read_text())
    published = {entry["image_id"]: entry["segments_info"] for entry in document["annotations"]}
    read = samples(out / split)
    assert read.keys() == published.keys()
    assert len(read) == count
    for name, sample in read.items():
        ids = panoptic_ids(raw_vistas.maps(raw, split, name)[2])
        expected = {
            entry["id"]: (entry["category_id"], entry["iscrowd"], ids == entry["id"])
            for entry in published[name]
        }
        assert_segments(sample.segments, segment_masks(sample), out / split, expected)
        assert np.array_equal(sample.segments_map == 0, ids == 0)
    assert any(crowd for _, crowd, _ in expected.values())


def test_instances_are_the_values_of_their_map(raw, out):
    for name, sample in samples(out / "train").items():
        values = pixels(raw_vistas.maps(raw, "train", name)[1])
        expected = {
            value: (value // 256 + 1, 0, values == value)
            for value in np.unique(values).tolist()
            if raw_vistas.LABELS[value // 256][1]
        }
        assert 0 in expected  # the first bird: label 0, instance 0
        entries = sample.instances
        masks = [sample.layers[entry.layer] == entry.value for entry in entries]
        assert_segments(entries, masks, out / "train", expected)
        assert len(sample.layers) == 1


def test_semantic_truth_is_the_map_of_labels(raw, out):
    for name, sample in samples(out / "train").items():
        labels = pixels(raw_vistas.maps(raw, "train", name)[0])
        ours = semantic_labels(sample, out / "train")
        assert np.array_equal(ours, np.where(labels == 4, -1, labels + 1))


def test_classes_are_those_that_the_config_evaluates(out):
    manifest = Manifest.load(out / "train")
    assert manifest.taxonomy.names == ("Bird", "Curb", "Person", "Sky")
    assert [c.id for c in manifest.taxonomy.categories] == [1, 2, 3, 4]
    assert manifest.taxonomy.categories[2].color == (2, 4, 6)
    assert manifest.tasks == ("panoptic", "instance", "semantic")
    assert manifest.members == ("jpg", "json", *("segments.png", "instances.png", "semantic.png"))


def test_what_map_and_json_do_not_share_is_found(tmp_path):
    raw = write(raw_vistas, tmp_path / "raw", train=6)

    def spoil(document):
        segments = [annotation["segments_info"] for annotation in document["annotations"]]
        segments[0].pop()
        segments[1].append(segments[1][0] | {"id": 99})
        segments[2][0]["category_id"] = 5  # the label "unlabeled", which is not a class
        segments[3][0]["area"] = "wide"
        segments[4][0]["area"] *= 2
        del document["annotations"][5]["segments_info"]

    edit(raw_vistas.panoptic_json(raw, "train"), spoil)
    made(raw_vistas, raw, tmp_path / "out")
    codes = enumerate([10, 11, 13, 22, 12, 22])
    assert findings(tmp_path / "out/train") == [(f"train{n}.jpg", code) for n, code in codes]
    assert list(samples(tmp_path / "out/train")) == ["train4"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", "{}"),
        ("config.json", '{"labels": [{"readable": "Bird"}]}'),
        (
            "config.json",
            '{"labels": [{"readable": "Bird", "instances": true, "evaluate": true, "color": [1]}]}',
        ),
        ("training/panoptic/panoptic_2018.json", None),
        ("training/panoptic/panoptic_2018.json", '{"annotations": ['),
        ("training/panoptic/panoptic_2018.json", '{"annotations": [{}]}'),
    ],
)
def test_json_that_is_missing_or_damaged_is_named(path, text, tmp_path):
    raw = write(raw_vistas, tmp_path / "raw", train=1)
    (raw / path).unlink()
    if text:
        (raw / path).write_text(text)
    with pytest.raises(DataError, match=path):
        made(raw_vistas, raw, tmp_path / "out")


def test_a_further_image_changes_only_its_shard(tmp_path):
    raw = write(raw_vistas, tmp_path / "raw", train=6)
    made(raw_vistas, raw, tmp_path / "out", shards=8)
    before = [shard.sha256 for shard in Manifest.load(tmp_path / "out/train").shards]
    inodes = [path.stat().st_ino for path in sorted(tmp_path.glob("out/train/*.tar"))]
    raw_vistas.write(raw, "train", "another", 50)
    edit(
        raw_vistas.panoptic_json(raw, "train"),
        lambda document: document["annotations"].insert(0, document["annotations"].pop()),
    )
    made(raw_vistas, raw, tmp_path / "out", shards=8)
    after = [shard.sha256 for shard in Manifest.load(tmp_path / "out/train").shards]
    kept = [path.stat().st_ino for path in sorted(tmp_path.glob("out/train/*.tar"))]
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
    assert sum(old != new for old, new in zip(inodes, kept, strict=True)) == 1
