"""Every second of a run's wall time is in exactly one kind, and work that was repeated is lost."""

import dataclasses

import pytest

from pipeline.run.events import Checkpoint, Failure, Finish, Start, Stopped
from pipeline.run.ledger import KINDS, goodput, ledger
from pipeline.run.phases import Phases


def start(time, attempt, launch, step, last_sign=0.0):
    return Start(
        time=time, attempt=attempt, launch=launch, step=step, world_size=2, last_sign=last_sign
    )


def saved(kind, time, step, **seconds):
    more = {"folder": "step"} if kind is Checkpoint else {}
    return kind(time=time, step=step, position=8 * step, seconds=seconds, **more)


# The command begins at 100, its workers at 110. They save step 10 after 50 s, log until 175, and
# die at 178; the next workers start at 190 from step 10 and are stopped at 230. Another command at
# 1000 finishes the run.
HISTORY = [
    start(110, 1, "100.000", 0),
    saved(Checkpoint, 112, 0, start=2),
    saved(Checkpoint, 160, 10, start=2, data=5, train=40, checkpoint=3),
    Failure(time=178, launch="100.000", rank=1, kind="E", text="died"),
    start(190, 2, "100.000", 10, last_sign=175.0),
    saved(Checkpoint, 229, 20, start=4, data=1, train=30, checkpoint=4),
    saved(Stopped, 230, 20, start=4, data=1, train=30, checkpoint=5),
    start(1010, 3, "1000.000", 20, last_sign=228.0),
    saved(Finish, 1060, 40, start=5, data=2, train=30, evaluate=10, checkpoint=3),
]
EXPECTED = {
    "start": 10 + 2 + 4 + 10 + 5,
    "data": 5 + 1 + 2,
    "train": 40 + 30 + 30,
    "evaluate": 10,
    "checkpoint": 3 + 5 + 3,
    "recover": 190 - 178,
    "lost": 178 - 160,
    "stopped": 1000 - 230,
}


def test_every_second_is_counted_once():
    found = ledger(HISTORY)
    assert found == EXPECTED
    assert sum(found.values()) == 1060 - 100
    assert goodput(found) == pytest.approx((100 + 8) / (960 - 770))


def test_the_last_sign_of_life_may_be_a_row_of_metrics():
    """Killed workers record no failure."""
    history = [event for event in HISTORY if not isinstance(event, Failure)]
    found = ledger(history)
    assert found["lost"] == 175 - 160
    assert found["recover"] == 190 - 175
    assert sum(found.values()) == 960


def test_work_before_a_damaged_checkpoint_is_lost():
    """The third start resumes from step 10, so that the work of the second one is repeated."""
    history = [
        start(event.time, 3, event.launch, 10, 228.0)
        if isinstance(event, Start) and event.attempt == 3
        else event
        for event in HISTORY
    ]
    found = ledger(history)
    assert found["train"] == 40 + 30
    assert found["lost"] == (178 - 160) + (230 - 190)
    assert sum(found.values()) == 960


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_changes_no_time_of_the_workers(jump):
    """The clock is set between the first two attempts."""
    history = [
        dataclasses.replace(event, time=event.time + jump) if number >= 4 else event
        for number, event in enumerate(HISTORY)
    ]
    found = ledger(history)
    for kind in ("data", "train", "evaluate", "checkpoint"):
        assert found[kind] == EXPECTED[kind]
    assert min(found.values()) >= 0
    assert goodput(found) <= 1


@pytest.mark.parametrize("count", range(1, len(HISTORY) + 1))
def test_a_run_that_is_not_finished_is_counted_up_to_its_last_event(count):
    assert sum(ledger(HISTORY[:count]).values()) == HISTORY[count - 1].time - 100


def test_a_run_without_a_start_has_an_empty_ledger():
    assert ledger([]) == dict.fromkeys(KINDS, 0.0)
    assert goodput(ledger([])) is None


def test_phases_add_up_to_the_time_since_the_start(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.run.phases.time.monotonic", lambda: now[0])
    phases = Phases()
    for time, phase in ((2, "data"), (3, "train"), (7, "data"), (8, "train"), (10, "checkpoint")):
        now[0] = time
        phases.enter(phase)
    now[0] = 11
    assert phases.seconds() == {"start": 2, "data": 2, "train": 6, "checkpoint": 1}
    assert phases.current == "checkpoint"
