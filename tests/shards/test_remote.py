"""The client for URLs: its methods, retries, and time limit, in build, verify, and train."""

import errno
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import NoCredentialsError

from pipeline.data.cache import CacheSettings
from pipeline.data.store import Store
from shards.build.build import build
from shards.errors import Failed, UsageError
from shards.file_info import FileInfo
from shards.parallel import processes
from shards.remote import RemoteFolder, RetryPolicy
from shards.verify import verify
from tests.pipeline.servers import IMPATIENT, Server, serving
from tests.shards.raw import sky, write

BLOB = bytes(range(256)) * 40
NAME = "000000.tar"
FAULTS = ["drop", "stall", "short", "refuse"]
SLOWEST_S = 30  # 5 tries of 0.5 s each, with time to spare for a busy machine


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / NAME).write_bytes(BLOB)
    with serving(tmp_path / "served") as server:
        yield server


@pytest.fixture
def remote(server) -> RemoteFolder:
    return RemoteFolder(server.url, IMPATIENT)


@pytest.fixture
def small_pieces(monkeypatch) -> None:
    monkeypatch.setattr("shards.remote.PIECE_BYTES", 1000)


def test_a_file_is_read_whole_in_part_and_in_pieces(remote, small_pieces):
    assert remote.read(NAME) == BLOB
    assert remote.read_range(NAME, 300, 70) == BLOB[300:370]
    pieces = list(remote.pieces(NAME, len(BLOB)))
    assert b"".join(pieces) == BLOB
    assert max(map(len, pieces)) == 1000


@pytest.mark.parametrize("name", ["a b (1).tar", "#1?.tar", "100%25.tar", "ü.tar"])
def test_a_name_is_not_a_part_of_the_syntax_of_urls(remote, server, name):
    (server.folder / name).write_bytes(b"odd")
    assert remote.read(name) == b"odd"


def test_a_download_arrives_in_pieces(remote, server, small_pieces, tmp_path):
    assert remote.fetch(NAME, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == BLOB
    assert server.asked[NAME] > len(BLOB) / 1000


def test_what_is_missing_is_none_or_an_error(remote, tmp_path):
    (tmp_path / "copy").write_bytes(b"of an earlier run")
    assert not remote.fetch("nothing", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert remote.info("nothing") is None
    with pytest.raises(FileNotFoundError, match=f"{remote.url}/nothing"):
        remote.read("nothing")
    with pytest.raises(FileNotFoundError, match=f"{remote.url}/nothing"):
        remote.read_range("nothing", 0, 1)


def test_a_client_keeps_its_policy_when_it_is_pickled(remote):
    twin = pickle.loads(pickle.dumps(remote))
    assert (twin.url, twin.policy) == (remote.url, IMPATIENT)
    assert twin.read(NAME) == BLOB


def test_files_are_sent_listed_described_and_removed(tmp_path):
    remote, path = RemoteFolder(f"file://{tmp_path}/there"), tmp_path / "file"
    assert remote.files() == {}
    path.write_bytes(BLOB)
    remote.send(path, "a/b.tar")
    assert remote.files() == {"a/b.tar": len(BLOB)}
    os.utime(tmp_path / "there/a/b.tar", (5, 5))
    assert remote.info("a/b.tar") == FileInfo(len(BLOB), 5 * 10**9)
    remote.remove("a/b.tar")
    remote.remove("a/b.tar")
    assert remote.files() == {}


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_small_files_are_written_and_created_once(tmp_path, protocol):
    remote = RemoteFolder(f"{protocol}://{tmp_path}/there", IMPATIENT)
    assert remote.create("a/b", b"first")
    assert not remote.create("a/b", b"second")
    assert remote.create("a/b", b"first")  # as after a try whose answer was lost
    remote.write("a/b", b"third")
    assert remote.read("a/b") == b"third"
    (info,) = remote.infos().values()
    assert info.bytes == 5
    assert info.changed > 10**18


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (PermissionError("Forbidden"), UsageError, r"access is refused \(Forbidden\)"),
        (NoCredentialsError(), UsageError, r"access is refused \(Unable to locate credentials\)"),
        (OSError(errno.ENOSPC, "No space left on device"), Failed, "the disk is full"),
    ],
)
def test_what_no_repetition_helps_is_named(tmp_path, monkeypatch, error, kind, text):
    remote = RemoteFolder(f"file://{tmp_path}/there", IMPATIENT)

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(remote, "_call", refuse)
    with pytest.raises(kind, match=text):
        remote.write("a", b"")


@pytest.mark.parametrize("fault", FAULTS)
def test_requests_are_repeated_until_one_succeeds(remote, server, tmp_path, fault):
    server.faults, server.times = {NAME: fault, "sent": fault}, {NAME: 2, "sent": 2}
    assert remote.read_range(NAME, 0, len(BLOB)) == BLOB
    (tmp_path / "file").write_bytes(BLOB)
    remote.send(tmp_path / "file", "sent")
    assert (server.folder / "sent").read_bytes() == BLOB


@pytest.mark.parametrize("fault", FAULTS)
def test_after_the_last_try_the_url_is_named(remote, server, tmp_path, fault):
    server.faults = {NAME: fault, "sent": fault}
    (tmp_path / "file").write_bytes(BLOB)
    for name, request in {
        NAME: lambda: remote.read_range(NAME, 0, len(BLOB)),
        "sent": lambda: remote.send(tmp_path / "file", "sent"),
    }.items():
        with pytest.raises(Failed, match=rf"^{server.url}/{name}: 5 tries failed, .*; check"):
            request()
        assert server.asked[name] >= IMPATIENT.tries


def test_pauses_grow_and_differ(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for failures in (1, 2, 3, 4) * 20:
        RetryPolicy(first_pause_s=2).pause(failures)
    for number in range(4):
        of_number = pauses[number::4]
        assert 2**number <= min(of_number) < max(of_number) <= 3 * 2**number


def test_the_time_limit_grows_with_the_bytes_of_a_request():
    policy = RetryPolicy(timeout_s=60)
    assert [policy.limit(size) for size in (0, 1, 8 << 20, (8 << 20) + 1)] == [60, 60, 60, 120]


def test_a_protocol_that_cannot_remove_is_a_usage_error(remote):
    with pytest.raises(UsageError, match=f"{remote.url}/{NAME}: files cannot be .* s3://"):
        remote.remove(NAME)


@pytest.fixture
def built(tmp_path, monkeypatch) -> Path:
    """A shard set; later requests have short pauses and time limits."""
    monkeypatch.setattr("shards.remote.DEFAULT_POLICY", IMPATIENT)
    raw = write(tmp_path / "raw", [sky(f"{n}.png") for n in range(3)])
    build("coco", raw, tmp_path / "out", shards=1, jobs=1, report=lambda _: None)
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("user", "name"),
    [("build", "sets"), ("verify", "val"), ("verify", NAME), ("train", NAME)],
)
def test_a_server_that_stalls_ends_every_command_in_time(built, tmp_path, user, name):
    """Each user of the client gives up after the same number of tries, within the time limit."""
    (tmp_path / "www").mkdir()
    built.rename(tmp_path / "www/sets")
    with serving(tmp_path / "www") as server:
        url, cache = f"{server.url}/sets", CacheSettings(str(tmp_path / "cache"), gib=1)
        raw, work = tmp_path / "raw", tmp_path / "work"
        users: dict[str, Callable[[], object]] = {
            "build": lambda: build("coco", raw, url, work=work, jobs=1, report=lambda _: None),
            "verify": lambda: verify(url, runner=processes(1), report=lambda _: None),
            "train": lambda: Store(f"{url}/val", cache=cache).read(0),
        }
        server.faults[name] = "stall"
        start = time.monotonic()
        with pytest.raises(Failed, match=rf"{server.url}/.*: 5 tries failed, .*: no answer within"):
            users[user]()
        assert time.monotonic() - start < SLOWEST_S


def test_a_set_on_a_web_server_can_be_verified(built):
    with serving(built) as server:
        lines: list[str] = []
        verify(server.url, runner=processes(1), report=lines.append)
        assert lines == [f"{server.url}/val: 3 samples in 1 shards are sound (all bytes)"]
