"""Samples are read as they were built, or they are reported as damaged."""

import pickle

import numpy as np
import pytest

from pipeline.data.store import Store
from shards.errors import DataError, UsageError
from shards.format.tar import members, unpack
from tests.damage import flip


def damage(folder, store, sample, offset):
    """Flip one bit of a sample on disk, `offset` bytes after its start; return the shard."""
    name = store.shard_of(sample)
    flip(folder / name, int(store.index.offset[sample]) + offset)
    return name


def offset_of(store, sample, ext):
    """Return the offset of a member's payload from the start of the sample."""
    blob = store.read(sample)
    return blob.index(members(blob)[ext])


def test_reads_what_the_shards_hold(train_set):
    assert len(train_set) == 10
    assert sum(train_set.shard_sizes) == 10
    assert len(train_set.shard_sizes) == 3
    for sample in range(len(train_set)):
        name = train_set.shard_of(sample)
        start, length = int(train_set.index.offset[sample]), int(train_set.index.length[sample])
        tar = (train_set.folder / name).read_bytes()
        assert train_set.read(sample) == tar[start : start + length]
        assert unpack(train_set.read(sample)) == members(train_set.read(sample))
        assert set(members(train_set.read(sample))) == set(train_set.manifest.members)


@pytest.mark.parametrize("part", ["header", "jpg", "json", "segments.png", "padding"])
@pytest.mark.parametrize("sample", [0, 9])
def test_a_flipped_bit_anywhere_is_found(spare_set, part, sample):
    store = Store(spare_set)
    if part == "header":
        offset = 150  # in the checksum field; tarfile would report the end of the archive
    elif part == "padding":
        offset = len(store.read(sample)) - 1
    else:
        offset = offset_of(store, sample, part) + 20
    name = damage(spare_set, store, sample, offset)
    with pytest.raises(DataError) as error:
        store.read(sample)
    assert str(spare_set / name) in str(error.value)
    assert store.index.key[sample] in str(error.value)
    others = [n for n in range(len(store)) if n != sample]
    assert all(store.read(n) for n in others)  # only one sample is damaged


def test_a_truncated_shard_is_found(spare_set):
    store = Store(spare_set)
    last = max(np.flatnonzero(store.index.shard == 1))
    name = store.manifest.shards[1].name
    end = int(store.index.offset[last] + store.index.length[last])
    for size in (end - 1, end - 512, int(store.index.offset[last]), 0):
        with (spare_set / name).open("rb+") as file:
            file.truncate(size)
        with pytest.raises(DataError, match=rf"{name}: sample {store.index.key[last]}"):
            Store(spare_set).read(last)


def test_a_missing_shard_is_named(spare_set):
    store = Store(spare_set)
    (spare_set / store.manifest.shards[0].name).unlink()
    with pytest.raises(DataError, match=rf"{store.manifest.shards[0].name}: No such file"):
        store.read(0)


@pytest.mark.parametrize("change", ["no manifest", "no folder"])
def test_what_is_not_a_shard_set_is_a_usage_error(spare_set, change):
    folder = spare_set if change == "no manifest" else spare_set / "nowhere"
    (spare_set / "manifest.json").unlink()
    with pytest.raises(UsageError, match=rf"{folder}: not a shard set .*build coco"):
        Store(folder)


def test_a_pickled_store_reads_the_same(train_set):
    store = Store(train_set.folder, limit=4)
    store.read(0)  # opens a file descriptor, which cannot be pickled
    copy = pickle.loads(pickle.dumps(store))
    assert len(copy) == 4
    assert copy.shard_sizes == store.shard_sizes
    assert [copy.read(n) for n in range(4)] == [store.read(n) for n in range(4)]


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (4, 4), (10, 10), (99, 10), (None, 10)])
def test_limit_keeps_the_first_samples(train_set, limit, count):
    store = Store(train_set.folder, limit)
    assert len(store) == sum(store.shard_sizes) == count
    whole = np.repeat(np.arange(3), train_set.shard_sizes)[:count]
    assert store.shard_sizes == tuple(np.bincount(whole, minlength=3))


def test_more_shards_than_open_files(spare_set, monkeypatch):
    monkeypatch.setattr("pipeline.data.store.OPEN_SHARDS", 1)
    store, plain = Store(spare_set), [Store(spare_set).read(n) for n in range(10)]
    for _ in range(3):
        assert [store.read(n) for n in (0, 9, 5)] == [plain[n] for n in (0, 9, 5)]
