"""The times of a start pass to the workers, and a worker that memory has cost is recorded."""

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError

from jobs import memory, start_marks
from jobs.start_marks import StartMarks
from pipeline.run import eventlog, events
from pipeline.run.restarts import is_crash_loop
from pipeline.run.start_parts import StartParts


def group(**errors: Exception):
    """Return workers, of which some have failed: rN is the error of rank N."""
    by_rank = {int(name[1:]): error for name, error in errors.items()}
    return SimpleNamespace(
        execute=lambda function, *arguments: function(*arguments),
        get_latest_poll_status=lambda: SimpleNamespace(errors=by_rank),
    )


def test_the_first_start_begins_with_the_command():
    parts = StartParts(began=5.0)
    parts.end("command and Ray", 7.0)
    StartMarks(parts, None, "").after_worker_group_start(group())
    received = start_marks.received()
    assert received.began == 5.0
    assert [part for part, _ in received.ends] == ["command and Ray", "placement"]
    times = [at for _, at in received.ends]
    assert times == sorted(times)


def test_a_restart_begins_with_the_failure():
    marks = StartMarks(StartParts(began=5.0), None, "")
    marks.before_worker_group_shutdown(group(r0=ValueError()))
    marks.after_worker_group_shutdown(None)
    marks.after_worker_group_start(group())
    received = start_marks.received()
    assert received.began is None
    assert [part for part, _ in received.ends] == ["detection", "teardown", "placement"]


OF_RAY = OutOfMemoryError("Task was killed due to the node running low on memory.")


@pytest.mark.parametrize(
    ("error", "killed", "is_recorded"),
    [
        (OF_RAY, 0, True),
        (ActorDiedError(), 1, True),  # Linux has killed a process, and this one has died
        (ActorDiedError(), 0, False),
        (ValueError("data"), 1, False),  # an error of its own
    ],
)
def test_a_worker_that_was_killed_because_memory_was_full_is_recorded(
    monkeypatch, tmp_path, error, killed, is_recorded
):
    counters = tmp_path / "vmstat"
    monkeypatch.setattr(memory, "COUNTERS", counters)
    marks = StartMarks(StartParts(), tmp_path, "1.000")
    for _ in range(3):
        eventlog.append(tmp_path, events.Start(launch="1.000", world_size=2, step=4))
        counters.write_text("nr_free_pages 5\noom_kill 7\n")
        marks.before_worker_group_start(None)
        counters.write_text(f"nr_free_pages 5\noom_kill {7 + killed}\n")
        marks.before_worker_group_shutdown(group(r0=ValueError(), r1=error))
    failures = eventlog.read_kind(tmp_path, events.Failure)
    assert [failure.rank for failure in failures] == [1] * 3 * is_recorded
    assert all("lower batch.micro, data.loader_workers" in f.describe() for f in failures)
    assert is_crash_loop(eventlog.read(tmp_path), "1.000") is is_recorded


def test_a_machine_without_the_counter_has_no_kills(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "COUNTERS", tmp_path / "missing")
    assert memory.kills() == 0
