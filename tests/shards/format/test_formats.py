"""The parts of the shard format: samples, tar bytes, maps, manifest, and taxonomy."""

import contextlib
import dataclasses
import io
import json
import tarfile

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from shards.doctor import Doctor, Reject
from shards.errors import DataError, UsageError
from shards.format.codec import decode, encode
from shards.format.index import scan
from shards.format.manifest import File, Manifest, Shard
from shards.format.schema import Instance, Sample, Segment, key_of
from shards.format.tar import BLOCK, members
from shards.format.taxonomy import Category, Taxonomy
from shards.raw.images import CHECK_FLAGS
from shards.raw.masks import number_segments, pack
from shards.raw.segmentation import to_rle
from tests.shards.raw import SAMPLE as SAMPLE_IMAGES


def tar(*files: tuple[str, bytes]) -> bytes:
    """Return a tar file of the standard library without its end blocks."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, payload in files:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
        end = archive.offset
    return stream.getvalue()[:end]


SAMPLE = tar(("a/b.jpg", b"x" * 700), ("a/b.json", b"{}"), ("a/b.segments.png", b""))


@pytest.mark.parametrize("view", [bytes, memoryview])
def test_members_are_payloads_by_extension(view):
    assert members(view(SAMPLE)) == {"jpg": b"x" * 700, "json": b"{}", "segments.png": b""}


@given(st.integers(0, len(SAMPLE) - 1))
def test_truncated_members_are_rejected_or_whole(length):
    boundaries = {
        1536: 1,
        2560: 2,
    }  # after a member, nothing is damaged
    if length in boundaries:
        assert len(members(SAMPLE[:length])) == boundaries[length]
    else:
        with pytest.raises(DataError):
            members(SAMPLE[:length])


@given(st.integers(0, 511), st.integers(1, 255))
def test_a_damaged_header_is_rejected(position, flip):
    damaged = bytearray(SAMPLE)
    damaged[1536 + position] ^= flip
    try:
        found = members(bytes(damaged))
    except DataError:
        return
    assert found == members(SAMPLE)  # for example, a space in the checksum field became a zero


@pytest.mark.parametrize(
    "files",
    [
        [("a.jpg", b""), ("b.json", b"")],
        [("a.jpg", b""), ("a.jpg", b"")],
        [("a", b"")],
        [(".jpg", b"")],
        [],
    ],
)
def test_members_that_are_not_one_sample_are_rejected(files):
    with pytest.raises(DataError):
        members(tar(*files))


def test_links_are_rejected():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="not a complete file"):
        members(stream.getvalue()[:512])


def test_scan_rejects_a_truncated_shard(tmp_path):
    path = tmp_path / "0.tar"
    document = encode(COMPLETE)["json"]
    whole = tar(("a.json", document), ("b.json", document))
    path.write_bytes(whole + bytes(1024))
    assert [(row["key"], row["offset"], row["segments"]) for row in scan(path)] == [
        ("a", 0, len(COMPLETE.segments)),
        ("b", BLOCK + -(-len(document) // BLOCK) * BLOCK, len(COMPLETE.segments)),
    ]
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError):
        scan(path)


COMPLETE = Sample(
    key="a",
    image=b"image",
    ext="jpg",
    file_name="a.jpg",
    source="coco",
    image_id="7",
    width=4,
    height=3,
    segments=[Segment(5, 1, 0, 3.5, [0, 1, 2, 2.5])],
    segments_map=np.eye(3, 4, dtype=np.uint8),
    instances=[Instance(9, 0, 1, 3, [0, 0, 3, 3], 1, 300)],
    layers=np.stack([np.zeros((3, 4)), np.eye(3, 4) * 300]).astype(np.uint16),
    semantic=np.arange(12, dtype=np.uint8).reshape(3, 4),
    rights={"licence": "http://cc/by"},
)


def test_decode_is_the_inverse_of_encode():
    found = encode(COMPLETE)
    sample = decode("a", found)
    assert json.loads(found["json"]) == {
        "schema": 1,
        "image_id": "7",
        "file_name": "a.jpg",
        "source": "coco",
        "width": 4,
        "height": 3,
        "licence": "http://cc/by",
        "attribution": "",
        "segments": [{"id": 5, "category": 1, "iscrowd": 0, "area": 3.5, "bbox": [0, 1, 2, 2.5]}],
        "instances": [
            {"id": 9, "category": 0, "iscrowd": 1, "area": 3, "bbox": [0, 0, 3, 3]}
            | {"layer": 1, "value": 300}
        ],
    }
    for field in dataclasses.fields(Sample):
        value, expected = getattr(sample, field.name), getattr(COMPLETE, field.name)
        if isinstance(expected, np.ndarray):
            assert value.dtype == expected.dtype
            assert np.array_equal(value, expected)
        else:
            assert value == expected


@pytest.mark.parametrize(
    "damage",
    [
        {"json": b"{"},
        {"json": b"[]"},
        {"json": json.dumps({"schema": 2, "width": 4, "height": 3}).encode()},
        {"segments.png": b"no png"},
        {"segments.png": encode(dataclasses.replace(COMPLETE, width=2))["instances.png"]},
        {"semantic.png": encode(COMPLETE)["instances.png"]},
        {"png": b"a second image"},
    ],
)
def test_damaged_samples_are_rejected(damage):
    with pytest.raises(DataError):
        decode("a", encode(COMPLETE) | damage)


@pytest.mark.parametrize(
    ("name", "key"),
    [("a.jpg", "a"), ("b/c.d.jpg", "b/c_d"), ("x.y/z.jpg", "x_y/z"), ("./a b.jpg", "a b")],
)
def test_keys(name, key):
    assert key_of(name) == key


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/a.jpg", "a/../b.jpg", "\ud800.jpg", None, "a\0.jpg"]
)
def test_hostile_names_are_rejected(name):
    with pytest.raises(DataError):
        key_of(name)


@given(st.data())
def test_packed_masks_are_recovered_and_layers_are_few(data):
    height, width, n = 6, 7, data.draw(st.integers(0, 8))
    bits = data.draw(st.lists(st.integers(0, 2**42 - 1), min_size=n, max_size=n))
    masks = [np.array([b >> i & 1 for i in range(42)], bool).reshape(height, width) for b in bits]
    rles = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    order = data.draw(st.permutations(range(n)))
    layers, positions = pack(rles, order, height, width)
    for mask, (layer, value) in zip(masks, positions, strict=True):
        assert value > 0
        assert np.array_equal(layers[layer] == value, mask)
    assert len(set(positions)) == n
    for position, i in enumerate(order):  # greedy: in every lower layer, an earlier mask overlaps
        before = order[:position]
        for lower in range(positions[i][0]):
            assert any(positions[j][0] == lower and (masks[j] & masks[i]).any() for j in before)


@given(st.lists(st.integers(0, 70000), min_size=1, max_size=9).filter(sum))
def test_run_lengths_are_read_in_both_forms(runs):
    width, height = sum(runs), 1
    expected = np.repeat(np.arange(len(runs)) % 2, runs)[None]
    plain = {"size": [height, width], "counts": runs}
    packed = coco_mask.frPyObjects(plain, height, width)
    compressed = {**packed, "counts": packed["counts"].decode()}
    for segmentation in (plain, compressed):
        rle = to_rle("it", segmentation, width, height, Doctor("a.jpg"))
        assert np.array_equal(coco_mask.decode(rle), expected)
        with pytest.raises(Reject, match="of size") as error:
            to_rle("it", segmentation, width + 1, height, Doctor("a.jpg"))
        assert error.value.code == 20


@pytest.mark.parametrize("counts", ["", "o", "0o", "\x01", "é0", "oooooooooo0", [], [-1, 3], "1"])
def test_broken_run_lengths_are_rejected(counts):
    with pytest.raises(Reject) as error:
        to_rle("it", {"size": [2, 1], "counts": counts}, 1, 2, Doctor("a.jpg"))
    assert error.value.code == 20


@given(st.data(), st.sampled_from(sorted((SAMPLE_IMAGES / "val2017").iterdir())))
def test_the_check_of_a_jpeg_agrees_with_decoding_at_full_size(data, path):
    image = bytearray(path.read_bytes()[: data.draw(st.integers(4000, 60000))])
    for _ in range(data.draw(st.integers(0, 3))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    whole, small = (
        cv2.imdecode(np.frombuffer(image, np.uint8), flag)
        for flag in (cv2.IMREAD_COLOR_RGB, CHECK_FLAGS["JPEG"])
    )
    assert (whole is None) == (small is None)


@given(st.lists(st.integers(1, 2**24 - 1), min_size=1, max_size=20, unique=True), st.data())
def test_segments_are_numbered_by_their_position_in_the_list(ids, data):
    pixels = data.draw(st.permutations([0, *ids, *ids]))
    numbered, areas = number_segments(np.array([pixels], np.uint32), ids)
    assert areas == [2] * len(ids)
    assert numbered.tolist() == [[ids.index(i) + 1 if i else 0 for i in pixels]]


TAXONOMY = Taxonomy.of(
    "t", [Category(5, "sky", False, (0, 0, 1)), Category(9, "dog", True, (0, 1, 0))]
)
MANIFEST = Manifest(
    source="coco",
    taxonomy=TAXONOMY,
    tasks=("panoptic",),
    members=("jpg", "json", "segments.png"),
    licence=({"id": 4},),
    versions={"opencv": "5"},
    inputs="ab",
    index=File(7, "ef"),
    shards=(Shard("000000.tar", 3072, "c" * 64, 3),),
)


def test_a_manifest_is_read_as_written(tmp_path):
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST
    with pytest.raises(UsageError, match="not a shard set"):
        Manifest.load(tmp_path / "missing")


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path):
    MANIFEST.save(tmp_path)
    path = tmp_path / "manifest.json"
    document = path.read_bytes()
    for position in range(len(document)):
        for bit in (0x01, 0x08, 0x80):
            damaged = bytearray(document)
            damaged[position] ^= bit
            path.write_bytes(damaged)
            with contextlib.suppress(DataError):  # the rest change white space to white space
                assert Manifest.load(tmp_path) == MANIFEST


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.replace('"cc', '"ce'), "checksum"),
        (lambda d: d.replace('"panoptic"', '"instance"'), "checksum"),
        (lambda d: d.replace('"checksum"', '"checkfum"'), "checksum"),
        (lambda d: d.replace('"schema": 1', '"schema": 2'), "schema 2, but this version reads 1"),
        (lambda d: d[:-5], "damaged"),
        (lambda d: "[]", "schema None"),
    ],
)
def test_damage_of_a_manifest_is_named(tmp_path, change, text):
    MANIFEST.save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=text) as error:
        Manifest.load(tmp_path)
    assert str(path) in str(error.value)


def test_the_fingerprint_depends_only_on_the_contents():
    same = dataclasses.replace(MANIFEST, inputs="other", versions={}, tasks=())
    assert same.fingerprint == MANIFEST.fingerprint
    for change in (
        {"shards": (Shard("000000.tar", 3072, "e" * 64, 3),)},
        {"taxonomy": Taxonomy.of("t", TAXONOMY.categories[:1])},
    ):
        assert dataclasses.replace(MANIFEST, **change).fingerprint != MANIFEST.fingerprint


def test_a_taxonomy_maps_ids_to_classes():
    assert TAXONOMY.names == ("sky", "dog")
    assert TAXONOMY.things == (False, True)
    assert (TAXONOMY.index(9), TAXONOMY.index(5)) == (1, 0)
    with pytest.raises(DataError, match="category id 6"):
        TAXONOMY.index(6)
    assert Taxonomy.from_json(json.loads(json.dumps(TAXONOMY.to_json()))) == TAXONOMY
