"""LabelMe and YOLO: masks equal an independent rasterization, and what is wrong is a finding."""

import json

import numpy as np
import pytest

from shards.build.build import build
from shards.doctor import load_findings
from shards.errors import DataError, UsageError
from shards.format.manifest import Manifest
from shards.sources import labelme, yolo
from shards.verify import verify
from tests.shards import raw_outlines as raw
from tests.shards.raw_maps import samples


def made(source, root, out, **options):
    build(source, root, out, jobs=1, report=lambda _: None, **options)
    return out


def masks(sample):
    return [sample.layers[entry.layer] == entry.value for entry in sample.instances]


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("source", ["labelme", "yolo"])
def test_masks_equal_what_pillow_draws(source, tmp_path):
    root = getattr(raw, source)(tmp_path / "raw", 2)
    out = made(source, root, tmp_path / "out")
    found, names = samples(out / "train"), Manifest.load(out / "train").taxonomy.names
    assert (len(found), names) == (2, ("cat", "dog"))
    kinds = [("polygon", raw.TRIANGLE, 0), ("rectangle", raw.BOX, 1), ("circle", raw.CIRCLE, 0)]
    for sample in found.values():
        assert len(sample.instances) == (3 if source == "labelme" else 2)
        for mask, entry, (kind, points, category) in zip(
            masks(sample), sample.instances, kinds, strict=False
        ):
            assert entry.category == category
            assert entry.area == mask.sum()
            assert iou(mask, raw.drawn(points, kind)) > 0.85  # Pillow also draws the outline
            # no pixel differs beyond a border of one pixel
            grown = np.pad(raw.drawn(points, kind), 1)
            near = np.lib.stride_tricks.sliding_window_view(grown, (3, 3)).any((2, 3))
            assert not (mask & ~near).any()
    assert not load_findings(out / "train")
    verify(out / "train")


def test_shapes_of_one_group_are_one_object(tmp_path):
    shapes = [
        raw.shape("cat", raw.TRIANGLE, group_id=3),
        raw.shape("cat", raw.CIRCLE, "circle", group_id=3),
        raw.shape("dog", raw.BOX, "rectangle", group_id=3),
        raw.shape("cat", [[1, 1]], "point"),
    ]
    out = made("labelme", raw.labelme(tmp_path / "raw", 1, shapes), tmp_path / "out")
    (sample,) = samples(out / "train").values()
    assert [entry.category for entry in sample.instances] == [0, 1]
    (finding,) = load_findings(out / "train")
    assert (finding.code, finding.detail) == (19, "shape 4 (cat) is a point, which has no area")


@pytest.mark.parametrize(
    ("change", "code", "detail"),
    [
        ({"shapes": [raw.shape("cat", [[1, 2], [3]])]}, 22, "not a list of points"),
        ({"shapes": [raw.shape("cat", [[1, 2]], "mask")]}, 22, "shape_type 'mask'"),
        ({"shapes": [raw.shape("cat", [[1, 2], [3, "NaN"], [4, 4]])]}, 22, "y 'NaN'"),
        ({"shapes": [raw.shape("cat", [[1, 2], [1e9, 9], [4, 4]])]}, 22, "too far outside"),
        ({"shapes": [raw.shape("cat", [[1, 2], [5, 5]], "circle", group_id="x")]}, 22, "group_id"),
        ({"shapes": [{"label": "cat"}]}, 22, "points is missing"),
        ({"imageWidth": 65}, 3, "the image is 64x48, its truth 65x48"),
        ({"imagePath": "../../../etc/passwd.png"}, None, ""),
    ],
)
def test_a_wrong_file_of_labelme_is_a_finding(change, code, detail, tmp_path):
    root = raw.labelme(tmp_path / "raw", 3)
    path = root / "1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    out = made("labelme", root, tmp_path / "out")
    findings = load_findings(out / "train")
    assert [finding.code for finding in findings] == ([code] if code else [])
    assert all(detail in finding.detail for finding in findings)
    assert len(samples(out / "train")) == (2 if code else 3)


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("0 0.5 0.5 0.2 0.2\n", 22, "line 1 is a box, and training needs outlines"),
        ("2 0 0 1 0 1 1\n", 13, "line 1 of 1.txt has class 2 of 2"),
        ("-1 0 0 1 0 1 1\n", 13, "class -1"),
        ("0 0 0 30 0 30 40\n", 22, "coordinate 40, not a share"),
        ("0 0 0 1 0 1\n", 22, "5 coordinates"),
        ("0 0 0 nan 0 1 1\n", 22, "'nan'"),
        ("cat 0 0 1 0 1 1\n", 22, "the class 'cat'"),
        ("\udcff", 22, "decode"),
        ("", None, ""),
    ],
)
def test_a_wrong_file_of_yolo_is_a_finding(text, code, detail, tmp_path):
    root = raw.yolo(tmp_path / "raw", 3)
    (root / "labels/train/1.txt").write_bytes(text.encode(errors="surrogateescape"))
    out = made("yolo", root, tmp_path / "out")
    findings = load_findings(out / "train")
    assert [finding.code for finding in findings] == ([code] if code else [])
    assert all(detail in finding.detail for finding in findings)
    assert len(samples(out / "train")) == (2 if code else 3)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "the names of the classes are missing"),
        ("names: [a, a]", "occurs twice"),
        ("names: {0: a, 2: b}", "numbered 0, 2"),
        ("names: &x [*x]", "cannot be read"),
        ("names: [[a]]", "not a text"),
        ("nc: 2", "no list or mapping"),
    ],
)
def test_the_names_of_yolo(content, complaint, tmp_path):
    root = raw.yolo(tmp_path, 1)
    (root / "data.yaml").unlink() if content is None else (root / "data.yaml").write_text(content)
    with pytest.raises(DataError, match=complaint):
        yolo.load_names(root)


@pytest.mark.parametrize(
    ("name", "content"),
    [("data.yaml", "names:\n  0: cat\n  1: dog\n"), ("classes.txt", "cat\ndog\n\n")],
)
def test_forms_of_the_names_of_yolo(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert yolo.load_names(tmp_path).names == ("cat", "dog")


def test_layouts_of_yolo(tmp_path):
    root = raw.yolo(tmp_path / "a", 2)
    raw.yolo(root, 1, "valid", first=9)
    assert yolo.splits(root, print) == ["train", "val"]
    for split in ("train", "valid"):  # as Roboflow writes them
        (tmp_path / "b" / split).mkdir(parents=True)
        for kind in ("images", "labels"):
            (root / kind / split).rename(tmp_path / "b" / split / kind)
    assert yolo.splits(tmp_path / "b", print) == ["train", "val"]
    raw.image(tmp_path / "c" / "x.png", 0)
    (tmp_path / "c" / "x.txt").write_text("")
    assert yolo.splits(tmp_path / "c", print) == ["train"]


@pytest.mark.parametrize("source", [labelme, yolo])
def test_a_folder_without_labels(source, tmp_path):
    raw.image(tmp_path / "a.png", 0)
    with pytest.raises(UsageError, match="no labels of"):
        source.splits(tmp_path, print)
