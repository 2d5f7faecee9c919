"""A run resumes after a kill at any of its writes, from its first config to its summary."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import config as configs
from pipeline.run import checkpoint, eventlog, events, saver
from pipeline.run.folder import CHECKPOINTS, SUMMARY, scores_of
from pipeline.run.track import METRICS
from shards.files import read_json
from shards.jsonl import rows
from tests.jobs.test_run_states import STEPS, finished, opened, resume, run
from tests.pipeline.runs import AtOnce

__all__ = ["opened", "run"]  # fixtures


class Killed(BaseException):
    """Stands for the death of the process: no handler for errors runs."""


class Writes:
    """Allows a number of writes; the next one kills, and nothing is written after it.

    Nothing is removed either: `finally` blocks do not run in a process that is killed.
    """

    def __init__(self, monkeypatch, allowed: int):
        self.left, self.killed = allowed, False
        for name in ("fsync", "replace", "unlink", "mkdir", "rmdir", "chmod"):
            monkeypatch.setattr(os, name, self.guarded(getattr(os, name)))
        monkeypatch.setattr(os, "open", self.guarded(os.open, self.opens_for_writing))
        monkeypatch.setattr(io, "open", self.guarded(io.open, self.has_writing_mode))

    @staticmethod
    def opens_for_writing(path, flags, *_, **__) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR))

    @staticmethod
    def has_writing_mode(file, mode="r", *_, **__) -> bool:
        return isinstance(file, Path | str) and bool(set(mode) & set("wxa+"))

    def guarded(self, write: Callable, counts: Callable[..., bool] = lambda *_, **__: True):
        def call(*args, **options):
            if counts(*args, **options):
                self.killed |= self.left == 0
                if self.killed:
                    raise Killed
                self.left -= 1
            return write(*args, **options)

        return call


@pytest.mark.slow
@pytest.mark.parametrize("state", ["new", "killed", "finished"])
def test_a_kill_at_any_write_is_resumed(run, opened, tmp_path, monkeypatch, state):
    monkeypatch.setattr("jobs.resume.distributions", list)
    monkeypatch.setattr("jobs.follow.POLL_S", 9)
    monkeypatch.setattr(saver, "Writer", AtOnce)  # test_writer.py kills the process at each call
    if state == "finished":
        finished(run)
        (run / CHECKPOINTS / checkpoint.name_of(STEPS, 1) / checkpoint.STATE).write_text("")
    for allowed in range(1000):
        folder = tmp_path / f"{allowed}"
        if state == "new":
            folder.mkdir()
        else:
            shutil.copytree(run, folder)
        with monkeypatch.context() as patch:
            writes = Writes(patch, allowed)
            with contextlib.suppress(Killed):
                resume(folder, opened)
        resume(folder, opened)
        newest = checkpoint.newest(folder / CHECKPOINTS, lambda _: None)
        assert newest is not None
        assert checkpoint.step_of(newest) == STEPS
        assert configs.load_run(folder) == opened[0]
        assert scores_of(folder, STEPS)["PQ"] == 90
        assert read_json(folder / SUMMARY)["step"] == STEPS
        steps = [row["step"] for row in rows(folder / METRICS) if "loss" in row]
        assert steps == sorted(set(steps))
        assert eventlog.read_kind(folder, events.Finish)
        shutil.rmtree(folder)
        if not writes.killed:
            break
    assert not writes.killed
    assert allowed > 20
