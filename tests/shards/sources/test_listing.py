"""Which files of a raw data set are images and maps, and which map belongs to which image."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.store import Store
from shards.build.build import build_sets
from shards.build.options import BuildOptions
from shards.doctor import Reject
from shards.errors import DataError, UsageError
from shards.format.codec import encode
from shards.format.schema import MAX_PIXELS, MAX_ROWS, Sample
from shards.raw.masks import pack
from shards.raw.segmentation import to_rle
from tests.shards import raw_ade20k, raw_cityscapes, raw_folder, raw_vistas
from tests.shards.raw_maps import findings, made, samples, save, write

LAYOUTS = [raw_ade20k, raw_cityscapes, raw_vistas, raw_folder]
CLUTTER = [".ipynb_checkpoints/a-checkpoint", "__MACOSX/train/._a", "._a", ".hidden", "@eaDir/a"]


def sample(root: Path, name: str, label: int = 0, map_name: str | None = None) -> None:
    """Write an image `images/train/NAME.jpg` and its map."""
    picture = root / "images/train" / f"{name}.jpg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (label, len(name), 9)).save(picture)
    save(root / "labels/train" / (map_name or f"{name}.png"), np.full((6, 8), label, np.uint8))
    (root / "classes.yaml").write_text(raw_folder.CLASSES)


def keys(root: Path) -> list[str]:
    return sorted(Store(root / "out/train").index.key)


def build(root: Path) -> list[str]:
    return made(raw_folder, root, root / "out", splits=["train"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.SOURCE)
def test_endings_are_compared_in_lower_case(layout, tmp_path):
    write(layout, tmp_path / "raw")
    made(layout, tmp_path / "raw", tmp_path / "lower")
    for path in (tmp_path / "raw").rglob("*"):
        if path.suffix in (".png", ".jpg"):
            path.rename(path.with_suffix(path.suffix.upper()))
    made(layout, tmp_path / "raw", tmp_path / "upper")
    assert findings(tmp_path / "upper/train") == []
    expected = samples(tmp_path / "lower/train")
    for image_id, found in samples(tmp_path / "upper/train").items():
        assert found.segments == expected[image_id].segments
        assert found.key == expected[image_id].key


@pytest.mark.parametrize("map_name", ["a.b.jpg.png", "A.B.PNG", "a.B.Jpg.png"])
def test_a_map_may_be_named_after_the_file_or_differ_in_case(tmp_path, map_name):
    sample(tmp_path, "a.b", 3, map_name)
    sample(tmp_path, "c", 7)
    build(tmp_path)
    found = samples(tmp_path / "out/train")
    assert [found[name].semantic.max() for name in ("a.b", "c")] == [2, 3]
    assert findings(tmp_path / "out/train") == []


def test_a_map_may_have_another_form_of_the_accents(tmp_path):
    name = "Übung é"
    sample(
        tmp_path, unicodedata.normalize("NFC", name), 3, unicodedata.normalize("NFD", name) + ".png"
    )
    build(tmp_path)
    assert len(samples(tmp_path / "out/train")) == 1


def test_of_two_maps_of_one_image_the_unused_one_is_named(tmp_path):
    sample(tmp_path, "a", 3)
    save(tmp_path / "labels/train/a.jpg.png", np.full((6, 8), 7, np.uint8))
    report = build(tmp_path)
    assert any("instead of" in line and line.endswith("a.jpg.png") for line in report)
    assert samples(tmp_path / "out/train")["a"].semantic.max() == 2


def test_clutter_is_not_data(tmp_path):
    sample(tmp_path, "a")
    for name in CLUTTER:
        sample(tmp_path, name)
        split = tmp_path / "images" / name / "b.jpg"
        split.parent.mkdir(parents=True)
        split.write_bytes(b"in a folder beside the splits")
    (tmp_path / "images/train/Thumbs.db").write_bytes(b"")
    report = made(raw_folder, tmp_path, tmp_path / "out")
    assert keys(tmp_path) == ["a"]
    assert findings(tmp_path / "out/train") == []
    assert not any("not images" in line for line in report)


def test_names_are_printed_without_what_a_terminal_obeys(tmp_path, capsys):
    sample(tmp_path, "a")
    for name in (b"\xff.db", b"\x1b[2J.db"):
        (tmp_path / "images/train" / os.fsdecode(name)).write_bytes(b"")
    build_sets(BuildOptions("folder", tmp_path, tmp_path / "out", jobs=1))
    assert r"not images: \x1b[2J.db, \udcff.db" in capsys.readouterr().out


def test_clutter_in_the_output_is_no_reason_to_refuse_it(tmp_path):
    sample(tmp_path, "a")
    build(tmp_path)
    (tmp_path / "out/.DS_Store").write_bytes(b"")
    assert any("nothing to do" in line for line in build(tmp_path))


def test_empty_splits_and_loose_files_are_named(tmp_path):
    sample(tmp_path, "a")
    (tmp_path / "images/val/.ipynb_checkpoints").mkdir(parents=True)
    (tmp_path / "images/loose.jpg").write_bytes(b"")
    report = made(raw_folder, tmp_path, tmp_path / "out")
    assert any("images/val is empty, so this split is not built" in line for line in report)
    assert any("outside the folders of the splits: loose.jpg" in line for line in report)
    shutil.rmtree(tmp_path / "images/train")
    with pytest.raises(UsageError, match=r"holds classes\.yaml, images, labels"):
        made(raw_folder, tmp_path, tmp_path / "out")


def test_maps_in_another_format_are_named(tmp_path):
    sample(tmp_path, "a")
    (tmp_path / "labels/train/a.png").rename(tmp_path / "labels/train/a.tif")
    report: list[str] = []
    with pytest.raises(DataError, match="label maps for none of the tasks"):
        build_sets(BuildOptions("folder", tmp_path, tmp_path / "out"), report=report.append)
    assert f"train: {tmp_path}/labels/train holds no *.png, only a.tif" in report


def test_maps_that_are_not_named_after_their_images_are_told(tmp_path):
    for name in ("a", "b"):
        sample(tmp_path, name)
        (tmp_path / f"labels/train/{name}.png").rename(tmp_path / f"labels/train/{name}_mask.png")
    for tasks in ((), ("semantic",)):
        with pytest.raises(
            DataError, match=r"the first map is a_mask\.png, .* such as a\.png"
        ) as error:
            build_sets(BuildOptions("folder", tmp_path, tmp_path / "out", tasks=tasks))
        assert error.value.problem.where == str(tmp_path / "labels/train")


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    sample(tmp_path, "a")
    sample(tmp_path / "elsewhere", "b", 3)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train/site").symlink_to(tmp_path / "elsewhere" / kind / "train")
        (tmp_path / "elsewhere" / kind / "train/loop").symlink_to(tmp_path / kind / "train")
    report = build(tmp_path)
    assert keys(tmp_path) == ["a", "site/b"]
    assert any("site/loop is a link to a folder above it" in line for line in report)
    assert findings(tmp_path / "out/train") == []


def test_a_pipe_or_a_broken_link_is_not_read(tmp_path):
    sample(tmp_path, "a")
    os.mkfifo(tmp_path / "images/train/pipe.jpg")
    (tmp_path / "images/train/broken.jpg").symlink_to(tmp_path / "none.jpg")
    (tmp_path / "images/train/circle.jpg").symlink_to(tmp_path / "images/train/circle.jpg")
    for name in ("broken", "circle"):
        save(tmp_path / f"labels/train/{name}.png", np.zeros((6, 8), np.uint8))
    report = build(tmp_path)
    assert any("pipe.jpg" in line for line in report)
    assert keys(tmp_path) == ["a"]
    assert findings(tmp_path / "out/train") == [("broken.jpg", 7), ("circle.jpg", 7)]


def test_names_and_formats_that_a_set_cannot_hold_are_findings(tmp_path):
    for name in ("a", "b", "line\nend", os.fsdecode(b"\xff")):
        sample(tmp_path, name)
    Image.new("RGB", (8, 6)).save(tmp_path / "images/train/c.png")
    save(tmp_path / "labels/train/c.png", np.zeros((6, 8), np.uint8))
    build(tmp_path)
    assert keys(tmp_path) == ["a", "b"]
    assert [code for _, code in findings(tmp_path / "out/train")] == [23, 23, 23]


def nested(count: int, width: int, height: int) -> list[dict]:
    """Return masks that all cover the whole image, so that each needs a layer."""
    whole = {"size": [height, width], "counts": [0, width * height]}
    return [to_rle("it", whole, width, height, None) for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "width", "height"), [(5, 1, MAX_PIXELS // 4), (11, 2, MAX_ROWS // 10)]
)
def test_layers_that_no_reader_decodes_are_not_written(count, width, height):
    masks = nested(count, width, height)
    with pytest.raises(Reject, match="overlapping instances") as error:
        pack(masks, range(count), height, width)
    assert error.value.code == 23


def test_a_map_that_no_reader_decodes_is_not_written():
    rows = MAX_ROWS + 1
    truth = np.zeros((rows, 1), np.uint8)
    big = Sample("a", b"", "jpg", "a.jpg", "coco", "1", 1, rows, semantic=truth)
    with pytest.raises(Reject, match="can be decoded"):
        encode(big)
