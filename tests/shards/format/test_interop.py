"""Others read our shards by their own means, and infer the same types from every sample."""

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
    """The numbers of one annotation are integers, those of the other floats."""
    first, second = document["annotations"]
    first |= {"area": 6, "bbox": [0, 0, 3, 2]}
    second |= {"area": 5.5, "bbox": [0.5, 0, 3, 2]}


def _unattributed(document):
    """The second photograph has neither licence nor origin."""
    del document["images"][1]["license"], document["images"][1]["flickr_url"]


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory):
    """A set whose first sample has no instances, and whose publisher mixes types."""
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
def ours(shard_set) -> dict[str, Sample]:
    return dict(samples(shard_set))


def assert_same(theirs: dict[str, dict], ours: dict[str, Sample]) -> None:
    """Documents and maps are ours, value by value."""
    assert list(theirs) == list(ours) == ["a", "b", "c"]
    for key, sample in ours.items():
        assert theirs[key]["json"] == json.loads(encode(sample)["json"])
        assert np.array_equal(theirs[key][SEGMENTS], sample.segments_map)
        stacked = sample.layers.reshape(-1, sample.width)
        assert np.array_equal(theirs[key][INSTANCES], stacked)


def kind(value):
    """The JSON type of a value, without that of empty lists."""
    match value:
        case dict():
            return {name: kind(part) for name, part in value.items()}
        case list():
            return [kind(part) for part in value[:1]]
    return type(value)


def test_every_entry_has_the_same_types(ours):
    documents = [json.loads(encode(sample)["json"]) for sample in ours.values()]
    assert len({tuple(document) for document in documents}) == 1
    for name in ("segments", "instances"):
        kinds = [kind(entry) for document in documents for entry in document[name]]
        assert len(kinds) > 1
        assert all(one == kinds[0] for one in kinds)
        assert kinds[0]["area"] is float
        assert kinds[0]["bbox"] == [float]
    assert documents[1]["licence"] == ""
    assert [d["attribution"] for d in documents] == [
        "http://example.org/1",
        "",
        "http://example.org/3",
    ]


def test_webdataset(shard_set, ours):
    read = webdataset.WebDataset(str(shard_set / "000000.tar"), shardshuffle=False)
    theirs = {
        sample["__key__"]: {
            "json": json.loads(sample["json"]),
            **{
                name: np.asarray(Image.open(io.BytesIO(sample[name])))
                for name in (SEGMENTS, INSTANCES)
            },
        }
        for sample in read
    }
    assert_same(theirs, ours)


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets(shard_set, ours, tmp_path, streaming):
    read = datasets.load_dataset(
        "webdataset",
        data_files=str(shard_set / "*.tar"),
        split="train",
        cache_dir=str(tmp_path),
        streaming=streaming,
    )
    theirs = {
        sample["__key__"]: {
            "json": sample["json"],
            **{name: np.asarray(sample[name]) for name in (SEGMENTS, INSTANCES)},
        }
        for sample in read
    }
    assert_same(theirs, ours)


@pytest.mark.slow
def test_ray_data(shard_set, ours):
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        read = ray.data.read_webdataset(str(shard_set / "000000.tar")).take_all()
    finally:
        ray.shutdown()
    assert_same({sample["__key__"]: sample for sample in read}, ours)
