"""Shards read by webdataset, datasets, and Ray Data: the same values and types."""

import io
import json

import datasets
import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.build.build import build
from shards.format.codec import encode
from shards.format.schema import INSTANCES, SEGMENTS, Sample
from tests.shards.raw import RawImage, edit, sky, write
from tests.shards.sources.test_coco import samples


def _mixed(document):
    """Make the numbers of one annotation integers, and those of the other floats."""
    first, second = document["annotations"]
    first |= {"area": 6, "bbox": [0, 0, 3, 2]}
    second |= {"area": 5.5, "bbox": [0.5, 0, 3, 2]}


def _unattributed(document):
    """Remove the license and the origin of the second image."""
    del document["images"][1]["license"], document["images"][1]["flickr_url"]


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory):
    """Return a set whose first sample has no instances, and whose publisher mixes types."""
    folder = tmp_path_factory.mktemp("interop")
    box = np.zeros((24, 32), bool)
    box[:2, :3] = True
    ids = np.where(box, 300, 70000)
    images = [
        sky("a.jpg"),
        *(RawImage(f"{c}.jpg", (32, 24), ids, {70000: 90, 300: 3}, [(3, box, 0)]) for c in "bc"),
    ]
    raw = write(folder / "raw", images)
    edit(raw / "annotations/instances_val2017.json", _mixed)
    edit(raw / "annotations/panoptic_val2017.json", _unattributed)
    build("coco", raw, folder / "out", shards=1, jobs=1, report=lambda _: None)
    return folder / "out" / "val"


@pytest.fixture(scope="module")
def expected(shard_set) -> dict[str, Sample]:
    return dict(samples(shard_set))


def assert_same(found: dict[str, dict], expected: dict[str, Sample]) -> None:
    """Compare the JSON documents and maps of all samples."""
    assert list(found) == list(expected) == ["a", "b", "c"]
    for key, sample in expected.items():
        assert found[key]["json"] == json.loads(encode(sample)["json"])
        assert np.array_equal(found[key][SEGMENTS], sample.segments_map)
        stacked = sample.layers.reshape(-1, sample.width)
        assert np.array_equal(found[key][INSTANCES], stacked)


def kind(value):
    """Return the JSON type of a value; an empty list has no element type."""
    match value:
        case dict():
            return {name: kind(part) for name, part in value.items()}
        case list():
            return [kind(part) for part in value[:1]]
    return type(value)


def test_every_entry_has_the_same_types(expected):
    documents = [json.loads(encode(sample)["json"]) for sample in expected.values()]
    assert len({tuple(document) for document in documents}) == 1
    for name in ("segments", "instances"):
        kinds = [kind(entry) for document in documents for entry in document[name]]
        assert len(kinds) > 1
        assert all(other == kinds[0] for other in kinds)
        assert kinds[0]["area"] is float
        assert kinds[0]["bbox"] == [float]
    assert documents[1]["licence"] == ""
    assert [d["attribution"] for d in documents] == [
        "http://example.org/1",
        "",
        "http://example.org/3",
    ]


def test_webdataset(shard_set, expected):
    read = webdataset.WebDataset(str(shard_set / "000000.tar"), shardshuffle=False)
    found = {
        sample["__key__"]: {
            "json": json.loads(sample["json"]),
            **{
                name: np.asarray(Image.open(io.BytesIO(sample[name])))
                for name in (SEGMENTS, INSTANCES)
            },
        }
        for sample in read
    }
    assert_same(found, expected)


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets(shard_set, expected, tmp_path, streaming):
    read = datasets.load_dataset(
        "webdataset",
        data_files=str(shard_set / "*.tar"),
        split="train",
        cache_dir=str(tmp_path),
        streaming=streaming,
    )
    found = {
        sample["__key__"]: {
            "json": sample["json"],
            **{name: np.asarray(sample[name]) for name in (SEGMENTS, INSTANCES)},
        }
        for sample in read
    }
    assert_same(found, expected)


@pytest.mark.slow
def test_ray_data(shard_set, expected):
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        read = ray.data.read_webdataset(str(shard_set / "000000.tar")).take_all()
    finally:
        ray.shutdown()
    assert_same({sample["__key__"]: sample for sample in read}, expected)
