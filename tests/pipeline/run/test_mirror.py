"""What a worker writes arrives on storage, is taken from there, and survives outages."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.run import checkpoint, eventlog, events, mirror, pull, stop, storage
from pipeline.run.checkpoint import COMMITTED, STATE
from pipeline.run.eventlog import EVENTS
from pipeline.run.folder import CHECKPOINTS, scores_path
from pipeline.run.lease import LEASE
from pipeline.run.mirror import Mirror
from pipeline.run.track import METRICS
from shards import jsonl
from shards.errors import UsageError
from shards.files import write_json
from shards.remote import RemoteFolder
from tests.damage import flip
from tests.pipeline.runs import trainer_state
from tests.pipeline.servers import s3_server

OWNER, KEEP, LIMIT_S = "owner", 2, 60


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(storage, "EVERY_S", 0.05)
    monkeypatch.setattr(mirror, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(eventlog, "_own", EVENTS)


@pytest.fixture(params=["file", "memory"])
def remote(request, tmp_path) -> RemoteFolder:
    place = tmp_path / "storage" / "runs" / "a"
    return owned(RemoteFolder(f"{request.param}://{place}"))


@pytest.fixture
def work(tmp_path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def owned(remote: RemoteFolder) -> RemoteFolder:
    """Let the command of the tests own the run."""
    remote.write(LEASE, json.dumps({"owner": OWNER}).encode())
    return remote


def mirrored(remote: RemoteFolder, folder: Path, **changes) -> Mirror:
    settings = {"owner": OWNER, "keep": KEEP, "task": "panoptic", "of_run": True}
    return Mirror(remote.url, folder, **settings | changes)


def save(folder: Path, step: int, attempt: int = 1) -> str:
    path = folder / CHECKPOINTS / checkpoint.name_of(step, attempt)
    checkpoint.save(path, {"weight": torch.full((3,), float(step))}, trainer_state(step))
    return path.name


def score(folder: Path, step: int, value: float) -> None:
    write_json(scores_path(folder, step), {"step": step, "PQ": value})


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def whole(remote: RemoteFolder) -> list[int]:
    names = storage.committed(set(remote.files()))
    return [checkpoint.step_of(Path(name)) for name in reversed(names)]


def taken(remote: RemoteFolder, folder: Path) -> int | None:
    """Take a run as a worker does, and return the step of the newest whole checkpoint."""
    folder.mkdir(exist_ok=True)
    pull.prepare(remote.url, folder, is_sharded=False)
    newest = checkpoint.newest(folder / CHECKPOINTS, lambda _: None)
    return checkpoint.step_of(newest) if newest else None


def test_what_is_written_arrives_and_can_be_taken_by_another_host(remote, work, tmp_path):
    (work / "config.yaml").write_text("of a worker")
    (work / ".lock").write_text("")
    with mirrored(remote, work) as sender:
        eventlog.append(work, events.Damage(text="first"))
        jsonl.append(work / METRICS, {"step": 1})
        until(lambda: {EVENTS, METRICS} <= set(remote.files()))
        jsonl.append(work / METRICS, {"step": 2})
        score(work, 2, 50)
        (work / "wandb").mkdir()
        (work / "wandb" / "run.wandb").write_text("offline")
        (work / "wandb" / "link").symlink_to("run.wandb")
        save(work, 2)
    assert sender.waiting == ""
    names = set(remote.files())
    assert {METRICS, "evaluations/step-000000002.json", "wandb/run.wandb"} <= names
    assert not {"config.yaml", ".lock", "wandb/link"} & names
    other = tmp_path / "other"
    assert taken(remote, other) == 2
    for name in (METRICS, EVENTS, "evaluations/step-000000002.json"):
        assert (other / name).read_bytes() == (work / name).read_bytes()
    assert not (other / "wandb").exists()


def test_storage_keeps_the_newest_and_the_best_whatever_this_host_has(remote, work, tmp_path):
    with mirrored(remote, work):
        for step, value in ((2, 10), (4, 90), (6, 20), (8, 30)):
            score(work, step, value)
            name = save(work, step)
            until(lambda name=name: f"{CHECKPOINTS}/{name}/{COMMITTED}" in remote.files())
    assert whole(remote) == [4, 6, 8]
    other = tmp_path / "other"
    assert taken(remote, other) == 8
    assert [path.name for path in checkpoint.committed(other / CHECKPOINTS)] == [
        checkpoint.name_of(8, 1)
    ]
    remote.write(f"{CHECKPOINTS}/{checkpoint.name_of(9, 1)}/{STATE}", b"of a killed sender")
    with mirrored(remote, other):
        save(other, 10, attempt=2)
    assert whole(remote) == [4, 8, 10]
    assert len(storage.checkpoints(set(remote.files()))) == 3


def test_a_damaged_checkpoint_on_storage_is_skipped(remote, work, tmp_path):
    with mirrored(remote, work):
        for step in (2, 4):
            save(work, step)
    name = f"{CHECKPOINTS}/{checkpoint.name_of(4, 1)}/{STATE}"
    state = bytearray(remote.read(name))
    state[-1] ^= 1
    remote.write(name, bytes(state))
    assert taken(remote, tmp_path / "other") == 2
    assert taken(remote, work) == 4, "this host has the bytes that were written"


def test_what_a_killed_host_did_not_send_is_used_and_sent_by_it_alone(remote, work, tmp_path):
    with mirrored(remote, work):
        eventlog.append(work, events.Damage(text="sent"))
        jsonl.append(work / METRICS, {"step": 1})
        save(work, 2)
    save(work, 4)
    jsonl.append(work / METRICS, {"step": 4})
    eventlog.append(work, events.Damage(text="not sent"))
    assert taken(remote, work) == 4
    assert len(jsonl.rows(work / METRICS)) == 2
    with mirrored(remote, work):
        pass
    assert whole(remote) == [2, 4]
    assert len(jsonl.rows(work / METRICS)) == 2


def test_a_host_that_is_behind_takes_what_another_one_wrote(remote, work, tmp_path):
    with mirrored(remote, work):
        eventlog.append(work, events.Damage(text="sent"))
        save(work, 2)
    other = tmp_path / "other"
    assert taken(remote, other) == 2
    save(work, 6)  # never sent
    score(work, 6, 70)
    eventlog.append(work, events.Damage(text="never sent"))
    with mirrored(remote, other):
        eventlog.append(other, events.Damage(text="of the other host"))
        save(other, 4, attempt=2)
    assert taken(remote, work) == 4
    assert [event.text for event in eventlog.read_kind(work, events.Damage)] == [
        "sent",
        "of the other host",
    ]
    assert not scores_path(work, 6).exists()


def test_a_run_that_was_removed_from_storage_is_not_revived(remote, work):
    with mirrored(remote, work):
        eventlog.append(work, events.Damage(text="sent"))
        save(work, 2)
    for name in remote.files():
        remote.remove(name)
    assert taken(remote, work) is None
    assert eventlog.read(work) == []


def test_scores_that_a_resumed_run_drops_are_removed_on_storage(remote, work):
    score(work, 2, 50)
    with mirrored(remote, work):
        until(lambda: "evaluations/step-000000002.json" in remote.files())
        scores_path(work, 2).unlink()
        until(lambda: "evaluations/step-000000002.json" not in remote.files())


def test_a_request_to_stop_on_storage_reaches_the_host(remote, work):
    with mirrored(remote, work):
        assert not stop.is_requested(work)
        remote.write(stop.STOP, b"")
        until(lambda: stop.is_requested(work))
    remote.remove(stop.STOP)
    taken(remote, work)
    assert not stop.is_requested(work)


def test_nothing_is_sent_for_a_run_that_another_command_owns(remote, work):
    with mirrored(remote, work) as sender:
        remote.write(LEASE, json.dumps({"owner": "another"}).encode())
        until(lambda: stop.is_requested(work))
        save(work, 2)
        jsonl.append(work / METRICS, {"step": 1})
    assert set(remote.files()) == {LEASE}
    assert "another command owns the run" in sender.waiting


def test_another_host_sends_its_own_log_alone(remote, work, tmp_path, monkeypatch):
    name = "events-b.jsonl"
    eventlog.write_as_host("b")
    with mirrored(remote, work, of_run=False):
        eventlog.append(work, events.Damage(text="of b"))
        jsonl.append(work / METRICS, {"step": 1})
        save(work, 2)
    assert set(remote.files()) == {LEASE, name}
    other = tmp_path / "other"
    taken(remote, other)
    assert [event.text for event in eventlog.read_kind(other, events.Damage)] == ["of b"]
    eventlog.append(work, events.Damage(text="another of b"))
    remote.write(name, (work / name).read_bytes())
    monkeypatch.setattr(eventlog, "_own", EVENTS)
    with mirrored(remote, other):
        eventlog.append(other, events.Damage(text="of rank 0"))
    assert remote.read(name) == (work / name).read_bytes(), "the copy of rank 0's host is older"


def test_an_outage_loses_nothing_and_is_reported_once(work, monkeypatch):
    with s3_server(monkeypatch, "bucket") as server:
        remote = owned(RemoteFolder("s3://bucket/runs/a"))
        with mirrored(remote, work):
            save(work, 2)
            until(lambda: whole(remote) == [2])
            server.stop()
            for step in range(4, 10, 2):
                save(work, step)
                jsonl.append(work / METRICS, {"step": step})
            shutil.rmtree(work / CHECKPOINTS / checkpoint.name_of(4, 1))  # as `prune` does
            until(lambda: len(eventlog.read_kind(work, events.Warned)) == 2)
            server.start()
            until(lambda: len(eventlog.read_kind(work, events.Warned)) == 4)
            until(lambda: whole(remote) == [6, 8])
        assert len(remote.read(METRICS).splitlines()) == 3
    texts = [event.text for event in eventlog.read_kind(work, events.Warned)]
    assert sorted(text.split(" s3:")[0] for text in texts) == [
        "can send checkpoints to",
        "can send records to",
        "cannot send checkpoints to",
        "cannot send records to",
    ]


def away(*_: object, **__: object) -> None:
    raise ConnectionError("refused")


def test_a_checkpoint_comes_with_all_rows_before_it(remote, work, monkeypatch):
    monkeypatch.setattr(storage, "interval_s", lambda size: 1e9)  # as that of a large record
    with mirrored(remote, work):
        jsonl.append(work / METRICS, {"step": 1})
        until(lambda: METRICS in remote.files())
        jsonl.append(work / METRICS, {"step": 2})
        save(work, 2)
        until(lambda: whole(remote) == [2])
        assert len(remote.read(METRICS).splitlines()) == 2


def test_what_waits_at_the_end_is_named(remote, work, monkeypatch):
    monkeypatch.setattr(mirror, "FLUSH_S", 0.5)
    with mirrored(remote, work) as sender:
        monkeypatch.setattr(RemoteFolder, "_call", away)
        save(work, 2)
    assert "refused" in sender.waiting


def test_large_records_are_copied_less_often():
    assert storage.interval_s(0) == storage.EVERY_S
    assert storage.interval_s(100 << 20) == 100


def test_sharded_checkpoints_of_several_hosts_are_refused(remote, work, monkeypatch):
    monkeypatch.setattr(pull, "all_gather", lambda host: [host, host, "another"])
    with pytest.raises(UsageError, match=r"zero\.stage=3"):
        pull.prepare(remote.url, work, is_sharded=True)


def test_weights_are_taken_with_the_best_checkpoint_alone(remote, work, monkeypatch, tmp_path):
    monkeypatch.setenv("M2F_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="no run is there"):
        pull.weights_of(remote.url, "panoptic")
    remote.write("config.yaml", b"")
    with mirrored(remote, work):
        for step, value in ((2, 90), (4, 10)):
            score(work, step, value)
            save(work, step)
    folder = pull.weights_of(remote.url, "panoptic")
    states = [path.parent.name for path in folder.glob(f"{CHECKPOINTS}/*/{STATE}")]
    assert states == [checkpoint.name_of(2, 1)]
    flip(folder / CHECKPOINTS / states[0] / STATE, 20, 1)
    assert pull.weights_of(remote.url, "panoptic") == folder
    assert checkpoint.damage(folder / CHECKPOINTS / states[0]) is None
