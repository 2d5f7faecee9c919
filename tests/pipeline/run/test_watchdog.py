"""A worker that makes no progress ends, with its stacks; one that does is left alone."""

import threading
import time

import pytest

from pipeline.run import eventlog, events
from pipeline.run.phases import Phases
from pipeline.run.watchdog import EXIT_CODE, STACKS, Watchdog
from shards.errors import Failed


def watchdog(folder, limit_s, ended, phases=None):
    return Watchdog(
        folder,
        rank=1,
        launch="one",
        attempt=3,
        phases=phases or Phases(),
        limit_s=limit_s,
        end=ended.append,
    )


def stuck_in_this_function(until: threading.Event) -> None:
    until.wait(60)


def test_a_hang_ends_the_process_and_leaves_stacks_and_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.run.watchdog.WRITE_S", 2)
    ended, released = [], threading.Event()
    thread = threading.Thread(target=stuck_in_this_function, args=(released,))
    thread.start()
    phases = Phases()
    with watchdog(tmp_path, 0.2, ended, phases):
        phases.enter("checkpoint")
        while not ended:
            time.sleep(0.05)
    released.set()
    thread.join()
    assert ended == [EXIT_CODE]
    stacks = tmp_path / STACKS / "attempt-03-rank-1.txt"
    assert "stuck_in_this_function" in stacks.read_text()
    (failure,) = eventlog.read_kind(tmp_path, events.Failure)
    assert failure.rank == 1
    assert failure.launch == "one"
    assert "in the phase 'checkpoint'" in failure.what
    assert failure.where == str(stacks)
    assert failure.exit_code == Failed.exit_code
    assert not failure.lost_peer  # three hangs at one step are a crash loop


def test_a_disk_that_hangs_does_not_keep_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.run.watchdog.WRITE_S", 0.1)
    released = threading.Event()

    def wait(path) -> None:
        released.wait(60)
        path.mkdir()

    monkeypatch.setattr("pipeline.run.watchdog.make_folder", wait)
    ended = []
    with watchdog(tmp_path, 0.1, ended):
        while not ended:
            time.sleep(0.05)
    assert not list(tmp_path.iterdir())
    released.set()


@pytest.mark.parametrize("suspended", [False, True])
def test_progress_and_suspension_do_not_count_as_a_hang(tmp_path, monkeypatch, suspended):
    """The clock of a suspended process jumps between two polls."""
    now, ended, polls = [0.0], [], threading.Semaphore(0)

    def monotonic() -> float:
        now[0] += 100 if suspended else 0.1
        polls.release()
        return now[0]

    monkeypatch.setattr("pipeline.run.watchdog.POLL_S", 0.01)
    monkeypatch.setattr("pipeline.run.watchdog.time.monotonic", monotonic)
    phases = Phases()
    with watchdog(tmp_path, 10, ended, phases):
        for _ in range(50):
            polls.acquire()
            phases.enter("train")
    assert not ended
