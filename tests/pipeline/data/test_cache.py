"""The cache of whole shards: exact bytes, a budget that holds, nothing left of killed processes."""

import errno
import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.data.cache import CacheSettings, ShardCache
from shards.errors import DataError, UsageError
from shards.format.manifest import Shard

SIZE = 1000


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def shard(number: int) -> Shard:
    return Shard(f"{number:06d}.tar", SIZE, hashlib.sha256(content(number)).hexdigest(), 1)


def pieces(number: int):
    """Yield the bytes of a shard in pieces of 300."""
    blob = content(number)
    yield from (blob[start : start + 300] for start in range(0, SIZE, 300))


def cache_of(folder: Path, shards: float) -> ShardCache:
    """Open a cache whose budget is that many shards."""
    return ShardCache(CacheSettings(str(folder), shards * SIZE / 2**30))


def cached(cache: ShardCache) -> set[int]:
    """Return the numbers of the shards in the cache, without marking them as used."""
    numbers = {shard(number).sha256: number for number in range(64)}
    return {numbers[path.stem] for path in cache.folder.glob("*.tar")}


def fill(cache: ShardCache, number: int, keep=()) -> bool:
    return cache.fill(shard(number), pieces(number), {shard(k).sha256 for k in keep})


def other_files(cache: ShardCache) -> list[str]:
    """Return the names in the folder that are neither shards nor locks."""
    return [p.name for p in cache.folder.iterdir() if p.suffix != ".tar" and p.name != "locks"]


def test_a_shard_comes_back_to_the_byte(tmp_path):
    cache = cache_of(tmp_path, 3)
    assert cache.open(shard(1)) is None
    assert fill(cache, 1)
    with cache.open(shard(1)) as file:
        assert file.read() == content(1)
    assert fill(cache, 1)
    cache.drop(shard(1))
    assert cached(cache) == set()


def test_a_cached_shard_is_not_fetched_again(tmp_path):
    cache = cache_of(tmp_path, 3)
    assert fill(cache, 1)
    assert cache.fill(shard(1), iter(lambda: pytest.fail("fetched twice"), None), ())


def test_the_cache_of_another_user_is_read(tmp_path, monkeypatch):
    """Its files cannot be touched or removed, and no lock can be taken."""
    assert fill(cache_of(tmp_path, 3), 1)
    cache = cache_of(tmp_path, 3)

    def refused(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with cache.open(shard(1)) as file:
        assert file.read() == content(1)
    cache.drop(shard(1))
    assert cached(cache) == {1}
    monkeypatch.setattr(Path, "open", refused)
    assert cache.open(shard(1)) is None


def test_a_folder_that_cannot_be_the_cache_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"data\.cache\.folder=.*file: .*; give a folder of your"):
        cache_of(tmp_path / "file", 3)


def test_the_least_recently_used_are_evicted(tmp_path):
    cache = cache_of(tmp_path, 3)
    for number in (1, 2, 3):
        assert fill(cache, number)
        time.sleep(0.01)
    cache.open(shard(1)).close()  # used last now
    time.sleep(0.01)
    assert fill(cache, 4)
    assert cached(cache) == {1, 3, 4}
    assert fill(cache, 5, keep=(3,))
    assert cached(cache) == {3, 4, 5}


def test_a_full_cache_of_needed_shards_accepts_no_more(tmp_path):
    cache = cache_of(tmp_path, 2)
    assert fill(cache, 1)
    assert fill(cache, 2)
    assert not fill(cache, 3, keep=(1, 2, 3))
    assert cached(cache) == {1, 2}
    assert not cache_of(tmp_path, 0.9).fill(shard(4), pieces(4), {shard(1).sha256})
    assert other_files(cache) == []


def test_a_full_disk_is_a_full_cache(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = cache_of(tmp_path, 3)
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert not fill(cache, 1)
    assert (cached(cache), other_files(cache)) == (set(), [])


@pytest.mark.parametrize("sent", [content(2), content(1)[:-1], content(1) + b"\1", b""])
def test_bytes_that_differ_from_the_manifest_are_refused(tmp_path, sent):
    cache = cache_of(tmp_path, 3)
    with pytest.raises(DataError, match=r"000001\.tar: the bytes differ from the sha256"):
        cache.fill(shard(1), [sent], ())
    assert (cached(cache), other_files(cache)) == (set(), [])


def test_a_fetch_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield content(1)[:300]
        raise ConnectionError("gone")

    cache = cache_of(tmp_path, 3)
    with pytest.raises(ConnectionError):
        cache.fill(shard(1), broken(), ())
    assert (cached(cache), other_files(cache)) == (set(), [])


def fill_and_hang(folder: Path, started) -> None:
    def slow():
        yield content(1)[:300]
        started.set()
        time.sleep(60)

    cache_of(folder, 1).fill(shard(1), slow(), ())


SPAWN = multiprocessing.get_context("spawn")


def test_kill_9_during_a_fill_leaves_no_trace(tmp_path):
    """The partial file is not taken for a shard, and its lock and its space are free again."""
    started = SPAWN.Event()
    process = SPAWN.Process(target=fill_and_hang, args=(tmp_path, started))
    process.start()
    assert started.wait(60)
    cache = cache_of(tmp_path, 1)
    assert len(other_files(cache)) == 1
    assert not fill(cache, 1)  # another process holds its lock
    assert not fill(cache, 2)  # and has allocated the space
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert cached(cache) == set()
    assert fill(cache, 2)
    assert other_files(cache) == []
    assert fill(cache, 1)
    with cache.open(shard(1)) as file:
        assert file.read() == content(1)
    assert cached(cache) == {1}


def churn(folder: Path, seed: int, log: Path) -> None:
    cache = cache_of(folder, 3)
    for turn in range(60):
        number = (seed * 7 + turn * 5) % 8
        cache.fill(shard(number), pieces(number), {shard(number).sha256}, wait=turn % 2 == 0)
        if file := cache.open(shard(number)):
            with file:
                assert file.read() == content(number)
    log.write_text("done")


def test_processes_share_it_within_the_budget(tmp_path):
    folder = tmp_path / "cache"
    logs = [tmp_path / f"{n}.log" for n in range(3)]
    workers = [SPAWN.Process(target=churn, args=(folder, n, log)) for n, log in enumerate(logs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [log.exists() for log in logs] == [True] * 3
    cache = cache_of(folder, 3)
    assert len(cached(cache)) <= 3
    assert other_files(cache) == []
