"""Damage to a finished set is reported with file and offset, and a lost index is rebuilt."""

import io
import json
import re
import shutil
import tarfile

import cv2
import numpy as np
import pytest

from shards.build.build import build
from shards.errors import DataError
from shards.format.check import check_sample
from shards.format.codec import decode, encode
from shards.format.index import SampleIndex
from shards.format.manifest import MANIFEST, Manifest, digest
from shards.format.schema import MAX_PIXELS
from shards.parallel import processes
from shards.verify import verify
from tests.damage import flip
from tests.shards.build.test_build import tree
from tests.shards.format.test_formats import COMPLETE
from tests.shards.raw import SAMPLE


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("verified")
    build("coco", SAMPLE, out, shards=2, jobs=1, report=lambda line: None)
    return out


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


def check(out, **options):
    """Return the report of `verify`, and the text of its error."""
    report = []
    try:
        verify(out, runner=processes(1), report=report.append, **options)
    except DataError as error:
        return report, str(error)
    return report, ""


@pytest.mark.parametrize("sample", [None, 1])
def test_a_sound_set_has_no_defects(built, sample):
    report, error = check(built, sample=sample)
    assert not error
    assert [line.partition(":")[2][:14] for line in report] == [" 10 samples in", " 5 samples in "]
    assert check(built / "val", sample=sample)[1] == ""


def test_a_flipped_bit_is_found_in_its_sample(copy):
    index = SampleIndex.load(copy / "train")
    at = int(index.offset[2]) + 5000
    tar = copy / "train" / f"{int(index.shard[2]):06d}.tar"
    flip(tar, at, 1)
    _, error = check(copy)
    assert (
        f"{tar} at byte {int(index.offset[2])}: sample {index.key[2]} differs from the index"
        in error
    )
    assert f"at byte {int(index.offset[2])}: sample {index.key[2]}" in check(copy, sample=99)[1]
    assert check(copy, repair=True)[1] == error  # --repair does not accept damage


def test_a_damaged_header_is_found_at_its_byte(copy):
    index = SampleIndex.load(copy / "val")
    tar = copy / "val" / f"{int(index.shard[0]):06d}.tar"
    flip(tar, int(index.offset[0]) + 150, 1)
    assert f"{tar}: damaged tar header at byte {int(index.offset[0])}" in check(copy)[1]


def test_damage_after_the_last_sample_is_found(copy):
    flip(copy / "val/000000.tar", -1, 1)
    assert "the hash of the file differs from the manifest" in check(copy)[1]


def test_a_short_and_a_missing_shard(copy):
    tar = copy / "val/000000.tar"
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes()[:-512])
    assert (
        f"{tar} at byte {size - 512}: the file has {size - 512} bytes, the manifest lists {size}"
        in check(copy)[1]
    )
    tar.unlink()
    assert f"{tar}: the file is missing" in check(copy)[1]


@pytest.mark.parametrize("sample", [None, 2])
@pytest.mark.parametrize("damage", ["lost", "damaged"])
@pytest.mark.parametrize("name", ["samples.parquet", "000001.tar.idx"])
def test_a_lost_or_damaged_index_is_rebuilt(built, copy, name, damage, sample):
    path = copy / "train" / name
    path.unlink() if damage == "lost" else flip(path, 9, 1)
    _, error = check(copy, sample=sample)
    assert re.search(f"^1 problems; the first: {path}: the (file|offsets) ", error)
    assert "--repair" in error
    assert check(copy, repair=True)[1] == ""
    assert tree(copy) == tree(built)


def forge(folder, **fields):
    """Rewrite a manifest with other fields and the checksum of these."""
    path = folder / MANIFEST
    document = json.loads(path.read_text()) | fields
    document.pop("checksum")
    document["checksum"] = digest(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["../val/000000.tar", "/etc/passwd", "a\\b.tar", "..", ""])
def test_a_manifest_that_points_outside_is_rejected(copy, name):
    shards = json.loads((copy / "train" / MANIFEST).read_text())["shards"]
    forge(copy / "train", shards=[shards[0] | {"name": name}, *shards[1:]])
    with pytest.raises(DataError, match="not a tar in the set's folder"):
        Manifest.load(copy / "train")
    assert "not a tar in the set's folder" in check(copy)[1]


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "b/../../a.jpg", "b\\a.jpg"])
def test_members_that_leave_the_folder_are_rejected(copy, name):
    tar = copy / "val/000000.tar"
    size = tar.stat().st_size
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name))
    tar.write_bytes(stream.getvalue()[:1024].ljust(size, b"\0"))
    assert "at byte 0 leaves its folder" in check(copy)[1]


def test_a_key_in_two_shards_is_found(copy):
    folder = copy / "train"
    first, second = sorted(folder.glob("*.tar"))
    second.write_bytes(first.read_bytes())
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    forge(folder, shards=[shards[0], shards[0] | {"name": second.name}])
    assert "the manifest lists 6" in check(copy)[1]
    assert check(copy, repair=True)[1] == ""
    assert "occurs 2 times" in check(copy)[1]


def bomb(width, height):
    """Return a small PNG that declares a huge map."""
    png = bytearray(encode(COMPLETE)["segments.png"])
    png[16:24] = np.array([width, height], ">u4").tobytes()
    return bytes(png)


@pytest.mark.parametrize("size", [(1 << 15, (1 << 13) + 1), (1 << 31, 1), (4, MAX_PIXELS)])
def test_a_png_bomb_is_not_decoded(size, monkeypatch):
    monkeypatch.setattr("cv2.imdecode", None)  # decoding would fail
    with pytest.raises(DataError, match=rf"a\.segments\.png: not a PNG of at most {MAX_PIXELS}"):
        decode("a", {**encode(COMPLETE), "segments.png": bomb(*size)})


def photograph(**changes):
    """Return the members of a small sound sample, with some fields of its JSON changed."""
    image = cv2.imencode(".jpg", np.zeros((3, 4, 3), np.uint8))[1].tobytes()
    found = encode(COMPLETE) | {"jpg": image}
    document = json.loads(found["json"]) | changes
    return found | {"json": json.dumps(document).encode()}


NAMES = ("jpg", "json", "segments.png", "instances.png", "semantic.png")
CLASSES = int(COMPLETE.semantic.max())


def test_a_sound_sample_passes():
    check_sample("a", photograph(), NAMES, CLASSES)


@pytest.mark.parametrize(
    ("members", "pattern"),
    [
        ({"jpg": b"no image"}, "no readable header"),
        ({"jpg": encode(COMPLETE)["segments.png"][:60]}, "does not decode|no readable header"),
        ({"cls": b""}, "the members are"),
        (photograph(segments=[]), "more values than the 0 entries"),
        (photograph(instances=[]), r"layer and value \(1, 300\)"),
        (photograph(schema=2), "schema 2"),
        (photograph(color="red"), "the json member is damaged .color is unknown"),
        (photograph(width=3), "the map is not 3x3 pixels"),
    ],
)
def test_an_unsound_sample_is_rejected(members, pattern):
    with pytest.raises(DataError, match=pattern):
        check_sample("a", photograph() | members, NAMES, CLASSES)


def test_classes_out_of_range_are_rejected():
    with pytest.raises(DataError, match="category 1 of 1"):
        check_sample("a", photograph(), NAMES, 1)
    with pytest.raises(
        DataError, match=rf"semantic\.png has values beyond the {CLASSES - 1} classes"
    ):
        check_sample("a", photograph(), NAMES, CLASSES - 1)
