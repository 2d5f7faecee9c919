"""What a start consists of: the parts add up to the time until the first step."""

import pytest

from pipeline.run import restarts
from pipeline.run.events import Checkpoint, Failure, FirstStep, Start
from pipeline.run.phases import Phases
from pipeline.run.start_parts import StartParts

LAUNCH = "1.000"


def start(time, attempt, last_sign=0.0, launch=LAUNCH):
    return Start(
        time=time, attempt=attempt, launch=launch, world_size=2, step=4, last_sign=last_sign
    )


def failure(time, kind="RuntimeError"):
    return Failure(time=time, launch=LAUNCH, rank=0, kind=kind, text="")


def parts_of(*ends, began=None):
    parts = StartParts(began)
    for part, end in ends:
        parts.end(part, end)
    return parts


def first_step(history, parts) -> FirstStep:
    return restarts.first_step(history, parts, 5, Phases())


def test_parts_count_from_the_command():
    parts = parts_of(("command and Ray", 14.0), ("placement", 15.5), ("imports", 19.0), began=10.0)
    found = first_step([start(20.0, 1)], parts)
    assert found.parts == {"command and Ray": 4.0, "placement": 1.5, "imports": 3.5}
    assert not found.restarted
    assert found.describe() == (
        "step 5: 9.0 s after the command: command and Ray 4.0, placement 1.5, imports 3.5"
    )


@pytest.mark.parametrize(
    ("history", "detection"),
    [
        ([start(10.0, 1)], 3.0),  # the last row of metrics
        ([start(10.0, 1), failure(16.5), failure(16.8)], 0.5),  # its peer noticed
        ([start(10.0, 1), failure(16.5, restarts.HANG)], 3.0),
        ([start(15.0, 1)], 2.0),  # it took no step
        ([start(10.0, 1), Checkpoint(time=16.0, step=4, position=8, folder="")], 1.0),
        ([start(10.0, 1, launch="0.000")], 0.0),  # no start of this command is known
    ],
)
def test_a_restart_counts_from_the_last_sign_of_life(history, detection):
    parts = parts_of(("detection", 17.0), ("teardown", 18.0))
    found = first_step([*history, start(20.0, 2, last_sign=14.0)], parts)
    assert found.parts == {"detection": detection, "teardown": 1.0}
    assert found.restarted


def test_a_part_is_never_negative():
    parts = parts_of(("teardown", 12.0), ("placement", 11.0), ("imports", 13.0))
    assert parts.seconds(10.0) == {"teardown": 2.0, "placement": 0.0, "imports": 1.0}


def test_the_phases_of_a_worker_are_parts():
    phases = Phases()
    phases.enter("data")
    phases.enter("train")
    found = restarts.first_step([start(20.0, 1)], parts_of(began=10.0), 5, phases)
    assert list(found.parts) == ["first batch", "first step"]
