"""Shard sets below a URL: the same bytes as in the folder, even if requests fail."""

import pickle
import shutil
import time
import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from pipeline.data.cache import CacheSettings
from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import DataSettings, train_sets, train_stream
from shards.errors import DataError, Failed, UsageError
from shards.format.manifest import Manifest
from tests.damage import flip
from tests.pipeline.servers import IMPATIENT, s3, serving


@pytest.fixture
def server(photographs, tmp_path):
    with serving(shutil.copytree(photographs, tmp_path / "served")) as server:
        yield server


@pytest.fixture
def cache(tmp_path) -> CacheSettings:
    return CacheSettings(str(tmp_path / "cache"), gib=1)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("shards.remote.DEFAULT_POLICY", IMPATIENT)


def tar(store: Store, number: int) -> str:
    return store.manifest.shards[number].name


def in_shard(store: Store, shard: int) -> list[int]:
    return [n for n in range(len(store)) if store.index.shard[n] == shard]


def fetched(cache: CacheSettings) -> int:
    return len(list(Path(cache.folder).glob("*.tar")))


def wait_until(condition) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "the condition did not become true within 30 s"
        time.sleep(0.01)


def assert_same(store: Store, plain: Store) -> None:
    assert [store.read(n) for n in range(len(store))] == [plain.read(n) for n in range(len(plain))]


def test_a_set_below_a_url_equals_the_set_in_the_folder(server, cache, train_set):
    store = Store(f"{server.url}/train/", cache=cache)
    assert store.manifest == train_set.manifest
    assert store.index.key == train_set.index.key
    assert_same(store, train_set)
    assert fetched(cache) == 0  # sample by sample so far
    store.prefetch([2, 0, 1])
    wait_until(lambda: fetched(cache) == 3)
    server.asked.clear()
    assert_same(store, train_set)
    copy = pickle.loads(pickle.dumps(store))
    assert_same(copy, train_set)
    assert not any(name.endswith(".tar") for name in server.asked)


def test_unpickling_a_store_of_a_rebuilt_set_is_an_error(server, cache):
    store = Store(f"{server.url}/train", cache=cache)
    pickled = pickle.dumps(store)
    shutil.rmtree(server.folder / "train")
    (server.folder / "val").rename(server.folder / "train")
    with pytest.raises(DataError, match="was rebuilt while in use"):
        pickle.loads(pickled)


def test_training_starts_while_the_first_shards_are_arriving(server, cache, train_set):
    """While the server delays whole shards, samples are fetched; later ones are in the cache."""
    for entry in train_set.manifest.shards:
        server.faults[entry.name] = "hold"
    server.patience = int(train_set.index.length.max())
    settings = DataSettings(crop=64, cache=cache)
    share = BatchSplit(8, 4)
    store = Store(f"{server.url}/train", cache=cache)
    stream = iter(train_stream(settings, [store], "panoptic", 5, 0, share))
    plain = islice(train_stream(settings, [train_set], "panoptic", 5, 0, share), 6)
    first = [next(stream), next(stream)]
    short = sum(entry.bytes <= server.patience for entry in store.manifest.shards)
    assert fetched(cache) <= short < 3
    server.released.set()
    wait_until(lambda: fetched(cache) == 3)
    server.asked.clear()
    rest = list(islice(stream, 4))
    assert sum(server.asked.values()) == 0
    for remote, local in zip([*first, *rest], plain, strict=True):
        assert remote.keys == local.keys
        assert (remote.images == local.images).all()
        assert (remote.targets.maps == local.targets.maps).all()


@pytest.mark.parametrize("fault", ["drop", "stall", "short", "refuse"])
def test_requests_that_fail_are_repeated(server, cache, train_set, fault):
    server.faults = {entry.name: fault for entry in train_set.manifest.shards}
    server.times = dict.fromkeys(server.faults, 2)
    assert_same(Store(f"{server.url}/train", cache=cache), train_set)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("drop", "ContentLengthError|payload is not completed"),
        ("stall", "no answer within the time limit"),
        ("short", "bytes arrived"),
        ("refuse", "503"),
    ],
)
def test_a_shard_that_never_arrives_is_named(server, cache, train_set, fault, text):
    name = tar(train_set, 1)
    server.faults[name] = fault
    store = Store(f"{server.url}/train", cache=cache)
    sample = in_shard(store, 1)[0]
    with pytest.raises(Failed, match=rf"{server.url}/train/{name}: 5 tries .*({text})"):
        store.read(sample)
    assert server.asked[name] == 5
    assert store.read(in_shard(store, 0)[0])


@pytest.mark.parametrize("fault", ["drop", "stall", "short", "refuse"])
@pytest.mark.parametrize("name", ["manifest.json", "samples.parquet"])
def test_a_set_that_cannot_be_downloaded_is_a_usage_error(server, cache, fault, name):
    server.faults[name] = fault
    expected = (UsageError, DataError) if name == "manifest.json" else UsageError
    with pytest.raises(expected, match=rf"{server.url}/train/{name}"):
        Store(f"{server.url}/train", cache=cache)


def test_an_unreachable_server_is_a_usage_error(cache):
    with pytest.raises(UsageError, match=r"http://127\.0\.0\.1:9/x/manifest\.json: 5 tries failed"):
        Store("http://127.0.0.1:9/x", cache=cache)


def test_a_missing_shard_or_set_is_named(server, cache, train_set):
    with pytest.raises(UsageError, match=rf"{server.url}/nowhere: not a shard set"):
        Store(f"{server.url}/nowhere", cache=cache)
    (server.folder / "train" / tar(train_set, 1)).unlink()
    store = Store(f"{server.url}/train", cache=cache)
    with pytest.raises(DataError, match=rf"{tar(train_set, 1)}: the shard is missing"):
        store.read(in_shard(store, 1)[0])
    assert store.read(in_shard(store, 0)[0])


@pytest.mark.filterwarnings("ignore:.*downloaded one by one")
def test_a_flipped_byte_in_a_shard_loses_only_its_sample(server, cache, train_set):
    bad = in_shard(train_set, 1)[1]
    name = tar(train_set, 1)
    flip(server.folder / "train" / name, int(train_set.index.offset[bad]) + 700)
    store = Store(f"{server.url}/train", cache=cache)
    store.prefetch([0, 1, 2])
    wait_until(lambda: fetched(cache) == 2 and 1 in store._shards._damaged)
    for sample in range(len(store)):
        if sample != bad:
            assert store.read(sample) == train_set.read(sample)
    with pytest.raises(DataError, match=rf"{name}: sample {store.index.key[bad]} is damaged"):
        store.read(bad)


def test_damage_in_the_cache_is_repaired_from_the_server(server, cache, train_set, tmp_path):
    store = Store(f"{server.url}/train", cache=cache)
    store.prefetch([0])
    wait_until(lambda: fetched(cache) == 1)
    (path,) = (tmp_path / "cache").glob("*.tar")
    sample = in_shard(store, 0)[0]
    flip(path, int(store.index.offset[sample]) + 700)
    assert store.read(sample) == train_set.read(sample)
    assert not path.exists()


@pytest.mark.parametrize("name", ["manifest.json", "samples.parquet"])
def test_damage_of_manifest_and_index_is_found(server, cache, name):
    path = server.folder / "train" / name
    flip(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=rf"{server.url}/train/{name}"):
        Store(f"{server.url}/train", cache=cache)


def test_a_server_without_ranges_sends_each_shard_once(server, cache, train_set):
    server.faults = {entry.name: "whole" for entry in train_set.manifest.shards}
    store = Store(f"{server.url}/train", cache=cache)
    assert_same(store, train_set)
    assert fetched(cache) == 3
    assert (
        sum(server.asked[name] for name in server.faults) == 3 + 1
    )  # plus the request that shows it


def test_the_cache_stays_within_its_budget(server, tmp_path, train_set):
    """With room for the largest shard alone, the others are read by sample until it is evicted."""
    folder = tmp_path / "cache"
    sizes = [entry.bytes for entry in train_set.manifest.shards]
    largest = sizes.index(max(sizes))
    store = Store(f"{server.url}/train", cache=CacheSettings(str(folder), max(sizes) / 2**30))

    def used() -> int:
        return sum(path.stat().st_size for path in folder.glob("*.tar"))

    def is_cached(shard: int) -> bool:
        return (folder / f"{store.manifest.shards[shard].sha256}.tar").exists()

    store.prefetch([largest, *(n for n in range(3) if n != largest)])
    wait_until(lambda: is_cached(largest))
    assert_same(store, train_set)
    assert used() == max(sizes)
    other = (largest + 1) % 3
    store.prefetch([other])
    wait_until(lambda: is_cached(other))
    assert not is_cached(largest)
    assert used() == sizes[other]
    assert_same(store, train_set)


def test_without_ranges_the_cache_must_hold_a_shard(server, tmp_path, train_set):
    """A budget below one shard is an error; a budget of one shard is enough."""
    server.faults = {entry.name: "whole" for entry in train_set.manifest.shards}
    sizes = [entry.bytes for entry in train_set.manifest.shards]
    largest = in_shard(train_set, sizes.index(max(sizes)))[0]

    def store(room: int) -> Store:
        settings = CacheSettings(str(tmp_path / "cache"), room / 2**30)
        opened = Store(f"{server.url}/train", cache=settings)
        opened.read(
            in_shard(opened, sizes.index(min(sizes)))[0]
        )  # this shows that the server knows no ranges
        return opened

    with pytest.raises(UsageError, match=rf"{server.url}/train/.*ignores .*data\.cache\.gib=.*"):
        store(max(sizes) - 1).read(largest)
    assert_same(store(max(sizes)), train_set)


def test_a_cache_too_small_for_the_shards_in_use_is_a_warning(server, tmp_path, train_set):
    """The warning comes before the start; the samples are the same, but arrive more slowly."""
    total = sum(entry.bytes for entry in train_set.manifest.shards)

    def opened(room: int) -> Store:
        cache = CacheSettings(str(tmp_path / f"{room}"), room / 2**30)
        return train_sets(DataSettings(train=f"{server.url}/train", cache=cache))[0]

    with pytest.warns(UserWarning, match=r"data\.cache\.gib=.* take up to .* GiB"):
        small = opened(total - 1)
    assert_same(small, train_set)
    with warnings.catch_warnings(action="error"):
        opened(total)
        train_sets(DataSettings(train=str(train_set.folder), cache=small.cache))


def test_names_in_a_manifest_must_stay_in_the_folder(spare_set, monkeypatch):
    manifest = Manifest.load(spare_set)
    for hostile in ({"name": "../000000.tar"}, {"name": "/etc/passwd"}, {"sha256": "../../x"}):
        shards = (replace(manifest.shards[0], **hostile), *manifest.shards[1:])
        with monkeypatch.context() as patch:  # `save` refuses such names
            patch.setattr(Manifest, "_parsed", lambda *_: None)
            replace(manifest, shards=shards).save(spare_set)
        with pytest.raises(DataError, match=r"is not a tar in the set's folder|not 64 hex digits"):
            Store(spare_set)


@pytest.mark.parametrize(
    ("url", "text"), [("gs://bucket/train", "gcsfs"), ("nonsense://x/train", "nonsense")]
)
def test_a_url_of_an_unknown_scheme_is_a_usage_error(url, text, cache):
    with pytest.raises(UsageError, match=text):
        Store(url, cache=cache)


def test_s3(train_set, cache, monkeypatch):
    with s3(monkeypatch, "sets") as client:
        for path in filter(Path.is_file, train_set.folder.iterdir()):
            client.upload_file(str(path), "sets", f"coco/train/{path.name}")
        store = Store("s3://sets/coco/train", cache=cache)
        assert_same(store, train_set)
        store.prefetch([0, 1, 2])
        wait_until(lambda: fetched(cache) == 3)
        assert_same(store, train_set)
        with pytest.raises(UsageError, match="s3://sets/nowhere: not a shard set"):
            Store("s3://sets/nowhere", cache=cache)
        with pytest.raises(UsageError, match="s3://nosuch/train: not a shard set"):
            Store("s3://nosuch/train", cache=cache)
