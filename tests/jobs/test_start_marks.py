"""The times of a start pass from the controller of Ray Train to the workers."""

from types import SimpleNamespace

from jobs import start_marks
from jobs.start_marks import StartMarks
from pipeline.run.start_parts import StartParts

GROUP = SimpleNamespace(execute=lambda function, *arguments: function(*arguments))


def test_the_first_start_begins_with_the_command():
    parts = StartParts(began=5.0)
    parts.end("command and Ray", 7.0)
    StartMarks(parts).after_worker_group_start(GROUP)
    received = start_marks.received()
    assert received.began == 5.0
    assert [part for part, _ in received.ends] == ["command and Ray", "placement"]
    times = [at for _, at in received.ends]
    assert times == sorted(times)


def test_a_restart_begins_with_the_failure():
    marks = StartMarks(StartParts(began=5.0))
    marks.before_worker_group_shutdown(GROUP)
    marks.after_worker_group_shutdown(None)
    marks.after_worker_group_start(GROUP)
    received = start_marks.received()
    assert received.began is None
    assert [part for part, _ in received.ends] == ["detection", "teardown", "placement"]
