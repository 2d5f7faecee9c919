"""Wrong data and wrong usage: the right error, in one line, with the file and the value."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build.build import build
from shards.build.destination import FolderDestination
from shards.errors import DataError, Failed, UsageError
from tests.shards.raw import RawImage, edit, sky, write

MAP = "annotations/panoptic_val2017/a.png"


def json_of(kind):
    return f"annotations/{kind}_val2017.json"


def change(kind, where, **fields):
    """Set fields of the first entry of a list in an annotation file."""

    def apply(raw):
        edit(raw / json_of(kind), lambda document: document[where][0].update(fields))

    return apply


def segment(**fields):
    def apply(document):
        document["annotations"][0]["segments_info"][0].update(fields)

    return lambda raw: edit(raw / json_of("panoptic"), apply)


def repeat(kind, where, **fields):
    """Repeat the first entry of a list in an annotation file, with some fields changed."""
    return lambda raw: edit(
        raw / json_of(kind), lambda document: document[where].append(document[where][0] | fields)
    )


def drop(kind, where, field):
    return lambda raw: edit(raw / json_of(kind), lambda document: document[where][0].pop(field))


def remove(path):
    return lambda raw: (raw / path).unlink()


def text(path, content):
    return lambda raw: (raw / path).write_text(content)


def resize(path):
    return lambda raw: Image.open(raw / path).resize((5, 5)).save(raw / path)


def both_names(raw, name):
    for kind in ("panoptic", "instances"):
        change(kind, "images", file_name=name)(raw)


def repeat_key(raw):
    both_names(raw, "b_png.png")
    edit(raw / json_of("panoptic"), lambda d: d["images"][1].update(file_name="b.png.png"))
    edit(raw / json_of("instances"), lambda d: d["images"][1].update(file_name="b.png.png"))


def two_formats(raw):
    (raw / "val2017/b.png").rename(raw / "val2017/b.JPEG")
    for kind in ("panoptic", "instances"):
        edit(raw / json_of(kind), lambda d: d["images"][1].update(file_name="b.JPEG"))


def no_maps(raw):
    (raw / "annotations/panoptic_val2017").rename(raw / "elsewhere")


RLE = {"size": [24, 32], "counts": [5, 5]}
DAMAGED = {
    "panoptic map missing": (remove("annotations/panoptic_val2017/a.png"), r"a\.png is missing"),
    "map folder missing": (no_maps, r"panoptic_val2017/.* unpack"),
    "image missing": (remove("val2017/a.png"), r"a\.png is missing.*finding 7"),
    "image of another size": (resize("val2017/a.png"), r"a\.png.*5x5.*32x24.*finding 3"),
    "image is text": (text("val2017/a.png", "no image"), r"a\.png: no decoder.*finding 1"),
    "map of another size": (
        resize("annotations/panoptic_val2017/a.png"),
        r"a\.png is 5x5, the image 32x24.*finding 9",
    ),
    "map is text": (text("annotations/panoptic_val2017/a.png", "x"), r"a\.png is unreadable"),
    "map is a JPEG": (
        lambda raw: Image.open(raw / MAP).convert("RGB").save(raw / MAP, "JPEG"),
        r"a\.png is a JPEG, not a PNG.*finding 8",
    ),
    "id only in the map": (segment(id=5), r"id 70000 is in the PNG but not in the JSON"),
    "id out of range": (segment(id=0), r"id 0 .*JSON.*finding 11"),
    "unknown category": (segment(category_id=55), r"a\.png: category id 55.*finding 13"),
    "segment area of text": (
        segment(area="wide"),
        r"a\.png: panoptic_val2017\.json at byte \d+: segments_info\[0\]: area 'wide'.*finding 22",
    ),
    "two maps of one image": (repeat("panoptic", "annotations"), r"2 panoptic annotations"),
    "files disagree on size": (
        change("instances", "images", width=31),
        r"list image 1 as 'a\.png' of size \(32, 24\) and 'a\.png' of size \(31, 24\)",
    ),
    "files disagree on name": (change("instances", "images", file_name="z.png"), r"'z\.png'"),
    "files share no image": (
        lambda raw: edit(raw / json_of("instances"), lambda d: d.update(images=[])),
        r"no image in common",
    ),
    "repeated image id": (
        repeat("instances", "images", file_name="c.png"),
        r"a\.png: instances_val2017.*2 images the id 1",
    ),
    "repeated category id": (
        repeat("panoptic", "categories", name="sea"),
        r"category id 90 occurs twice",
    ),
    "no categories": (
        lambda raw: edit(raw / json_of("panoptic"), lambda d: d.pop("categories")),
        r"panoptic_val2017\.json.*categories",
    ),
    "category without a kind": (drop("panoptic", "categories", "isthing"), r"isthing"),
    "truncated JSON": (text(json_of("panoptic"), '{"images": ['), r"panoptic_val2017\.json"),
    "stuff as instance": (change("instances", "annotations", category_id=90), r"100.*stuff"),
    "runs do not add up": (
        change("instances", "annotations", segmentation=RLE),
        r"100 has run lengths of.*finding 20",
    ),
    "polygon of text": (change("instances", "annotations", segmentation=["abcdef"]), "finding 22"),
    "no runs": (
        change("instances", "annotations", segmentation={**RLE, "counts": ""}),
        r"100 has run lengths of.*finding 20",
    ),
    "runs of another size": (
        change("instances", "annotations", segmentation={"size": [2, 2], "counts": [2, 2]}),
        r"100 has run lengths of.*finding 20",
    ),
    "repeated key": (repeat_key, r"b\.png\.png, b_png\.png have the key b_png .finding 17"),
    "two image formats": (two_formats, r"b\.JPEG: the extension of 1 other.* is png .finding 23"),
    "parent in the name": (lambda raw: both_names(raw, "../a.png"), r"'\.\./a\.png'"),
    "absolute name": (lambda raw: both_names(raw, "/etc/a.png"), r"'/etc/a\.png'"),
    "backslash in the name": (
        lambda raw: both_names(raw, "..\\a.png"),
        r"relative to the image folder",
    ),
    "line end in the name": (lambda raw: both_names(raw, "a\n.png"), r"control characters"),
    "number for a name": (lambda raw: both_names(raw, 7), r"file_name 7"),
    "no image name": (lambda raw: both_names(raw, "a.txt"), r"'a\.txt' has none of the extensions"),
    "long name": (lambda raw: both_names(raw, "a" * 252 + ".png"), r"too long"),
    "map name leaves the folder": (
        change("panoptic", "annotations", file_name="../../a.png"),
        r"'\.\./\.\./a\.png'",
    ),
}


@pytest.fixture
def raw(tmp_path):
    image = sky("a.png")
    image.masks.append((3, np.eye(24, 32, dtype=bool), 0))
    return write(tmp_path / "raw", [image, sky("b.png")])


def failing(raw, out, kind, pattern, **options):
    """Build strictly and expect an error of exactly this kind, in one line that matches."""
    with pytest.raises(kind) as error:
        build("coco", raw, out, report=lambda line: None, jobs=1, strict=True, **options)
    assert error.type is kind
    assert "\n" not in str(error.value)
    assert re.search(pattern, str(error.value)), error.value
    assert not list(out.rglob("manifest.json"))


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_data_is_named_and_leaves_no_manifest(raw, tmp_path, case):
    damage, pattern = DAMAGED[case]
    damage(raw)
    failing(raw, tmp_path / "out", DataError, pattern)


def test_an_id_only_in_the_json(raw, tmp_path):
    extra = {"id": 9, "category_id": 3, "area": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0}
    edit(
        raw / json_of("panoptic"),
        lambda document: document["annotations"][0]["segments_info"].append(extra),
    )
    failing(raw, tmp_path / "out", DataError, "id 9 is in the JSON but not in the PNG")


def test_a_split_without_any_truth(raw, tmp_path):
    for kind in ("panoptic", "instances"):
        (raw / json_of(kind)).unlink()
    failing(raw, tmp_path / "out", DataError, "neither panoptic_val2017.json nor instances_val")


def test_a_task_without_its_truth(raw, tmp_path):
    (raw / json_of("instances")).unlink()
    failing(raw, tmp_path / "out", DataError, "instances_val2017.json", tasks=["instance"])


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"splits": ["train"]}, "no train2017/"),
        ({"tasks": ["boxes"]}, "unknown task 'boxes'"),
        ({"limit": 0}, "--limit: 0 is too small"),
        ({"shards": 0}, "--shards: 0 is too small"),
    ],
)
def test_wrong_arguments(raw, tmp_path, options, pattern):
    failing(raw, tmp_path / "out", UsageError, pattern, **options)


def test_wrong_folders(raw, tmp_path):
    failing(tmp_path / "nowhere", tmp_path / "out", UsageError, "nowhere is not a folder")
    failing(raw / "annotations", tmp_path / "out", UsageError, "neither train2017/ nor val2017/")
    assert not (tmp_path / "out").exists()
    failing(raw, raw, UsageError, "is not a shard set")
    (tmp_path / "file").write_text("")
    failing(raw, tmp_path / "file", UsageError, "is not a folder")
    failing(raw, tmp_path / "file/out", UsageError, "file/out")
    with pytest.raises(UsageError, match="unknown source 'cocoa'; known are coco"):
        build("cocoa", raw, tmp_path / "out")


def test_other_files_are_left_alone(raw, tmp_path):
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/000000.tar").write_text("mine")
    failing(raw, tmp_path / "out", UsageError, "train, which is not a shard set")
    (tmp_path / "out/train/manifest.json").write_text('{"name": "of a web page"}')
    with pytest.raises(UsageError, match="train, which is not a shard set"):
        build("coco", raw, tmp_path / "out", report=lambda line: None)
    assert (tmp_path / "out/train/000000.tar").read_text() == "mine"
    assert (tmp_path / "out/train/000000.tar").read_text() == "mine"


def test_one_build_at_a_time(raw, tmp_path):
    with FolderDestination(tmp_path / "out/val").locked():
        failing(raw, tmp_path / "out", UsageError, "another process is building here")
    build("coco", raw, tmp_path / "out", report=lambda line: None)


def test_a_full_disk_is_an_error_and_the_next_run_resumes(raw, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        failing(
            raw,
            tmp_path / "out",
            Failed,
            "out: the disk is full; free space and run the same command",
        )
    assert not [path for path in (tmp_path / "out").rglob("*.tar*") if path.is_file()]
    build("coco", raw, tmp_path / "out", report=lambda line: None)
    assert (tmp_path / "out/val/manifest.json").exists()


def test_an_error_in_a_worker_process_reaches_the_caller(tmp_path):
    raw = write(tmp_path / "raw", [RawImage("a.png"), *(sky(f"{i}.png") for i in range(6))])
    resize("val2017/a.png")(raw)
    with pytest.raises(DataError, match=r"a\.png.*5x5"):
        build("coco", raw, tmp_path / "out", shards=2, jobs=2, strict=True, report=print)
    assert not Path(tmp_path / "out/val/manifest.json").exists()


def test_an_update_that_fails_leaves_no_manifest(raw, tmp_path):
    build("coco", raw, tmp_path / "out", report=lambda line: None)
    resize("val2017/b.png")(raw)
    failing(raw, tmp_path / "out", DataError, r"b\.png.*5x5")
