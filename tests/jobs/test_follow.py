"""What `train` prints while the workers train, and the error that it ends with."""

import os
import time

import pytest

from jobs import follow, train
from jobs.follow import SILENT, Follower
from jobs.worker import Job
from pipeline.run import eventlog, events
from pipeline.run.track import METRICS
from shards.errors import DataError, Failed
from shards.jsonl import append
from tests.pipeline.run.test_events import LINES


def test_every_kind_of_event_is_printed_in_its_own_words(tmp_path, capsys):
    read = [events.KIND_OF_NAME[line["event"]].from_json(line) for line in LINES]
    with Follower(tmp_path, steps=16):
        for event in read:
            eventlog.append(tmp_path, event)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [event.describe() for event in read if not isinstance(event, SILENT)]
    assert "attempt 2: 2 workers, ZeRO 1 on cpu, from step-000000004-a01" in printed
    assert "step 4: PQ 50.5  mIoU 60.0" in printed
    assert "worker 1 failed: DataError: a.tar: damaged" in printed


def test_names_in_events_are_escaped_in_the_terminal(tmp_path, capsys):
    with Follower(tmp_path, steps=16):
        eventlog.append(tmp_path, events.Quarantined(step=1, samples=["a\x1b]0;taken\x07"]))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert r"a\x1b]0;taken\x07" in printed


def test_a_warning_of_several_workers_is_printed_once(tmp_path, capsys):
    with Follower(tmp_path, steps=16):
        for rank in (0, 1):
            eventlog.append(tmp_path, events.Warned(rank=rank, category="UserWarning", text="slow"))
    assert capsys.readouterr().out.splitlines() == ["warning (worker 0): slow"]


def test_a_line_that_cannot_be_read_does_not_stop_the_follower(tmp_path, capsys):
    with Follower(tmp_path, steps=16):
        (tmp_path / eventlog.EVENTS).write_text('{"event": "fin\n{"event": "eclipse"}\n')
        time.sleep(1)
        eventlog.append(tmp_path, events.Damage(text="after"))
    assert capsys.readouterr().out.splitlines() == ["after"]


TORN = (
    *(b"", b"\n\n", b"\0" * 9, b"\xff\xfe", b"{}", b"[]", b"7", b'{"event": "fin', b"[" * 200_000),
    *(
        b'{"event": "evaluation", "time": 1, "step": 4, "PQ": []}',
        b'{"event": "damage", "text": 7}',
    ),
    *(b'{"event": "quarantined", "step": 1, "samples": [7]}', b'{"step": 3, "loss": null}'),
    b'{"step": 1%s, "attempt": 2, "loss": 1.0, "images_per_s": 1.0}' % (b"0" * 400),
    b'{"step": 4, "attempt": 2, "loss": 1, "images_per_s": 1.0}',
    *(
        b'{"step": "x", "loss": 1.0, "images_per_s": 1.0}',
        b'{"event": "damage", "text": "\\ud800"}',
    ),
)


@pytest.mark.parametrize("line", TORN, ids=lambda line: line[:50].decode(errors="replace"))
@pytest.mark.parametrize("name", [eventlog.EVENTS, METRICS])
def test_no_line_of_a_record_stops_the_follower(tmp_path, capsys, monkeypatch, name, line):
    monkeypatch.setattr(follow, "POLL_S", 0.01)
    monkeypatch.setattr(follow, "PLAIN_LINE_EVERY_S", -1)
    row = {"step": 3, "attempt": 2, "loss": 2.0, "images_per_s": 4.0}
    with Follower(tmp_path, steps=16) as follower:
        eventlog.append(tmp_path, events.Start(world_size=1, step=0, attempt=2))
        append(tmp_path / METRICS, row)
        with (tmp_path / name).open("ab") as file:
            file.write(line)
        time.sleep(0.1)
        eventlog.append(tmp_path, events.Damage(text="after"))
        append(tmp_path / METRICS, row | {"step": 4})
        time.sleep(0.1)
        assert follower._thread.is_alive()
    printed = capsys.readouterr().out.splitlines()
    assert "after" in printed
    assert "step 4/16  loss 2.0  4.0 images/s" in printed


@pytest.mark.parametrize("name", [eventlog.EVENTS, METRICS])
def test_no_file_stops_the_follower(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(follow, "POLL_S", 0.01)
    with Follower(tmp_path, steps=16) as follower:
        for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")):
            make(tmp_path / name)
            time.sleep(0.05)
            remove = os.rmdir if (tmp_path / name).is_dir() else os.unlink
            remove(tmp_path / name)
        assert follower._thread.is_alive()
        eventlog.append(tmp_path, events.Damage(text="after"))
    assert capsys.readouterr().out.splitlines() == ["after"]


def test_metrics_of_an_earlier_command_are_not_progress(tmp_path, capsys, monkeypatch):
    """They are on disk until the resumed workers remove the steps past their checkpoint.

    The clocks of the hosts do not matter.
    """
    monkeypatch.setattr(follow, "POLL_S", 0.01)
    monkeypatch.setattr(follow, "PLAIN_LINE_EVERY_S", -1)
    row = {"step": 285, "attempt": 1, "time": 9e9, "loss": 2.0, "images_per_s": 4.0}
    append(tmp_path / METRICS, row)
    with Follower(tmp_path, steps=300) as follower:
        time.sleep(0.1)
        eventlog.append(tmp_path, events.Start(world_size=1, step=200, attempt=2))
        time.sleep(0.1)
        assert follower._progress.tasks[0].completed == 200
        append(tmp_path / METRICS, row | {"step": 201, "attempt": 2, "time": 1.0})
        time.sleep(0.1)
        assert follower._progress.tasks[0].completed == 201
    printed = capsys.readouterr().out
    assert "step 285/300" not in printed
    assert "step 201/300" in printed


def test_a_closed_pipe_does_not_end_the_command(tmp_path, monkeypatch):
    """Ctrl-C in `train | tee log` ends tee first."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", closed)
        with Follower(tmp_path, steps=16) as follower:
            follower.say("SIGINT: a checkpoint is written after this step")


@pytest.fixture
def job(tmp_path):
    return Job({}, tmp_path / "mine", launch="17.000")


def test_the_error_of_a_worker_is_rebuilt_in_the_driver(job):
    job.folder.mkdir()
    error = DataError("its hash differs", where="a.tar", fix="build it again")
    old = events.Failure.of(DataError("an older one"), launch="16.000", rank=0)
    eventlog.append(job.folder, old)
    eventlog.append(job.folder, events.Failure.of(OSError("x"), launch=job.launch, rank=0))
    eventlog.append(job.folder, events.Failure.of(error, launch=job.launch, rank=1))
    eventlog.append(job.folder, events.Failure.of(OSError("y"), launch=job.launch, rank=0))
    rebuilt = train._failure(job)
    assert (type(rebuilt), rebuilt.problem) == (DataError, error.problem)


def test_other_errors_are_a_failed_run(job):
    job.folder.mkdir()
    assert str(train._failure(job)).startswith("mine: the run failed: the workers died; see ")
    eventlog.append(job.folder, events.Failure.of(OSError("y"), launch=job.launch, rank=0))
    rebuilt = train._failure(job)
    assert type(rebuilt) is Failed
    lost = events.Failure(launch=job.launch, rank=1, kind="E", text="gone", lost_peer=True)
    eventlog.append(job.folder, lost)
    assert train._failure(job).problem == rebuilt.problem
    assert str(rebuilt).startswith("mine: the run failed: OSError: y; see ")
