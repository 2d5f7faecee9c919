"""`--hold-out`: photographs are divided by name, and crops of one photograph stay together."""

import pytest

from shards.build.build import build
from shards.build.hold_out import photograph_of
from shards.errors import DataError, UsageError
from shards.format.index import SampleIndex
from shards.format.manifest import Manifest
from tests.shards import raw_outlines as raw


def keys(folder):
    return {str(key) for key in SampleIndex.load(folder, Manifest.load(folder)).key}


def divided(root, out, share=0.25):
    build("labelme", root, out, jobs=1, hold_out=share, report=lambda _: None)
    return keys(out / "train"), keys(out / "val")


def test_the_division_covers_all_and_adding_images_moves_few(tmp_path):
    root = raw.labelme(tmp_path / "raw", 12)
    train, val = divided(root, tmp_path / "a")
    assert (len(train), len(val), train & val) == (9, 3, set())
    assert (train, val) == divided(root, tmp_path / "b")
    more_train, more_val = divided(raw.labelme(root, 1, first=12), tmp_path / "a")
    assert len(more_val - val) <= 1
    assert more_train | more_val == train | val | {"12"}


def test_crops_of_a_photograph_stay_together(tmp_path):
    for number in range(4):
        raw.labelme(tmp_path / "raw", 3, first=3 * number)
    for n in range(12):
        for ending in ("png", "json"):
            path = tmp_path / "raw" / f"{n}.{ending}"
            text = path.read_bytes().replace(b'.png"', b'-old.png"')
            path.write_bytes(text) if ending == "json" else None
            path.rename(path.with_name(f"photo{n // 3}_crop{n % 3}.{ending}"))
    train, val = divided(tmp_path / "raw", tmp_path / "out")
    assert {key.split("_")[0] for key in val} & {key.split("_")[0] for key in train} == set()
    assert (len(train), len(val)) == (9, 3)


@pytest.mark.parametrize(
    ("name", "photograph"),
    [
        ("a/IMG_0012.jpg", "a/IMG_0012"),
        ("IMG_0012_crop3.jpg", "IMG_0012"),
        ("IMG-tile-0-512.png", "IMG"),
        ("IMG_x512_y1024.png", "IMG"),
        ("IMG_r1_c2.png", "IMG"),
        ("IMG_12_jpg.rf.0a1b2c3d.jpg", "IMG_12"),
        ("crop_1.png", "crop_1"),
    ],
)
def test_the_name_of_a_photograph(name, photograph):
    assert photograph_of(name) == photograph


def test_what_cannot_be_divided(tmp_path):
    root = raw.labelme(tmp_path / "one", 1)
    with pytest.raises(DataError, match="only one photograph"):
        divided(root, tmp_path / "out")
    raw.labelme(root / "val", 1)
    with pytest.raises(UsageError, match="the splits train and val"):
        divided(root, tmp_path / "out")
    with pytest.raises(UsageError, match="not a share"):
        divided(root, tmp_path / "out", 1.5)
