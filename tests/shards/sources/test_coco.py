"""COCO: compare the shards of a CC BY sample and of tiny sets with other libraries.

The libraries are pycocotools, PIL, and webdataset.
"""

import io
import json

import numpy as np
import pytest
import webdataset
from PIL import Image
from pycocotools.coco import COCO

from shards.build.build import build
from shards.format.codec import decode
from shards.format.index import SampleIndex
from shards.format.manifest import Manifest
from shards.format.tar import members
from tests.shards.raw import SAMPLE, RawImage, edit, panoptic_ids, sky, write


def samples(folder):
    """Yield (key, decoded sample) in the order of the index."""
    manifest, index = Manifest.load(folder), SampleIndex.load(folder)
    for i, key in enumerate(index.key):
        blob = (folder / manifest.shards[index.shard[i]].name).read_bytes()
        start = int(index.offset[i])
        yield key, decode(key, members(blob[start : start + int(index.length[i])]))


def tiny(root, images, lines=None, splits=("val",), raw=None, **options):
    """Build `images`, and return the decoded samples by key; `lines` collects the report."""
    write(root / "raw", images, **(raw or {}))
    report = (lines if lines is not None else []).append
    build("coco", root / "raw", root / "out", splits=list(splits), report=report, **options)
    return dict(samples(root / "out" / "val"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("ccby")
    return out, build("coco", SAMPLE, out, shards=2, jobs=1, report=lambda line: None)


@pytest.mark.parametrize(("split", "count"), [("train", 10), ("val", 5)])
def test_stock_webdataset_reads_the_shards(built, split, count):
    out, summary = built
    tars = sorted(str(path) for path in (out / split).glob("*.tar"))
    read = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(read) == count == summary[split]["samples"]
    for sample in read:
        raw = SAMPLE / f"{split}2017" / f"{sample['__key__']}.jpg"
        assert sample["jpg"] == raw.read_bytes()
        expected = {"jpg", "json", "segments.png", "instances.png"}
        assert {name for name in sample if not name.startswith("__")} == expected
        truth = json.loads(sample["json"])
        assert (truth["width"], truth["height"]) == Image.open(raw).size
        assert truth["licence"] == "http://creativecommons.org/licenses/by/2.0/"
        segments = np.asarray(Image.open(io.BytesIO(sample["segments.png"])))
        assert segments.shape == (truth["height"], truth["width"])
        assert segments.max() == len(truth["segments"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_panoptic_maps_are_the_publishers_segment_by_segment(built, split):
    out, _ = built
    annotations = SAMPLE / "annotations"
    published = json.loads((annotations / f"panoptic_{split}2017.json").read_text())
    by_image = {str(entry["image_id"]): entry for entry in published["annotations"]}
    categories = Manifest.load(out / split).taxonomy.categories
    for _, sample in samples(out / split):
        annotation = by_image.pop(sample.image_id)
        ids = panoptic_ids(annotations / f"panoptic_{split}2017" / annotation["file_name"])
        entries = zip(annotation["segments_info"], sample.segments, strict=True)
        for n, (raw, ours) in enumerate(entries, 1):
            assert np.array_equal(sample.segments_map == n, ids == raw["id"])
            assert categories[ours.category].id == raw["category_id"]
            assert all(
                getattr(ours, name) == raw[name] for name in ("id", "area", "bbox", "iscrowd")
            )
        assert np.array_equal(sample.segments_map == 0, ids == 0)
    assert not by_image


@pytest.mark.parametrize("split", ["train", "val"])
def test_instances_are_the_masks_of_pycocotools(built, split):
    out, _ = built
    coco = COCO(SAMPLE / f"annotations/instances_{split}2017.json")
    categories = Manifest.load(out / split).taxonomy.categories
    seen = 0
    for _, sample in samples(out / split):
        raw = coco.imgToAnns[int(sample.image_id)]
        for annotation, ours in zip(raw, sample.instances, strict=True):
            mask = sample.layers[ours.layer] == ours.value
            assert np.array_equal(mask, coco.annToMask(annotation).astype(bool))
            assert categories[ours.category].id == annotation["category_id"]
            for name in ("id", "area", "bbox", "iscrowd"):
                assert getattr(ours, name) == annotation[name]
            seen += 1
    assert seen == len(coco.anns) > 0


def test_the_taxonomy_is_things_by_id_then_stuff_by_id(built, tmp_path):
    out, _ = built
    published = json.loads((SAMPLE / "annotations/panoptic_val2017.json").read_text())["categories"]
    things = [c["id"] for c in published if c["isthing"]]
    stuff = [c["id"] for c in published if not c["isthing"]]
    taxonomy = Manifest.load(out / "val").taxonomy
    assert [c.id for c in taxonomy.categories] == sorted(things) + sorted(stuff)
    assert taxonomy.things == (True,) * 80 + (False,) * 53
    tiny(tmp_path, [sky("a.png")])
    assert Manifest.load(tmp_path / "out/val").taxonomy.names == ("cat", "dog", "sky")


def test_overlap_takes_a_second_layer_and_order_is_by_area_then_id(tmp_path):
    masks = np.zeros((3, 24, 32), bool)
    masks[0, 0:4, 0:4] = masks[1, 2:12, 2:12] = masks[2, 20:24, 0:4] = True  # 16, 100, 16 pixels
    image = RawImage("a.png", masks=[(3, masks[0], 0), (7, masks[1], 0), (3, masks[2], 0)])
    sample = tiny(tmp_path, [image], raw={"panoptic": False})["a"]
    places = [(i.layer, i.value) for i in sample.instances]
    assert places == [(1, 1), (0, 1), (0, 2)]
    assert sample.layers.shape == (2, 24, 32)
    assert sample.layers.dtype == np.uint8
    for mask, (layer, value) in zip(masks, places, strict=True):
        assert np.array_equal(sample.layers[layer] == value, mask)


def test_a_crowd_of_run_lengths_keeps_its_flag_and_mask(tmp_path):
    crowd = np.random.default_rng(0).random((24, 32)) < 0.5
    image = RawImage("a.png", masks=[(7, crowd, 1)])
    sample = tiny(tmp_path, [image], raw={"panoptic": False})["a"]
    (entry,) = sample.instances
    assert entry.iscrowd == 1
    assert np.array_equal(sample.layers[entry.layer] == entry.value, crowd)


def test_more_than_255_segments_make_a_16_bit_map(tmp_path):
    ids = np.arange(1, 301).reshape(15, 20)
    image = RawImage("a.png", (20, 15), ids, {int(i): 3 for i in ids.ravel()[::-1]})
    sample = tiny(tmp_path, [image], raw={"instances": False})["a"]
    assert sample.segments_map.dtype == np.uint16
    assert np.array_equal(sample.segments_map, 301 - ids)


def test_images_without_annotations_are_kept_as_negatives(tmp_path):
    lines = []
    sample = tiny(tmp_path, [sky("a.png"), RawImage("b.png")], lines)["b"]
    assert sample.segments == sample.instances == []
    assert not sample.segments_map.any()
    assert sample.layers.shape == (1, 24, 32)
    assert not sample.layers.any()
    assert any("1 images have no panoptic annotation" in line for line in lines)


@pytest.mark.parametrize(
    ("raw", "served", "missing"),
    [
        ({"panoptic": False}, {"instance"}, "panoptic_val2017.json"),
        ({"instances": False}, {"panoptic", "semantic"}, "instances_val2017.json"),
    ],
)
def test_a_missing_annotation_file_is_reported_and_its_task_is_not_served(
    tmp_path, raw, served, missing
):
    lines = []
    sample = tiny(tmp_path, [sky("a.png")], lines, raw=raw)["a"]
    manifest = Manifest.load(tmp_path / "out/val")
    assert set(manifest.tasks) == served
    assert any(missing in line for line in lines)
    absent = "segments_map" if "panoptic" in raw else "layers"
    assert getattr(sample, absent) is None
    assert len(manifest.members) == 3


def test_tasks_restrict_the_truth_and_the_categories(tmp_path):
    tiny(tmp_path, [sky("a.png")], tasks=["instance"])
    manifest = Manifest.load(tmp_path / "out/val")
    assert manifest.tasks == ("instance",)
    assert manifest.members == ("png", "json", "instances.png")
    assert manifest.taxonomy.names == ("cat", "dog")


def test_an_image_that_one_file_does_not_list_is_left_out_and_reported(tmp_path):
    write(tmp_path / "raw", [sky("a.png"), sky("b.png")])
    path = tmp_path / "raw/annotations/instances_val2017.json"
    edit(path, lambda document: document["images"].pop())
    lines = []
    build("coco", tmp_path / "raw", tmp_path / "out", report=lines.append)
    assert [key for key, _ in samples(tmp_path / "out/val")] == ["a"]
    assert any("1 images of panoptic_val2017.json are left out" in line for line in lines)


def test_the_other_accepted_layout(tmp_path):
    write(tmp_path / "raw", [sky("a.png")])
    raw = tmp_path / "raw"
    (raw / "images").mkdir()
    (raw / "val2017").rename(raw / "images/val2017")
    (raw / "annotations/panoptic_val2017").rename(raw / "panoptic_val2017")
    lines = []
    build("coco", raw, tmp_path / "out", report=lines.append)
    assert [key for key, _ in samples(tmp_path / "out/val")] == ["a"]
    assert any(line.startswith("train: there is no train2017/") for line in lines)


def test_keys_are_relative_stems_without_dots(tmp_path):
    read = tiny(tmp_path, [sky("a.b/c.d.png"), sky("e.png")])
    assert list(read) == ["a_b/c_d", "e"]
    (tar,) = (tmp_path / "out/val").glob("*.tar")
    stock = webdataset.WebDataset(str(tar), shardshuffle=False)
    assert [sample["__key__"] for sample in stock] == ["a_b/c_d", "e"]
