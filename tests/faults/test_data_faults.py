"""Every kind of damage to data, and its effect on training.

A sample whose bytes are not as built is never trained on. A substitute is used instead, the same
one for every division of the work, and the list of replaced samples is exact.
"""

import json
import shutil
from functools import cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.data.order import Order
from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import SUBSTITUTES, DataSettings, order_of, train_stream
from shards.errors import DataError
from shards.format.index import offsets_path
from shards.format.manifest import MANIFEST, Manifest, digest
from shards.format.tar import BLOCK, members
from tests.damage import flip

SEED, GLOBAL, STEPS = 5, 8, 2
SETTINGS = DataSettings(crop=64)


@pytest.fixture
def spare(photographs, tmp_path) -> Path:
    """Copy the train set for a test that damages it."""
    return Path(shutil.copytree(photographs / "train", tmp_path / "train"))


@pytest.fixture(scope="module")
def clean(photographs) -> Store:
    return Store(photographs / "train")


def delivered(store: Store, world: int = 1, micro: int = 4) -> tuple[dict, list[dict]]:
    """Return key, epoch, image and maps of STEPS global batches by position, and the damage."""
    found, damaged = {}, []
    for rank in range(world):
        split = BatchSplit(GLOBAL, micro, world, rank)
        stream = train_stream(SETTINGS, [store], "panoptic", SEED, 0, split)
        for batch in islice(stream, STEPS * split.micro_steps):
            damaged += batch.damaged
            for b, position in enumerate(batch.positions):
                pixels = batch.images[b].numpy().tobytes(), batch.targets.maps[b].numpy().tobytes()
                found[position] = (batch.keys[b], batch.epochs[b], *pixels)
    return found, sorted(damaged, key=lambda row: row["position"])


@cache
def undamaged(clean: Store) -> dict[int, tuple]:
    return delivered(clean)[0]


def expected(clean: Store, bad: set[int]) -> tuple[dict[int, str], list[tuple[int, str, str]]]:
    """Return the expected key of every position, and (position, damaged key, substitute)."""
    order: Order = order_of([clean], SETTINGS, SEED)
    keys, replaced = {}, []
    for position in range(STEPS * GLOBAL):
        sample, rejected = order.at(position).sample, []
        while sample in bad:
            rejected.append(sample)
            sample = order.substitute(position, len(rejected)).sample
        keys[position] = clean.index.key[sample]
        replaced += [(position, clean.index.key[n], keys[position]) for n in rejected]
    return keys, replaced


def check_stream(spare: Path, clean: Store, bad: set[int], reason: str) -> None:
    """Check that exactly the `bad` samples are replaced, for two divisions of the work."""
    keys, replaced = expected(clean, bad)
    plain = undamaged(clean)
    store = Store(spare)
    for world, micro in ((1, 4), (4, 1)):
        found, damaged = delivered(store, world, micro)
        assert {position: value[0] for position, value in found.items()} == keys
        assert [(r["position"], r["key"], r["substitute"]) for r in damaged] == replaced
        whole = set(plain) - {row[0] for row in replaced}
        assert all(found[position] == plain[position] for position in whole)
        for row in damaged:
            assert row["epoch"] == found[row["position"]][1]
            assert row["set"] == str(spare)
            assert reason in row["reason"]
            assert row["shard"] in row["reason"]
    assert len({row[1] for row in replaced}) == len(bad)


def part_of(store: Store, sample: int, part: str) -> tuple[int, int]:
    """Return the offset in the sample and the length of one of its parts."""
    blob = store.read(sample)
    if part == "header":
        return 0, BLOCK
    if part == "last padding":
        used = len(blob.rstrip(b"\0"))
        return used, len(blob) - used
    content = members(blob)[part]
    return blob.index(content), len(content)


@pytest.mark.parametrize("part", ["jpg", "segments.png", "json", "header", "last padding"])
def test_a_flipped_byte_in_a_sample(spare, clean, part):
    sample = 4
    start, length = part_of(clean, sample, part)
    offset = int(clean.index.offset[sample]) + start + length // 2
    flip(spare / clean.shard_of(sample), offset)
    check_stream(spare, clean, {sample}, "its hash differs from the index")


def test_a_flip_that_the_decoder_accepts(spare, clean):
    """The image still decodes, but to other pixels; only the hash detects this."""
    sample = 4
    start, length = part_of(clean, sample, "jpg")
    picture = np.frombuffer(clean.read(sample)[start : start + length], np.uint8)
    offset = length * 3 // 4
    damaged = picture.copy()
    damaged[offset] ^= 0x10
    images = [cv2.imdecode(buffer, cv2.IMREAD_COLOR) for buffer in (picture, damaged)]
    assert images[0].shape == images[1].shape
    assert (images[0] != images[1]).any()
    flip(spare / clean.shard_of(sample), int(clean.index.offset[sample]) + start + offset)
    check_stream(spare, clean, {sample}, "its hash differs from the index")


def test_several_damaged_samples_some_of_them_substitutes(spare, clean):
    bad = {0, 2, 3, 5, 6, 9}
    for sample in bad:
        flip(spare / clean.shard_of(sample), int(clean.index.offset[sample]) + 600)
    _, replaced = expected(clean, bad)
    positions = [row[0] for row in replaced]
    assert len(positions) > len(set(positions))  # a substitute was damaged too
    check_stream(spare, clean, bad, "its hash differs from the index")


CUTS = ["nothing left", "header", "on a member", "image", "label", "padding", "on a sample", "end"]


@pytest.mark.parametrize("cut", CUTS)
def test_a_truncated_shard(spare, clean, cut):
    """The shard is cut at every kind of offset, in or before its second to last sample."""
    first, *_, sample, last = np.flatnonzero(clean.index.shard == 1).tolist()
    begin = int(clean.index.offset[sample])
    end = begin + int(clean.index.length[sample])
    image, label = (part_of(clean, sample, part) for part in ("jpg", "segments.png"))
    size, bad = {
        "nothing left": (0, set(range(first, last + 1))),
        "header": (begin + 100, {sample, last}),
        "on a member": (begin + label[0] - BLOCK, {sample, last}),
        "image": (begin + image[0] + image[1] // 2, {sample, last}),
        "label": (begin + label[0] + label[1] // 2, {sample, last}),
        "padding": (end - 1, {sample, last}),
        "on a sample": (end, {last}),
        "end": (end + int(clean.index.length[last]) + BLOCK, set()),
    }[cut]
    assert cut != "on a member" or (begin + label[0] - BLOCK) % BLOCK == 0
    tar = spare / clean.shard_of(sample)
    with tar.open("rb+") as file:
        file.truncate(size)
    with pytest.raises(DataError, match=rf"{tar}: the shard has {size} bytes instead of"):
        Store(spare).check_shards()
    check_stream(spare, clean, bad, "its hash differs from the index")


def test_a_missing_shard(spare, clean):
    name = clean.manifest.shards[1].name
    (spare / name).unlink()
    with pytest.raises(DataError, match=rf"{spare / name}: the shard is missing; build"):
        Store(spare).check_shards()
    bad = set(np.flatnonzero(clean.index.shard == 1).tolist())
    check_stream(spare, clean, bad, "No such file")


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", [MANIFEST, "samples.parquet"])
def test_a_flipped_byte_in_manifest_or_parquet(spare, name, where):
    path = spare / name
    flip(path, int(path.stat().st_size * where))
    with pytest.raises(DataError, match=str(path)):
        Store(spare)


def test_a_flipped_byte_in_a_tar_index_changes_nothing(spare, clean):
    """Training reads the offsets from samples.parquet; `verify` finds the flip."""
    flip(offsets_path(spare / clean.shard_of(4)), 9)
    check_stream(spare, clean, set(), "")


@pytest.mark.parametrize("name", ["samples.parquet", MANIFEST])
def test_a_set_without_index_or_manifest_is_refused(spare, name):
    (spare / name).unlink()
    with pytest.raises(ValueError, match=str(spare)):
        Store(spare)


def test_another_schema(spare):
    path = spare / MANIFEST
    document = json.loads(path.read_text()) | {"schema": 2}
    del document["checksum"]
    path.write_text(json.dumps(document | {"checksum": digest(document)}))
    with pytest.raises(DataError, match=rf"{path}: the manifest has schema 2, but"):
        Store(spare)


def test_an_index_of_another_build(spare, tmp_path, photographs):
    shutil.copy(photographs / "val" / "samples.parquet", spare)
    with pytest.raises(DataError, match=r"samples\.parquet: the file is missing or"):
        Store(spare)


def test_a_set_of_only_damaged_samples_is_a_data_error(spare, clean):
    for entry in clean.manifest.shards:
        (spare / entry.name).write_bytes(b"")
    with pytest.raises(
        DataError, match=rf"is damaged: .* and {SUBSTITUTES} substitutes are damaged"
    ):
        delivered(Store(spare))


def test_a_sample_that_does_not_decode_is_replaced(spare, clean, monkeypatch):
    """Its bytes are as built but are not an image, which a set of third-party tars can contain."""
    key = clean.index.key[4]
    decode = cv2.imdecode
    blob = members(clean.read(4))["jpg"]
    monkeypatch.setattr(
        cv2, "imdecode", lambda b, how: None if b.tobytes() == blob else decode(b, how)
    )
    found, damaged = delivered(Store(spare))
    assert {row["key"] for row in damaged} == {key}
    assert all("does not decode" in row["reason"] for row in damaged)
    keys, replaced = expected(clean, {4})
    assert {position: value[0] for position, value in found.items()} == keys
    assert [(r["position"], r["key"], r["substitute"]) for r in damaged] == replaced
    assert Manifest.load(spare) == clean.manifest
