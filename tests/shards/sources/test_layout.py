"""Every source with label maps: defects give their findings, missing maps are reported."""

import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.data.stages import decode_stage
from pipeline.data.store import Store
from shards.errors import DataError, UsageError
from shards.format.label_maps import classes_of, segments_of
from shards.format.manifest import Manifest
from shards.format.schema import TASKS
from tests.shards import raw_ade20k, raw_cityscapes, raw_folder, raw_vistas
from tests.shards.raw_maps import findings, made, pixels, samples, save, write

LAYOUTS = [raw_ade20k, raw_cityscapes, raw_vistas, raw_folder]
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.SOURCE)


def rewrite(path, change):
    """Replace the picture in a file by what `change` returns for it."""
    with Image.open(path) as picture:
        picture.load()
    change(picture).save(path, picture.format)


def with_orientation(image, maps):
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(image) as picture:
        picture.save(image, picture.format, exif=exif)


def other_format(image, maps):
    with Image.open(image) as picture:
        picture.load()
    picture.save(image, "PNG" if image.suffix == ".jpg" else "JPEG")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shift_labels(image, maps):
    step = -1 if "annotations" in str(maps[0]) else 1
    values = pixels(maps[0]) + step
    save(maps[0], values.astype(np.uint16 if values.max() > 255 else np.uint8))


def unknown_label(image, maps):
    values = pixels(maps[0])
    values[0, 0] = 254
    save(maps[0], values.astype(np.uint16 if values.max() > 255 else np.uint8))


DEFECTS = {  # for one sample each: how to damage it, and the expected finding
    "no image": (lambda image, maps: image.write_bytes(b"no image"), 1),
    "image cut": (lambda image, maps: truncate(image), 2),
    "turned": (with_orientation, 4),
    "gray": (lambda image, maps: rewrite(image, lambda picture: picture.convert("L")), 5),
    "other format": (other_format, 6),
    "image missing": (lambda image, maps: image.unlink(), 7),
    "map missing": (lambda image, maps: maps[0].unlink(), 8),
    "last map missing": (lambda image, maps: maps[-1].unlink(), 8),
    "map cut": (lambda image, maps: truncate(maps[0]), 8),
    "map is text": (lambda image, maps: maps[-1].write_text("text"), 8),
    "map small": (lambda image, maps: rewrite(maps[0], lambda p: p.resize((9, 9))), 9),
    "last map small": (lambda image, maps: rewrite(maps[-1], lambda p: p.resize((9, 9))), 9),
    "off by one": (shift_labels, 14),
    "unknown": (unknown_label, 14),
}


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.SOURCE)
def defective(request, tmp_path_factory):
    """Build a set with every defect; return the layout, the folder, and the expected findings."""
    layout = request.param
    root = tmp_path_factory.mktemp(layout.SOURCE)
    write(layout, root / "raw")
    expected = []
    for seed, (name, (spoil, code)) in enumerate(DEFECTS.items(), start=200):
        name = name.replace(" ", "-")
        layout.write(root / "raw", "train", name, seed)
        image = layout.image(root / "raw", "train", name)
        spoil(image, layout.maps(root / "raw", "train", name))
        expected.append((f"{layout.PREFIX}{image.name}", code))
    made(layout, root / "raw", root / "out", tasks=list(TASKS))
    return layout, root, sorted(expected)


def test_each_defect_gives_its_finding_and_no_other(defective):
    _, root, expected = defective
    assert findings(root / "out/train") == expected
    assert findings(root / "out/val") == []
    assert len(samples(root / "out/train")) == 3 + sum(code in (4, 5, 6) for _, code in expected)


def test_labels_that_are_off_by_one_are_reported_as_such(defective):
    layout, root, _ = defective
    lines = (root / "out/train/findings.jsonl").read_text().splitlines()
    (line,) = [
        line for line in lines if "off-by-one" in line and '"code":14' in line.replace(" ", "")
    ]
    assert ("add 1" if layout is raw_ade20k else "subtract 1") in line
    (line,) = [line for line in lines if "254" in line]
    assert "unknown.png" in line or "unknown_" in line
    assert "off by one" not in line


@every_layout
def test_the_same_key_and_the_same_photograph_are_found(layout, tmp_path):
    write(layout, tmp_path / "raw")
    for name in ("a.b", "a_b"):
        layout.write(tmp_path / "raw", "train", name, 7)
    shutil.copy(
        layout.image(tmp_path / "raw", "train", "train0"),
        layout.image(tmp_path / "raw", "val", "val1"),
    )
    made(layout, tmp_path / "raw", tmp_path / "out")
    images = [layout.image(tmp_path, "train", name).name for name in ("a.b", "a_b")]
    assert findings(tmp_path / "out/train") == [(f"{layout.PREFIX}{name}", 17) for name in images]
    twin = layout.image(tmp_path, "val", "val1").name
    assert findings(tmp_path / "out/val") == [(f"{layout.PREFIX}{twin}", 18)]


@every_layout
def test_the_stream_has_targets_of_every_task(layout, tmp_path):
    write(layout, tmp_path / "raw")
    made(layout, tmp_path / "raw", tmp_path / "out")
    store = Store(tmp_path / "out/train")
    assert store.manifest.tasks == TASKS
    things = store.manifest.taxonomy.things
    for number in range(len(store)):
        for task in TASKS:
            sample = decode_stage(
                {"key": store.index.key[number], "stored": store.load(number)}, task, things
            )
            truth = sample["truth"]
            assert sample["image"].shape[:2] == truth.maps.shape[1:]
            assert truth.categories
            for layer, value in zip(truth.layer, truth.value, strict=True):
                assert (truth.maps[layer] == value).any()
            assert all(things[c] for c in truth.categories) == (task == "instance")


@every_layout
def test_a_task_is_served_only_if_no_image_lacks_its_truth(layout, tmp_path):
    write(layout, tmp_path / "raw")
    layout.maps(tmp_path / "raw", "train", "train1")[1].unlink()
    lines = made(layout, tmp_path / "raw", tmp_path / "out")
    served = Manifest.load(tmp_path / "out/train").tasks
    assert "semantic" in served
    assert "instance" not in served
    name = f"{layout.PREFIX}train1"
    assert any("not serve instance" in line and line.endswith(f": {name}") for line in lines)
    assert findings(tmp_path / "out/train") == []
    assert len(samples(tmp_path / "out/train")) == 3
    assert Manifest.load(tmp_path / "out/val").tasks == TASKS

    made(layout, tmp_path / "raw", tmp_path / "asked", tasks=["instance"])
    assert Manifest.load(tmp_path / "asked/train").tasks == ("instance",)
    image = layout.image(tmp_path, "train", "train1").name
    assert findings(tmp_path / "asked/train") == [(f"{layout.PREFIX}{image}", 8)]
    assert len(samples(tmp_path / "asked/train")) == 2


@every_layout
@pytest.mark.parametrize("task", TASKS)
def test_one_task_alone(layout, task, tmp_path):
    write(layout, tmp_path / "raw")
    made(layout, tmp_path / "raw", tmp_path / "all")
    made(layout, tmp_path / "raw", tmp_path / "out", tasks=[task])
    manifest = Manifest.load(tmp_path / "out/train")
    assert manifest.tasks == (task,)
    assert len(manifest.members) == 3
    if task == "instance" and layout is not raw_folder:
        assert all(manifest.taxonomy.things)
    whole = samples(tmp_path / "all/train")
    for name, sample in samples(tmp_path / "out/train").items():
        if task == "semantic":
            assert np.array_equal(sample.semantic, whole[name].semantic)
        else:
            assert sample.semantic is None


@every_layout
def test_images_without_truth_are_negatives_unless_dropped(layout, tmp_path):
    write(layout, tmp_path / "raw")
    nothing = {"vistas": 4, "folder": 255}.get(layout.SOURCE, 0)
    for path in layout.maps(tmp_path / "raw", "val", "val0"):
        rewrite(path, lambda picture: Image.fromarray(np.asarray(picture) * 0))
    maps = layout.maps(tmp_path / "raw", "val", "val0")
    save(maps[0], np.full(pixels(maps[0]).shape, nothing, np.uint8))
    if layout is raw_vistas:
        layout.forget(tmp_path / "raw", "val", "val0")
        save(maps[1], np.full(pixels(maps[1]).shape, 256 * nothing, np.uint16))
    made(layout, tmp_path / "raw", tmp_path / "out")
    (name,) = [name for name in samples(tmp_path / "out/val") if name.endswith("val0")]
    sample = samples(tmp_path / "out/val")[name]
    assert sample.segments == []
    assert not sample.segments_map.any()
    assert not sample.semantic.any()
    made(layout, tmp_path / "raw", tmp_path / "dropped", drop_empty=True)
    assert name not in samples(tmp_path / "dropped/val")
    assert len(samples(tmp_path / "dropped/val")) == 1


@every_layout
def test_a_missing_folder_is_named(layout, tmp_path):
    with pytest.raises(UsageError, match=r"images|leftImg8bit"):
        made(layout, tmp_path, tmp_path / "out")
    write(layout, tmp_path / "raw")
    with pytest.raises(UsageError, match="test"):
        made(layout, tmp_path / "raw", tmp_path / "out", splits=["test"])
    for path in {path.parent for path in layout.maps(tmp_path / "raw", "val", "val0")}:
        shutil.rmtree(path)
    with pytest.raises(DataError, match=r"unpack"):
        made(layout, tmp_path / "raw", tmp_path / "out", splits=["val"])


def test_files_of_other_kinds_among_the_images_are_reported(tmp_path):
    write(raw_ade20k, tmp_path / "raw")
    (tmp_path / "raw/images/training/index.db").write_bytes(b"")
    lines = made(raw_ade20k, tmp_path / "raw", tmp_path / "out")
    assert any("index.db" in line for line in lines)
    assert findings(tmp_path / "out/train") == []


def test_classes_of_maps_every_label_and_keeps_the_least_type():
    values = np.array([[0, 5, 9]], np.uint8)
    classes = classes_of(values, {0: 0, 5: 300, 9: 2}, "a.png")
    assert classes.tolist() == [[0, 300, 2]]
    assert classes.dtype == np.uint16
    assert classes_of(values, {0: 0, 5: 1, 9: 2}, "a.png").dtype == np.uint8


def test_segments_of_counts_and_boxes():
    ids = np.array([[0, 70000, 70000], [3, 70000, 0]], np.uint32)
    segments, numbered = segments_of(ids, lambda id: (id % 7, int(id == 3)))
    assert numbered.tolist() == [[0, 2, 2], [1, 2, 0]]
    assert [(s.id, s.category, s.iscrowd, s.area, s.bbox) for s in segments] == [
        (3, 3, 1, 1, [0, 1, 1, 1]),
        (70000, 0, 0, 3, [1, 0, 2, 2]),
    ]
    assert segments_of(ids * 0, lambda id: (0, 0))[0] == []
