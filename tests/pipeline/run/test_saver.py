"""A checkpoint is written by another process while training continues."""

import contextlib
import os
import resource
import signal
import threading

import pytest

from pipeline.run import checkpoint, eventlog, events
from pipeline.run.cadence import Cadence, mtbf_s, suggested_minutes
from pipeline.run.checkpoint import Progress
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.journal import Journal
from pipeline.settings import CheckpointSettings
from shards.errors import Failed
from tests.pipeline.run.test_journal import StubEngine, journal_of, steps_of


@pytest.fixture
def journal(tmp_path):
    """Return the journal of a run with its first checkpoint; its process ends with the test."""
    journal = journal_of(tmp_path)
    save(journal, 0, required=True)
    yield journal
    with contextlib.suppress(ProcessLookupError):
        os.kill(writer(journal), signal.SIGKILL)


def save(journal: Journal, step: int, required: bool = False) -> None:
    engine = StubEngine(1.0)
    journal.save(Progress(step, 8 * step, step), engine, required=required)  # pyright: ignore[reportArgumentType]


def writer(journal: Journal) -> int:
    process = journal._saver._writer
    assert process is not None
    return process.pid


def later(journal: Journal, number: signal.Signals) -> None:
    threading.Timer(0.3, os.kill, (writer(journal), number)).start()


def test_training_continues_while_a_checkpoint_is_written(tmp_path, journal):
    os.kill(writer(journal), signal.SIGSTOP)
    save(journal, 2)
    journal.is_due(3)
    assert steps_of(tmp_path) == [0]
    assert [e.step for e in eventlog.read_kind(tmp_path, events.Checkpoint)] == [0]
    later(journal, signal.SIGCONT)
    save(journal, 4)  # waits for the one before
    assert journal.is_saved(4)
    first, *others = eventlog.read_kind(tmp_path, events.Checkpoint)
    assert first.suggested_minutes is None
    assert [e.step for e in others] == [2, 4]
    assert all(e.suggested_minutes and e.write_s for e in others)
    assert others[1].stall_s > others[0].stall_s
    assert steps_of(tmp_path) == [4]


def test_a_score_is_recorded_after_its_checkpoint(tmp_path, journal):
    os.kill(writer(journal), signal.SIGSTOP)
    save(journal, 2)
    later(journal, signal.SIGCONT)
    journal.scored(2, {"PQ": 50.0})
    assert [type(e).__name__ for e in eventlog.read(tmp_path)][-2:] == ["Checkpoint", "Evaluation"]


def test_a_writer_that_is_killed_costs_a_checkpoint_and_not_the_run(tmp_path, journal):
    os.kill(writer(journal), signal.SIGSTOP)
    save(journal, 2)
    os.kill(writer(journal), signal.SIGKILL)
    save(journal, 4)
    assert journal.is_saved(4)
    (failed,) = eventlog.read_kind(tmp_path, events.CheckpointFailed)
    assert (failed.step, "was killed (SIGKILL)" in failed.error) == (2, True)
    assert steps_of(tmp_path) == [4]


def test_a_writer_that_is_killed_at_a_required_checkpoint_ends_the_run(tmp_path, journal):
    os.kill(writer(journal), signal.SIGSTOP)
    later(journal, signal.SIGKILL)
    with pytest.raises(Failed, match=r"was killed \(SIGKILL\); run the same command to resume"):
        save(journal, 2, required=True)
    assert steps_of(tmp_path) == [0]


def test_a_disk_that_refuses_a_checkpoint_does_not_end_the_run(tmp_path, journal):
    """The system refuses the process files of more than 100 bytes, as a full disk would."""
    _, hard = resource.prlimit(writer(journal), resource.RLIMIT_FSIZE)
    resource.prlimit(writer(journal), resource.RLIMIT_FSIZE, (100, hard))
    save(journal, 2)
    assert not journal.is_saved(2)
    (failed,) = eventlog.read_kind(tmp_path, events.CheckpointFailed)
    assert (failed.step, "File too large" in failed.error) == (2, True)
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == [checkpoint.name_of(0, 1)]
    resource.prlimit(writer(journal), resource.RLIMIT_FSIZE, (hard, hard))
    save(journal, 4, required=True)


def test_a_checkpoint_is_due_by_time_and_by_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    cadence = Cadence(CheckpointSettings(every_minutes=1.5, every_steps=100))
    assert [cadence.is_due(step) for step in (99, 100, 101)] == [False, True, False]
    now[0] = 90.0
    assert cadence.is_due(101)
    cadence.restart()
    assert not cadence.is_due(101)


def test_the_suggested_interval_is_that_of_young():
    def start(time: float) -> events.Start:
        return events.Start(time=time, world_size=2, step=0)

    stopped = events.Stopped(time=1500, step=1, position=8)
    never_failed = [start(0), stopped, start(2000)]
    assert mtbf_s(never_failed, 128) == 12 * 3600
    history = [start(0), events.Skipped(time=1000, step=1, grad_norm="nan"), *never_failed]
    assert mtbf_s(history, 128) == (1000 + 1500)
    assert suggested_minutes(0.5, 3, 3600) == 1  # sqrt(2 x 0.5 x 3600) = 60 s
    assert suggested_minutes(0.5, 90, 3600) == 1.5
    assert suggested_minutes(9, 3, 1e6) == 10
