"""A worker trains in a folder of its host, and its errors reach the storage of the run."""

import json
import os
import platform
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

from pipeline.distributed import rank_and_world
from pipeline.run import checkpoint, eventlog, events, mirror, storage
from pipeline.run.eventlog import EVENTS
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.lease import LEASE
from pipeline.run.working_copy import WorkingCopy
from pipeline.settings import TrainerSettings
from pipeline.train import train
from shards.errors import Failed
from shards.remote import RemoteFolder
from tests import distributed
from tests.pipeline.runs import smallest, trainer_state


@pytest.fixture
def copy(tmp_path, monkeypatch) -> WorkingCopy:
    monkeypatch.setenv("M2F_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "EVERY_S", 0.05)
    monkeypatch.setattr(eventlog, "_own", EVENTS)
    copy = WorkingCopy(f"memory://{tmp_path}/runs/a", "owner")
    RemoteFolder(copy.url).write(LEASE, json.dumps({"owner": "owner"}).encode())
    return copy


def away(*_: object, **__: object) -> None:
    raise ConnectionError("refused")


def texts(copy: WorkingCopy) -> list[str]:
    return [event.text for event in copy.history() if isinstance(event, events.Damage)]


def save(folder: Path) -> None:
    path = folder / CHECKPOINTS / checkpoint.name_of(2, 1)
    checkpoint.save(path, {"weight": torch.ones(1)}, trainer_state(2))


def test_what_a_worker_writes_is_on_storage_at_the_end(copy):
    with copy.kept(smallest(Path("sets"))):
        eventlog.append(copy.folder, events.Damage(text="trained"))
        save(copy.folder)
    assert texts(copy) == ["trained"]
    assert len(storage.committed(set(RemoteFolder(copy.url).files()))) == 1


def test_the_error_of_a_worker_reaches_the_storage_at_once(copy):
    eventlog.append(copy.folder, events.Damage(text="why"))
    copy.send_log()
    assert texts(copy) == ["why"]
    eventlog.append(copy.folder, events.Damage(text="and why"))
    copy.send_log()
    assert texts(copy) == ["why", "and why"]


def test_the_log_of_a_host_that_is_behind_replaces_no_other(copy):
    remote = RemoteFolder(copy.url)
    eventlog.append(copy.folder, events.Damage(text="of another time"))
    line = json.dumps(events.Damage(text="there").to_json()).encode() + b"\n"
    remote.write(EVENTS, line)
    copy.send_log()
    assert remote.read(EVENTS) == line


def test_workers_of_a_command_that_is_not_the_owner_do_not_train(copy):
    RemoteFolder(copy.url).write(LEASE, json.dumps({"owner": "another"}).encode())
    eventlog.append(copy.folder, events.Damage(text="why"))
    copy.send_log()
    assert texts(copy) == []
    refused = pytest.raises(Failed, match="another command owns the run")
    with refused, copy.kept(smallest(Path("sets"))):
        raise AssertionError("not reached")


def test_what_could_not_be_sent_in_the_end_is_an_error_that_names_the_folder(copy, monkeypatch):
    monkeypatch.setattr(mirror, "FLUSH_S", 0.3)

    def train() -> None:
        save(copy.folder)
        monkeypatch.setattr(RemoteFolder, "_call", away)

    with pytest.raises(Failed, match="refused") as raised, copy.kept(smallest(Path("sets"))):
        train()
    assert str(copy.folder) in str(raised.value)


def test_an_error_in_training_is_not_replaced_by_one_of_the_storage(copy, monkeypatch):
    monkeypatch.setattr(mirror, "FAILED_S", 0.3)

    def train() -> None:
        monkeypatch.setattr(RemoteFolder, "_call", away)
        raise ValueError("of training")

    with pytest.raises(ValueError, match="of training"), copy.kept(smallest(Path("sets"))):
        train()
    assert copy.history() == []


def on_hosts(url: str, sets: Path, cache: Path, hosts: list[str], steps: int) -> Path:
    """Train on the host of this rank, and return its folder."""
    host = hosts[rank_and_world()[0]]
    platform.node = lambda: host
    os.environ["M2F_CACHE"] = str(cache)
    copy, settings = WorkingCopy(url, "owner"), up_to(sets, steps)
    eventlog.separate_hosts()
    with copy.kept(settings):
        eventlog.append(copy.folder, events.Damage(text=f"{steps} steps on {host}"))
        train(settings, copy.folder)
    return copy.folder


def on_one_host(folder: Path, sets: Path, steps: int) -> None:
    train(up_to(sets, steps), folder)


def up_to(sets: Path, steps: int):
    return smallest(sets, trainer=TrainerSettings(steps=steps, log_every=1))


@pytest.mark.slow
def test_two_hosts_share_a_run_and_can_change_their_ranks(photographs, tmp_path):
    """The second time, rank 0 is on the other host, and the first one has lost its folder."""
    url, cache = f"file://{tmp_path}/storage/runs/a", tmp_path / "cache"
    remote = RemoteFolder(url)
    remote.write(LEASE, json.dumps({"owner": "owner"}).encode())
    first = distributed.run(on_hosts, 2, url, photographs, cache, ["a", "b"], 2)
    assert first[0] != first[1]
    assert not checkpoint.committed(first[1] / CHECKPOINTS)
    shutil.rmtree(first[0])
    second = distributed.run(on_hosts, 2, url, photographs, cache, ["b", "a"], 4)
    assert second == [first[1], first[0]]

    log = WorkingCopy(url, "owner").history()
    starts = [event for event in log if isinstance(event, events.Start)]
    assert [(start.host, start.step) for start in starts] == [("a", 0), ("b", 2)]
    assert {event.text for event in log if isinstance(event, events.Damage)} == {
        *("2 steps on a", "2 steps on b", "4 steps on a", "4 steps on b")
    }
    assert {"events.jsonl", "events-a.jsonl", "events-b.jsonl"} <= set(remote.files())

    (tmp_path / "plain").mkdir()
    distributed.run(on_one_host, 2, tmp_path / "plain", photographs, 4)
    (plain,) = (tmp_path / "plain").glob(f"{CHECKPOINTS}/step-000000004-*/{checkpoint.STATE}")
    (name,) = [n for n in remote.files() if "step-000000004" in n and n.endswith(checkpoint.STATE)]
    ours, expected = load(remote.read(name)), load_file(plain)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[tensor], expected[tensor]) for tensor in ours)
