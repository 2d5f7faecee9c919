"""Each fault that is injected on purpose is real, is recorded first, and strikes once."""

import contextlib
import dataclasses
import errno
import multiprocessing
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from pipeline.distributed import is_lost_peer
from pipeline.run import checkpoint, eventlog, events
from pipeline.run.fault_schedule import At, FaultSettings, Schedule
from pipeline.run.faults import Injector
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.phases import Phases
from pipeline.run.watchdog import EXIT_CODE, STACKS, Watchdog
from pipeline.train import train
from shards.errors import LoaderError
from tests import distributed
from tests.pipeline.runs import smallest

LIMIT_S = 120


def schedule(*faults: tuple[str, dict], **more) -> Schedule:
    """Return a schedule of kinds with their times."""
    return Schedule.of([FaultSettings(kind=kind, at=At(**at), **more) for kind, at in faults])


def armed(folder: Path, plan: Schedule, engine: Any = None) -> Injector:
    """Return an injector for a run that has started in a folder."""
    eventlog.append(folder, events.Start(world_size=1, step=0))
    return Injector(plan, folder, "launch", 1, engine)


def injected(folder: Path) -> list[str]:
    return [event.fault for event in eventlog.read_kind(folder, events.Fault)]


def ended(function: Callable, *args) -> int | None:
    """Return the exit code of a function in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=function, args=args)
    process.start()
    process.join(LIMIT_S)
    return process.exitcode


def take_steps(folder: Path, plan: Schedule) -> None:
    with armed(folder, plan) as injector:
        for step in range(1, 4):
            injector.before_step(step)
            time.sleep(0.05)


def hang(folder: Path) -> None:
    watchdog = Watchdog(folder, rank=0, launch="", attempt=1, phases=Phases(), limit_s=0.5)
    with watchdog, mock.patch("pipeline.run.watchdog.WRITE_S", 1.0):
        take_steps(folder, schedule(("hang", {"step": 2})))


@pytest.mark.parametrize("at", [{"step": 2}, {"step": 1, "after_s": 0.02}, {"after_s": 0.0}])
def test_a_kill_strikes_once_although_the_worker_restarts(tmp_path, at):
    plan = schedule(("kill", at))
    assert ended(take_steps, tmp_path, plan) == -signal.SIGKILL
    assert ended(take_steps, tmp_path, plan) == 0
    (fault,) = eventlog.read_kind(tmp_path, events.Fault)
    assert fault.fault == next(iter(plan.faults))
    assert fault.step == (at.get("step") or 0)
    starts = eventlog.read_kind(tmp_path, events.FaultsArmed)
    assert [(len(start.waiting), start.done) for start in starts] == [(1, 0), (0, 1)]


def test_a_fault_that_cannot_be_recorded_does_not_strike(tmp_path):
    plan = schedule(("kill", {"step": 1}))
    injector = armed(tmp_path, plan)
    kill = mock.patch("pipeline.run.fault_actions.kill")
    full = mock.patch("shards.jsonl.append", side_effect=OSError(errno.ENOSPC, "full"))
    with kill as killed, full, pytest.warns(match="full"):
        injector._inject("kill of worker 0 at step 1")
    assert not killed.called


def test_a_stopped_worker_continues(tmp_path):
    plan = schedule(("stop", {"step": 2}), seconds=0.5)
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=take_steps, args=(tmp_path, plan))
    process.start()
    states = set()
    while process.is_alive():
        with contextlib.suppress(OSError):  # it has just ended
            states.add(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0])
        time.sleep(0.01)
    assert "T" in states
    assert process.exitcode == 0


def test_a_worker_that_hangs_is_ended_by_its_watchdog(tmp_path):
    assert ended(hang, tmp_path) == EXIT_CODE
    assert "in hang_on_purpose" in (tmp_path / STACKS / "attempt-01-rank-0.txt").read_text()
    assert injected(tmp_path) == ["hang of worker 0 at step 2"]


def test_slow_steps_take_longer(tmp_path):
    injector = armed(tmp_path, schedule(("slow", {"step": 2}), seconds=3, steps=2))
    slept = []
    with injector, mock.patch("time.sleep", slept.append):
        for step in range(1, 5):
            injector.before_step(step)
            slept.append(step)
    assert slept == [1, 3, 2, 3, 3, 4]


def test_a_fault_of_another_worker_is_left_alone(tmp_path):
    with armed(tmp_path, schedule(("nan", {"rank": 1, "step": 1}))) as injector:
        injector.before_step(1)
    assert injected(tmp_path) == []


def test_gradients_are_spoiled_once(tmp_path):
    losses: list[float] = []
    engine = SimpleNamespace(backward=losses.append)
    network = SimpleNamespace(backward=lambda loss: engine.backward(loss))
    with armed(tmp_path, schedule(("nan", {"step": 1})), network) as injector:
        injector.before_step(1)
        network.backward(1.0)
    assert losses[0] != losses[0]


def trained(sets: Path, folder: Path) -> tuple[str, str]:
    """Train with faults that end no process, then with one that does; return the outcomes."""
    survived = schedule(("nan", {"step": 2}), ("enospc", {"step": 2}), ("truncate", {"step": 4}))
    settings = smallest(sets)
    outcome = f"{train(settings, made(folder / 'survived'), 'one', survived)}"
    settings.data = dataclasses.replace(settings.data, loader_workers=1)
    try:
        train(settings, made(folder / "ended"), "one", schedule(("loader_kill", {"step": 2})))
    except LoaderError as error:
        return outcome, str(error)
    return outcome, ""


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_a_run_does_about_gradients_disks_damage_and_loaders(tmp_path, photographs):
    [outcome] = distributed.run(trained, 1, photographs, tmp_path, fork=True)
    assert outcome[0] == "True"
    run = tmp_path / "survived"
    (skipped,) = eventlog.read_kind(run, events.Skipped)
    assert skipped.step == 2
    (failed,) = eventlog.read_kind(run, events.CheckpointFailed)
    assert failed.step == 2
    assert "No space left on device" in failed.error
    steps = [checkpoint.step_of(path) for path in checkpoint.committed(run / CHECKPOINTS)]
    assert steps == [4, 0]
    damaged = run / CHECKPOINTS / checkpoint.name_of(0, 1)
    assert checkpoint.damage(damaged) == f"{checkpoint.STATE} differs from MANIFEST.json"
    assert len(injected(run)) == 3
    assert outcome[1].startswith("a loader process was killed (SIGKILL)")
    assert injected(tmp_path / "ended") == ["loader_kill of worker 0 at step 2"]


def cut(folder: str) -> str:
    """Exchange tensors until the links of rank 1 are cut, and return the error of this rank."""
    injector = armed(Path(folder), schedule(("link_down", {"rank": 1, "step": 2})))
    with injector:
        for step in range(1, 4):
            injector.before_step(step)
            time.sleep(0.2)
            try:
                dist.all_reduce(torch.zeros(1))
            except RuntimeError as error:
                dist.barrier = lambda: None  # at the end of a rank
                (fault,) = eventlog.read_kind(Path(folder), events.Fault)
                return f"step {step}: {fault.target}, {is_lost_peer(error) or error}"
    return "nothing"


def test_a_link_that_is_cut_ends_both_workers(tmp_path):
    outcomes = distributed.run(cut, 2, str(tmp_path), fork=True)
    assert outcomes == ["step 2: 2 connections, True"] * 2
