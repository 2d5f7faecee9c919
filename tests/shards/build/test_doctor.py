"""Planted defects in COCO's layout: each gives its finding, and sound data gives none."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build.build import build
from shards.doctor import FINDINGS, REJECTED, RULES, load_findings
from shards.errors import DataError
from shards.format.index import SampleIndex
from shards.raw.json_entries import iterate_entries
from tests.shards.build.test_build import tree
from tests.shards.raw import edit, sky, write

DOCUMENT = Path(__file__).parents[3] / "docs" / "doctor.md"
IMAGE, MAP = "val2017/a.jpg", "annotations/panoptic_val2017/a.png"
PANOPTIC, INSTANCES = (f"annotations/{kind}_val2017.json" for kind in ("panoptic", "instances"))


@pytest.fixture
def raw(tmp_path):
    image = sky("a.jpg")
    image.masks.append((3, np.eye(24, 32, dtype=bool), 0))
    return write(tmp_path / "raw", [image, sky("b.jpg"), sky("c.jpg")])


def repaint(path, change, *args, **options):
    def plant(raw):
        picture = Image.open(raw / path)
        picture.load()
        change(picture).save(raw / path, *args, **options)

    return plant


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return repaint(IMAGE, lambda picture: picture, exif=exif)


def cut(raw):
    path = raw / IMAGE
    path.write_bytes(path.read_bytes()[: path.stat().st_size - 40])


def paint_unknown_id(picture):
    picture.putpixel((0, 0), (9, 9, 9))
    return picture


def annotation(**fields):
    return lambda raw: edit(raw / INSTANCES, lambda d: d["annotations"][0].update(fields))


def segments(change):
    return lambda raw: edit(raw / PANOPTIC, lambda d: change(d["annotations"][0]["segments_info"]))


def repeat_entry(where, **fields):
    """Repeat the first entry of a list of the instances file, with some fields changed."""
    return lambda raw: edit(raw / INSTANCES, lambda d: d[where].append(d[where][0] | fields))


def small(picture):
    return picture.resize((5, 5), Image.Resampling.NEAREST)


MORE = {"id": 9, "category_id": 3, "area": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0}
PLANTED = {
    "text for an image": (1, lambda raw: (raw / IMAGE).write_text("no image")),
    "half an image": (2, cut),
    "another size": (3, repaint(IMAGE, small)),
    "upside down": (4, rotated(3)),
    "on its side, truth as stored": (4, rotated(6)),
    "grayscale": (5, repaint(IMAGE, lambda picture: picture.convert("L"))),
    "CMYK": (5, repaint(IMAGE, lambda picture: picture.convert("CMYK"))),
    "PNG named JPEG": (6, repaint(IMAGE, lambda picture: picture, "PNG")),
    "no image": (7, lambda raw: (raw / IMAGE).unlink()),
    "no map": (8, lambda raw: (raw / MAP).unlink()),
    "text for a map": (8, lambda raw: (raw / MAP).write_text("no map")),
    "map of another size": (9, repaint(MAP, small)),
    "id only in the PNG": (10, repaint(MAP, paint_unknown_id)),
    "id only in the JSON": (11, segments(lambda infos: infos.append(MORE))),
    "segment declares another area": (12, segments(lambda infos: infos[0].update(area=7))),
    "instance declares another area": (12, annotation(area=700)),
    "unknown category": (13, annotation(category_id=55)),
    "stuff as an instance": (13, annotation(category_id=90)),
    "no polygon": (15, annotation(segmentation=[])),
    "annotation id twice": (16, repeat_entry("annotations", image_id=2)),
    "image id twice": (17, repeat_entry("images", file_name="d.jpg")),
    "photograph of train": (
        18,
        lambda raw: write(raw, [sky("t.jpg")], split="train"),
    ),
    "polygon of two points": (
        19,
        annotation(segmentation=[[1, 1, 8, 1, 8, 5, 1, 5], [1, 1, 3, 3]], area=28),
    ),
    "polygon outside": (19, annotation(segmentation=[[20, 4, 60, 4, 60, 8, 20, 8]], area=48)),
    "run lengths of another size": (
        20,
        annotation(segmentation={"size": [2, 2], "counts": [2, 2]}),
    ),
    "run lengths too short": (20, annotation(segmentation={"size": [24, 32], "counts": [5, 5]})),
    "entry without a mask": (
        22,
        lambda raw: edit(raw / INSTANCES, lambda d: d["annotations"][0].pop("segmentation")),
    ),
}


def quiet(raw, out, **options):
    return build("coco", raw, out, report=lambda line: None, **{"jobs": 1, **options})


def test_a_clean_set_has_no_findings(raw, tmp_path):
    assert quiet(raw, tmp_path / "out")["val"]["findings"] == {}
    assert (tmp_path / "out/val" / FINDINGS).read_bytes() == b""


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_defect_gives_its_finding_and_verdict(raw, tmp_path, case):
    code, plant = PLANTED[case]
    plant(raw)
    summary = quiet(raw, tmp_path / "out")["val"]
    lines = (tmp_path / "out/val" / FINDINGS).read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert {one["code"] for one in found} == {code} == set(summary["findings"])
    assert {one["verdict"] for one in found} == {RULES[code].verdict}
    assert all(one["file"].endswith(".jpg") and one["detail"] and one["fix"] for one in found)
    rejected = RULES[code].verdict == REJECTED
    kept = SampleIndex.load(tmp_path / "out/val").key
    assert sorted(kept) == (["b", "c"] if rejected else ["a", "b", "c"])
    if rejected:
        with pytest.raises(DataError, match=f"finding {code}"):
            quiet(raw, tmp_path / "strict", strict=True)
        with pytest.raises(DataError, match=f"finding {code}"):
            quiet(raw, tmp_path / "out", shards=2, strict=True)


def test_findings_are_the_same_whatever_the_processes_and_after_an_interruption(raw, tmp_path):
    write(tmp_path / "many", [sky(f"{n}.jpg") for n in range(12)])
    for n in range(4):
        (tmp_path / f"many/val2017/{n}.jpg").write_text("no image")
    quiet(tmp_path / "many", tmp_path / "1", shards=4)
    for jobs in (2, 4):
        quiet(tmp_path / "many", tmp_path / f"{jobs}", shards=4, jobs=jobs)
        assert tree(tmp_path / f"{jobs}") == tree(tmp_path / "1")
    folder = tmp_path / "4/val"
    kept = (folder / "000000.tar").stat().st_ino
    for name in ("manifest.json", FINDINGS, ".build/000001.json"):
        (folder / name).unlink()
    quiet(tmp_path / "many", tmp_path / "4", shards=4)
    assert tree(tmp_path / "4") == tree(tmp_path / "1")
    assert (folder / "000000.tar").stat().st_ino == kept
    assert len(load_findings(folder)) == 4


def test_added_images_rewrite_only_their_shards(tmp_path):
    images = [sky(f"{n}.jpg") for n in range(9)]
    raw, out = write(tmp_path / "raw", images[:-1]), tmp_path / "out"
    quiet(raw, out, shards=4)
    before = {path.name: path.stat().st_ino for path in (out / "val").glob("*.tar")}
    inputs = json.loads((out / "val/manifest.json").read_text())["inputs"]
    document = json.loads((raw / INSTANCES).read_text())
    for kind in (PANOPTIC, INSTANCES):
        (raw / kind).unlink()
    write(tmp_path / "more", images)
    for path in ("val2017/8.jpg", "annotations/panoptic_val2017/8.png", PANOPTIC, INSTANCES):
        (raw / path).write_bytes((tmp_path / "more" / path).read_bytes())
    assert len(json.loads((raw / INSTANCES).read_text())["images"]) == len(document["images"]) + 1
    quiet(raw, out, shards=4)
    after = {path.name: path.stat().st_ino for path in (out / "val").glob("*.tar")}
    assert sum(before[name] != after[name] for name in before) == 1
    assert json.loads((out / "val/manifest.json").read_text())["inputs"] != inputs


@pytest.mark.parametrize(
    ("text", "byte"),
    [
        ('{"images": [', 12),
        ('{"images": [{"id": 1,}]}', 21),
        ("", 0),
        ("[]", 0),
        ('{"images": [], "annotations": [], "categories": [] x', 51),
        ('{"images": ' + "[" * 100_000, 12),
        ('{"images": [], "annotations": [], "categories": []} {}', 52),
        ('{"images": [], "annotations": [], "categories": [],}', 51),
        ("{[]: 1}", 1),
        ("{1: 1}", 1),
    ],
)
def test_a_damaged_file_is_named_with_its_byte(raw, tmp_path, text, byte):
    (raw / INSTANCES).write_text(text)
    with pytest.raises(DataError, match=rf"instances_val2017.json: at byte {byte}:.*finding 22"):
        quiet(raw, tmp_path / "out")


def test_a_comma_before_the_end_of_a_list_is_refused(tmp_path):
    (tmp_path / "it.json").write_text('{"images": [{}, ]}')
    with pytest.raises(DataError, match="at byte 16: expected an item before ']'"):
        list(iterate_entries(tmp_path / "it.json", ["images"]))


@pytest.mark.parametrize("window", [16, 64, 4096])
def test_entries_are_those_of_the_standard_library(tmp_path, monkeypatch, window):
    monkeypatch.setattr("shards.raw.json_entries._WINDOW", window)
    path = tmp_path / "it.json"
    document = {"info": {"é": [1.5, None]}, "images": [{"id": 1, "n": "ü" * 30}, {"id": 2}]}
    for text in (json.dumps(document, ensure_ascii=False, indent=1), json.dumps(document)):
        path.write_text(text, encoding="utf-8")
        found = list(iterate_entries(path, ["images"]))
        assert [one.value for one in found] == [document["info"], *document["images"]]
        for one in found:
            assert json.loads(path.read_bytes()[one.start : one.end]) == one.value


def test_reading_a_file_reports_its_progress(tmp_path, monkeypatch):
    moved = []

    @contextlib.contextmanager
    def recorded_progress(name, total, in_bytes):
        yield moved.append
        assert (name, total, in_bytes) == ("it.json", sum(moved), True)

    monkeypatch.setattr("shards.raw.json_entries._WINDOW", 64)
    monkeypatch.setattr("shards.raw.json_entries.progress", recorded_progress)
    (tmp_path / "it.json").write_text(json.dumps({"images": [{"id": n} for n in range(99)]}))
    assert len(list(iterate_entries(tmp_path / "it.json", ["images"]))) == 99
    assert max(moved) < 100


def test_the_document_has_every_rule():
    lines = [
        f"| {code} | {rule.name} | {rule.verdict} | {rule.done} | {rule.fix} |"
        for code, rule in RULES.items()
    ]
    assert list(RULES) == list(range(1, 25))
    assert "\n".join(lines) in DOCUMENT.read_text()
