"""The `watch` and `runs` commands, on folders that hold the records of runs, and on storage."""

import contextlib
import json
import platform
import time
from pathlib import Path

import fsspec
import pytest
from rich.console import Console

from jobs import config as configs
from jobs import records, watch
from jobs.frame import PLAIN_BLOCKS, duration, frame, sparkline
from jobs.records import Metrics, View
from pipeline.run import eventlog, events
from pipeline.run.folder import scores_path
from pipeline.run.lease import LEASE
from pipeline.run.track import METRICS
from shards.files import write_json
from shards.jsonl import append, keep_rows
from shards.locks import file_lock
from tests.jobs import small

NOW = time.time()
HOST = platform.node()


def row(step: int, **more: float) -> dict:
    return {
        "step": step, "time": NOW - 100 + step, "position": 8 * step, "loss": 100.0 / step,
        "loss_ce": 50.0 / step, "loss_ce_0": 1.0, "lr": 1e-4, "grad_norm": 2.5, "interval_s": 0.5,
        "step_s": 0.5, "data_wait_s": 0.1, "images_per_s": 16.0, "images_per_s_per_worker": 8.0,
        "damaged_samples": 2, "skipped_steps": 1, "attempt": 2,
        "hosts/a.b.memory_gib": 12.5, "hosts/c.memory_gib": 3.0, **more,
    }  # fmt: skip


def start(attempt: int = 1, step: int = 0, host: str = HOST) -> events.Start:
    return events.Start(
        attempt=attempt, launch=f"{NOW - 110:.3f}", time=NOW - 100, world_size=2, step=step,
        host=host, device="cpu",
    )  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run of 16 steps that has taken 8, was restarted once, and was scored once."""
    monkeypatch.chdir(tmp_path)
    shards = tmp_path / "shards"
    _, preset, *overrides = small.words(shards)
    folder = tmp_path / "runs" / small.NAME
    folder.mkdir(parents=True)
    configs.save(configs.load(preset, overrides), folder / "config.yaml")
    eventlog.append(folder, start())
    eventlog.append(folder, events.Failure(launch="", rank=1, kind="E", text="a\nwas\x1b[2J lost"))
    eventlog.append(folder, start(attempt=2, step=4))
    for step in range(1, 9):
        append(folder / METRICS, row(step))
    scores_path(folder, 8).parent.mkdir()
    write_json(scores_path(folder, 8), {"step": 8, "PQ": 41.25, "mIoU": 50.5})
    return folder


def lines(folder: Path, **more) -> dict[str, str]:
    """Return the lines of a frame by their labels."""
    text = frame(View.of(str(folder)), NOW, width=100, **more).plain
    assert all(len(line) < 200 for line in text.splitlines())
    return {line[:12].strip(): line[12:] for line in text.splitlines()}


def test_a_frame_shows_what_a_user_wants_to_know(run):
    shown = lines(run)
    assert shown["run"] == f"{small.NAME}  {run}"
    assert shown["workers"] == f"2 workers on {HOST} (cpu), attempt 2, from step 4"
    assert shown["progress"].endswith("] step 8/16  50.0 %  4 s left")
    assert shown["loss"] == "     12.5  █▄▃▂▂▁▁▁  12.5 to 100"
    assert shown["class"].startswith("     6.25  █")
    assert shown["update"] == "lr 0.0001   grad_norm 2.5"
    assert shown["speed"] == (
        "16 images/s (8 per worker), 0.5 s per step, of which 20 % wait for data"
    )
    assert shown["memory"] == "host 12.5 GiB (a.b)"
    assert shown["scores"] == "step 8: PQ 41.2  mIoU 50.5"
    assert shown["best"].startswith("PQ 41.2 at step 8")
    assert shown["counts"] == "restarts 1, damaged samples 2, skipped steps 1"
    assert "worker 1 failed: E: a was\\x1b[2J lost" in frame(View.of(str(run)), NOW, 100).plain


@pytest.mark.parametrize(
    ("last", "is_locked", "age", "state"),
    [
        (None, True, 5, "running, last sign 5 s ago"),
        (None, True, 500, "running, last sign 8 min 20 s ago"),
        (None, False, 500, "no sign of life for 8 min 20 s"),
        (events.Finish(step=16, position=128), False, 5, "finished"),
        (events.Stopped(step=8, position=64), False, 5, "stopped"),
        (events.Failure(launch="", rank=0, kind="E", text="x"), False, 5, "failed"),
        (events.Failure(launch="", rank=0, kind="E", text="x"), True, 5, "restarting"),
    ],
)
def test_the_state_follows_from_the_events_and_the_lock(run, last, is_locked, age, state):
    if last is not None:
        eventlog.append(run, last)
    view = View.of(str(run))
    (run / ".lock").touch()
    lock = file_lock(run / ".lock", wait=False) if is_locked else contextlib.nullcontext()
    with lock:
        shown = frame(view, view.last_sign + age, 100).plain.splitlines()[1]
    assert shown == f"state       {state}"


@pytest.mark.parametrize(("age", "state"), [(10, records.RUNNING), (60, records.SILENT)])
def test_a_run_of_another_host_lives_by_its_lease(run, age, state):
    eventlog.append(run, start(attempt=3, host="elsewhere"))
    (run / ".lock").touch()
    (run / LEASE).touch()
    view = View.of(str(run))
    assert view.state((run / LEASE).stat().st_mtime + age)[0] == state


def test_metrics_that_a_resumed_run_has_dropped_disappear(run):
    metrics = Metrics(run)
    assert [row["step"] for row in metrics.read()] == list(range(1, 9))
    keep_rows(run / METRICS, {"step": int}, lambda row: row["step"] <= 4)
    with (run / METRICS).open("a") as file:
        file.write('{"step": 5, "lo')
    assert [row["step"] for row in metrics.read()] == [1, 2, 3, 4]
    with (run / METRICS).open("a") as file:
        file.write('ss": 7}\nnothing\n{"step": null}\n')
    assert metrics.read()[-1] == {"step": 5, "loss": 7}
    assert "loss_ce_0" not in metrics.rows[0]


def test_a_run_without_records_has_a_frame(tmp_path, run):
    for path in run.rglob("*.json*"):
        path.unlink()
    assert lines(run)["state"].startswith("no sign of life")


def test_one_frame_is_plain_text(run, capsys):
    watch.watch(small.NAME, once=True)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed.startswith(f"run         {small.NAME}  {run}\nstate       no sign of life")


def test_watch_ends_with_the_run(run, capsys, monkeypatch):
    """In a terminal, frames follow each other until the run has ended."""
    monkeypatch.setattr(watch, "EVERY_S", 0.01)
    monkeypatch.setattr(watch, "Console", lambda: Console(force_terminal=True, width=90))
    read, frames = watch._read, []

    def counted(view: View) -> None:
        frames.append(view.step)
        if len(frames) == 3:
            eventlog.append(run, events.Finish(step=16, position=128))
        read(view)

    monkeypatch.setattr(watch, "_read", counted)
    watch.watch(small.NAME, once=False)
    assert len(frames) == 3
    printed = capsys.readouterr().out
    assert "finished" in printed
    assert all(len(line) <= 90 for line in Console().render_str(printed).plain.splitlines()[-3:])


def test_runs_are_listed_with_their_state(tmp_path, run, capsys):
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.yaml").write_text("trainer: 7")
    found = watch.runs("runs")
    assert [row["name"] for row in found] == [small.NAME, "broken"]
    assert found[0]["goodput"] is not None
    assert found[0].items() >= {
        "state": records.SILENT, "step": 8, "steps": 16, "metric": "PQ", "best": 41.25,
        "best_step": 8, "location": str(run),
    }.items()  # fmt: skip
    assert found[1]["state"] == "unreadable"
    assert "trainer" in found[1]["problem"]
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split("\t")[:4] == ["run", "state", "progress", "best"]
    assert first.split("\t")[:4] == [small.NAME, "silent", "8/16  50 %", "PQ 41.2 @ 8"]
    assert second.startswith("broken\tunreadable: ")


def test_runs_is_json_on_request(run):
    outcome = small.call(run.parents[1], "runs", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)[0]["name"] == small.NAME
    assert small.complaint(small.call(run, "runs", "nothing")).startswith("error: nothing: no such")
    assert "no runs at ." in small.call(run / "evaluations", "runs", ".").out


def test_a_run_on_storage_is_shown_and_listed(run, tmp_path, monkeypatch):
    monkeypatch.setenv("M2F_CACHE", str(tmp_path / "cache"))
    url = "memory://watched-runs"
    storage = fsspec.filesystem("memory")
    storage.put(str(run), f"/watched-runs/{small.NAME}", recursive=True)
    view = View.of(f"{url}/{small.NAME}")
    assert (view.step, view.location) == (8, f"{url}/{small.NAME}")
    (listed,) = watch.runs(url)
    assert (listed["name"], listed["step"], listed["best"]) == (small.NAME, 4, 41.25)
    storage.rm(f"/watched-runs/{small.NAME}/config.yaml")
    assert "no run is there" in small.complaint(
        small.call(tmp_path, "watch", f"{url}/{small.NAME}", "--once")
    )


@pytest.mark.parametrize(
    ("values", "curve"),
    [([], ""), ([3.0], "_"), ([1, 1, 1], "___"), ([0, 7], "_#"), ([0, 0, 4, 4, 8, 8], "_+#")],
)
def test_a_curve_spans_its_values(values, curve):
    assert sparkline(values, 3, PLAIN_BLOCKS) == curve


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.7, "1 min 00 s"), (3600, "1 h 00 min"), (400_000, "4 d 15 h")],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text
