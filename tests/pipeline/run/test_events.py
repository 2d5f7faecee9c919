"""Events: their JSON lines, what is skipped when they are read, and warnings as events."""

import json
import subprocess
import sys
import warnings

import pytest

from pipeline.run import eventlog, events
from pipeline.run.eventlog import EVENTS
from pipeline.run.warn import recorded_warnings
from shards.errors import DataError

# One line of every kind, as the first version of the program that had the kind wrote it.
LINES = [
    {"event": "faults_armed", "time": 1.0, "waiting": ["kill"], "done": 1},
    {"event": "fault", "time": 1.0, "fault": "kill", "kind": "kill", "rank": 1, "launch": "17.000",
     "step": 3},
    {"event": "first_step", "time": 1.0, "step": 5, "attempt": 2, "restarted": True,
     "parts": {"detection": 0.5}},
    {"event": "skipped", "time": 1.0, "step": 3, "grad_norm": "nan"},
    {"event": "spike", "time": 1.0, "step": 3, "loss": "90.5", "usual": 30.0, "deviations": "20"},
    {"event": "diagnosed", "time": 1.0, "step": 3, "samples": ["000007"], "first": "output conv",
     "worker": 1, "file": "diagnoses/step-000000003-a01.json"},
    {"event": "rewound", "time": 1.0, "step": 9, "to_step": 6, "position": 72, "samples": 24,
     "reason": "the loss jumps to 90.5"},
    {"event": "start", "time": 1.0, "attempt": 2, "launch": "17.000", "world_size": 2,
     "zero_stage": 1, "process_ids": [5, 6], "host": "a", "device": "cpu", "threads": 1,
     "step": 4, "position": 32, "checkpoint": "step-000000004-a01"},
    {"event": "init_from", "time": 1.0, "path": "w", "text": "all of it", "fresh": ["head [3]"],
     "unused": []},
    {"event": "evaluation", "time": 1.0, "step": 4, "PQ": 50.5, "mIoU": 60.0},
    {"event": "checkpoint", "time": 1.0, "step": 4, "position": 32, "name": "step-000000004-a01"},
    {"event": "checkpoint_failed", "time": 1.0, "step": 4, "error": "No space left on device"},
    {"event": "damage", "time": 1.0, "text": "checkpoint step-000000004-a01 is skipped"},
    {"event": "quarantined", "time": 1.0, "step": 3, "samples": ["000007"]},
    {"event": "warning", "time": 1.0, "rank": 1, "category": "UserWarning", "text": "slow"},
    {"event": "failure", "time": 1.0, "launch": "17.000", "rank": 1, "kind": "DataError",
     "text": "a.tar: damaged"},
    {"event": "finish", "time": 1.0, "step": 4, "position": 32},
    {"event": "stopped", "time": 1.0, "step": 4, "position": 32},
    {"event": "audited", "time": 1.0, "step": 3, "workers": [1], "hosts": ["h2"],
     "first": "output a"},
]  # fmt: skip


def test_there_is_a_line_of_every_kind():
    known = sorted(kind.name for kind in events.KINDS)
    assert sorted(line["event"] for line in LINES) == known


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["event"])
def test_a_line_is_read_and_written_again_as_it_was(tmp_path, line):
    (tmp_path / EVENTS).write_text(json.dumps(line) + "\n")
    (event,) = eventlog.read(tmp_path)
    written = event.to_json()
    assert list(written)[:2] == ["event", "time"]
    assert written.items() >= line.items()
    assert event.describe()


def test_lines_of_unknown_kinds_and_damaged_lines_are_skipped(tmp_path):
    finish = events.Finish(step=4, position=32)
    lines = [
        *('{"event": "eclipse", "time": 1.0}', '{"event": "finish", "st', "[]", "7", "null"),
        '{"event": "finish", "time": 1.0}',  # without its fields
        '{"no": "event"}',
        '{"event": []}',
        json.dumps(finish.to_json() | {"field": "of a later version"}),
    ]
    (tmp_path / EVENTS).write_text("\n".join(lines) + "\n")
    assert eventlog.read(tmp_path) == [finish]
    assert eventlog.read_kind(tmp_path, events.Start) == []
    assert eventlog.read(tmp_path / "nowhere") == []


def test_a_tail_reads_whole_lines_once(tmp_path):
    eventlog.append(tmp_path, events.Damage(text="before"))
    tail = eventlog.Tail(tmp_path)
    assert tail.read() == []
    after = events.Damage(text="ä" * 5)
    line = json.dumps(after.to_json(), ensure_ascii=False).encode()
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(line[:-10])
        file.flush()
        assert tail.read() == []
        file.write(line[-10:] + b"\n")
    assert tail.read() == [after]
    assert tail.read() == []


def test_a_failure_keeps_the_parts_of_the_error():
    error = DataError("its hash differs", where="a.tar", fix="build it again")
    failure = events.Failure.of(error, launch="17.000", rank=1)
    assert (failure.what, failure.where) == ("its hash differs", "a.tar")
    assert (failure.fix, failure.exit_code) == ("build it again", 3)
    assert failure.text == "a.tar: its hash differs; build it again"
    other = events.Failure.of(KeyError("depth"), launch="17.000", rank=1)
    assert (other.kind, other.exit_code) == ("KeyError", 1)


def test_warnings_are_events_of_their_rank(tmp_path):
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        with recorded_warnings(tmp_path, rank=3):
            _warn()
        assert warnings.showwarning is before
    (warned,) = eventlog.read(tmp_path)
    assert isinstance(warned, events.Warned)
    assert (warned.rank, warned.category) == (3, "UserWarning")
    assert warned.describe() == "warning (worker 3): the cache is small"


def _warn() -> None:
    warnings.warn("the cache is small", stacklevel=1)
    warnings.warn("this name is deprecated", DeprecationWarning, stacklevel=1)


def test_processes_append_to_one_file_without_mixing_lines(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.run import eventlog, events\n"
        "for n in range(200):\n"
        "    warned = events.Warned(rank=int(sys.argv[2]), category='', text=str(n) * 50)\n"
        "    eventlog.append(Path(sys.argv[1]), warned)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(rank)]) for rank in (0, 1)
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    found = eventlog.read_kind(tmp_path, events.Warned)
    for rank in (0, 1):
        texts = [event.text for event in found if event.rank == rank]
        assert texts == [str(n) * 50 for n in range(200)]


def test_each_host_appends_to_a_file_of_its_own_and_all_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(eventlog, "_own", EVENTS)
    tail = eventlog.Tail(tmp_path)
    eventlog.append(tmp_path, events.Damage(text="first", time=1.0))
    eventlog.append(tmp_path, events.Damage(text="last", time=3.0))
    eventlog.write_as_host("node 2/x")
    eventlog.append(tmp_path, events.Damage(text="between", time=2.0))
    assert {path.name for path in tmp_path.iterdir()} == {EVENTS, "events-node_2_x.jsonl"}
    texts = [event.text for event in eventlog.read_kind(tmp_path, events.Damage)]
    assert texts == ["first", "between", "last"]
    assert len(tail.read()) == 3
    assert tail.read() == []
    with (tmp_path / "events-node_2_x.jsonl").open("a") as file:
        file.write("{\n")
    assert eventlog.unreadable(tmp_path) == 1
