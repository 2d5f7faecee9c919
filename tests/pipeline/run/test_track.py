"""What a run says of itself, in its own files and in W&B's, and that it never harms the run."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from pipeline.run.track import EVENTS, METRICS, Tracker, WandbSettings
from shards.jsonl import append, keep_rows, rows

OFF = WandbSettings(mode="disabled")


def tracker(folder: Path, settings: WandbSettings = OFF, active: bool = True) -> Tracker:
    return Tracker(
        folder, settings, active=active, name="small", run_id="small-00c0ffee",
        config={"optimizer": {"lr": 0.25}, "world_size": 2},
    )  # fmt: skip


def plain_rows(path: Path) -> list[dict]:
    """Strict JSON, without the names that JSON does not have."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_metrics_are_one_row_a_step(tmp_path):
    tracked = tracker(tmp_path)
    tracked.metrics(10, {"loss": 2.5, "lr": 1e-4})
    tracked.metrics(20, {"loss": 2.25, "lr": 1e-4})
    first, second = plain_rows(tmp_path / METRICS)
    assert first.items() >= {"step": 10, "loss": 2.5, "lr": 1e-4}.items()
    assert second.items() >= {"step": 20, "loss": 2.25, "lr": 1e-4}.items()
    assert 0 <= second["time"] - first["time"] < 10
    assert rows(tmp_path / METRICS) == [first, second]


def test_what_is_not_finite_is_null(tmp_path):
    values = {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 0.0}
    tracker(tmp_path).metrics(1, values)
    (row,) = plain_rows(tmp_path / METRICS)
    assert [row[name] for name in "abcd"] == [None, None, None, 0.0]


def test_events_carry_their_fields(tmp_path):
    tracked = tracker(tmp_path)
    tracked.event("start", world_size=2, process_ids=[1, 2])
    tracked.event("checkpoint", name="step-1")  # a field may be called as the argument is
    start, saved = plain_rows(tmp_path / EVENTS)
    assert start.items() >= {"event": "start", "world_size": 2, "process_ids": [1, 2]}.items()
    assert saved.items() >= {"event": "checkpoint", "name": "step-1"}.items()


def test_an_inactive_tracker_writes_nothing(tmp_path):
    tracked = tracker(tmp_path, WandbSettings(), active=False)
    tracked.metrics(1, {"loss": 1.0})
    tracked.event("start")
    tracked.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_disabled_tracker_leaves_wandb_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("wandb.init was called"))
    tracked = tracker(tmp_path)
    tracked.metrics(1, {"loss": 1.0})
    tracked.finish()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_rows_of_no_file_are_none(tmp_path):
    assert rows(tmp_path / METRICS) == []


@pytest.mark.parametrize("kept", [1, 5, 12, 13])
def test_a_line_cut_by_a_crash_is_left_out_and_harms_no_other(tmp_path, kept):
    path = tmp_path / EVENTS
    append(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"event": "x"}'[:kept])
    assert rows(path) == [{"n": 1}]
    append(path, {"n": 2})  # a restarted worker goes on in the same file
    append(path, {"n": 3})
    assert rows(path) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_keep_rows_drops_the_rows_that_will_be_written_again(tmp_path):
    tracked = tracker(tmp_path)
    for step in (1, 2, 3, 4):
        tracked.metrics(step, {"loss": float(step)})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "los')
    keep_rows(tmp_path / METRICS, lambda row: row["step"] <= 2)
    assert [row["step"] for row in plain_rows(tmp_path / METRICS)] == [1, 2]
    tracked.metrics(3, {"loss": 0.5})
    assert [(r["step"], r["loss"]) for r in rows(tmp_path / METRICS)] == [(1, 1), (2, 2), (3, 0.5)]
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def whole_run(folder: Path) -> None:
    tracked = tracker(folder, WandbSettings())
    tracked.metrics(1, {"loss": 1.0})
    tracked.metrics(2, {"loss": 0.5})
    tracked.finish()


@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_a_failing_wandb_is_only_a_warning(tmp_path, monkeypatch, method):
    class Run:
        def define_metric(self, *_, **__): ...

        def log(self, values): ...

        def finish(self): ...

    calls = []

    def fail(*_, **__):
        calls.append(method)
        raise RuntimeError("the server is on fire")

    monkeypatch.setattr(wandb, "init", fail if method == "init" else lambda **_: Run())
    if method != "init":
        monkeypatch.setattr(Run, method, fail)
    with pytest.warns(UserWarning, match="W&B is off for this run: the server is on fire"):
        whole_run(tmp_path)
    assert calls == [method]  # given up after the first failure
    assert [row["step"] for row in rows(tmp_path / METRICS)] == [1, 2]


# W&B's own file: a header of 7 bytes, then LevelDB's log format with protobuf records.

BLOCK, HEADER = 32 * 1024, struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """The records of a .wandb file, their checksums verified."""
    content = path.read_bytes()
    assert struct.unpack_from("<4sH", content) == (b":W&B", 0xBEE1)
    at, parts = 7, b""
    while at + HEADER.size <= len(content):
        if BLOCK - at % BLOCK < HEADER.size:
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = HEADER.unpack_from(content, at)
        payload = content[at + HEADER.size : at + HEADER.size + length]
        assert zlib.crc32(bytes([kind]) + payload) == checksum
        at += HEADER.size + length
        parts = payload if kind in (FULL, FIRST) else parts + payload
        if kind in (FULL, LAST):
            yield Record.FromString(parts)


def history(path: Path) -> list[dict]:
    """The rows that were logged."""
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json)
         for item in record.history.item}
        for record in records(path) if record.WhichOneof("record_type") == "history"
    ]  # fmt: skip


def test_wandb_offline_really_writes_the_rows(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    tracked = tracker(tmp_path, WandbSettings(mode="offline", project="painted"))
    for step in (10, 20, 30):
        tracked.metrics(step, {"loss": 1 / step, "val/PQ": float("nan")})
    tracked.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    logged = [
        {name: value for name, value in row.items() if not name.startswith("_")}
        for row in history(path)
    ]
    assert logged == [
        {"trainer/step": step, "loss": 1 / step, "val/PQ": None} for step in (10, 20, 30)
    ]
    (run,) = [r.run for r in records(path) if r.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.display_name, run.project) == ("small-00c0ffee", "small", "painted")
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config.items() >= {"optimizer": {"lr": 0.25}, "world_size": 2}.items()
