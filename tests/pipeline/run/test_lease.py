"""One command owns a run, on folders and on object stores, whatever happens to its owner."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pipeline.run import lease as leases
from pipeline.run.lease import LEASE, Lease, owner_of
from shards.errors import Failed, UsageError
from shards.remote import RemoteFolder, RetryPolicy
from tests.pipeline.servers import s3

QUICK = RetryPolicy(tries=2, first_pause_s=0.01, timeout_s=5)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Wait for fractions of a second; the proportions stay."""
    for name, value in (
        ("BEAT_S", 0.1),
        ("ABANDONED_S", 1.5),
        ("POLL_S", 0.05),
        ("SETTLE_S", 0.05),
    ):
        monkeypatch.setattr(leases, name, value)


@pytest.fixture(params=["file", "memory", "s3"])
def remote(request, tmp_path, monkeypatch) -> Iterator[RemoteFolder]:
    if request.param == "s3":
        with s3(monkeypatch, "bucket"):
            yield RemoteFolder("s3://bucket/runs/a", QUICK)
        return
    url = f"file://{tmp_path}/run" if request.param == "file" else f"memory://{tmp_path}"
    yield RemoteFolder(url, QUICK)


def quiet(remote: RemoteFolder) -> Lease:
    return Lease(remote, say=lambda _: None)


def rewrite(remote: RemoteFolder, **changes: object) -> None:
    """Change the owner in the lease."""
    remote.write(LEASE, json.dumps(json.loads(remote.read(LEASE)) | changes).encode())


def left_behind(remote: RemoteFolder, **changes: object) -> None:
    """Leave the lease of an owner that never released it."""
    lease = quiet(remote)
    remote.write(LEASE, lease._content())
    rewrite(remote, **changes)


def test_a_lease_is_released_at_the_end(remote):
    with quiet(remote) as lease:
        assert owner_of(remote) == lease.owner
    assert remote.files() == {}
    with quiet(remote) as again:
        assert again.owner != lease.owner


def test_a_second_owner_is_refused_and_the_first_stays(remote):
    lines = []
    with quiet(remote) as first:
        second = Lease(remote, lines.append)
        with pytest.raises(UsageError, match="being trained by another command") as raised, second:
            pass
        assert owner_of(remote) == first.owner
        first.check()
    assert f"pid {os.getpid()} on " in str(raised.value)
    assert len(lines) == 1


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(remote, monkeypatch):
    monkeypatch.setattr(leases, "ABANDONED_S", 1e9)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    left_behind(remote, pid=child.pid, started="12345", owner="dead")
    with quiet(remote) as lease:
        assert owner_of(remote) == lease.owner


def test_a_process_with_the_id_of_a_dead_owner_is_not_its_owner(remote, monkeypatch):
    monkeypatch.setattr(leases, "ABANDONED_S", 1e9)
    left_behind(remote, started="1")
    with quiet(remote) as lease:
        assert owner_of(remote) == lease.owner


def test_the_lease_of_another_host_is_taken_after_it_did_not_change(remote):
    left_behind(remote, machine="another", owner="gone", host="elsewhere")
    lines = []
    with Lease(remote, lines.append) as lease:
        assert owner_of(remote) == lease.owner
    assert "elsewhere" in lines[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_a_lease_that_cannot_be_read_is_taken_after_it_did_not_change(remote, content):
    remote.write(LEASE, content)
    with quiet(remote) as lease:
        assert owner_of(remote) == lease.owner


def test_an_owner_learns_that_another_has_its_lease_and_leaves_it(remote):
    with quiet(remote) as lease:
        until = time.monotonic() + 30
        while not lease.is_lost and time.monotonic() < until:
            if owner_of(remote) == lease.owner:  # a heartbeat may follow upon the change
                rewrite(remote, owner="another")
            time.sleep(0.02)
        with pytest.raises(Failed, match="not the owner of the run any more"):
            lease.check()
    assert owner_of(remote) == "another"


def test_an_outage_does_not_take_the_lease(monkeypatch):
    with s3(monkeypatch, "bucket"):
        remote = RemoteFolder("s3://bucket/runs/a", QUICK)
        with quiet(remote) as lease:
            with monkeypatch.context() as patch:
                patch.setattr(lease._beats, "_call", refuse)
                time.sleep(0.5)
            until = time.monotonic() + 30
            beat = json.loads(remote.read(LEASE))["beat"]
            while json.loads(remote.read(LEASE))["beat"] == beat and time.monotonic() < until:
                time.sleep(0.02)
            lease.check()
            assert json.loads(remote.read(LEASE))["beat"] > beat


def refuse(*_: object, **__: object) -> None:
    raise ConnectionError("refused")


def test_a_storage_without_the_bucket_is_named(monkeypatch):
    with s3(monkeypatch, "bucket"):
        lease = quiet(RemoteFolder("s3://bukket/runs/a", QUICK))
        with pytest.raises(UsageError, match="no such bucket"), lease:
            pass
