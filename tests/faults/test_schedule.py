"""The file of `train --allow-faults`: its form, its errors, and the faults of the command."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jobs import config as configs
from jobs.faults import Faults
from jobs.worker import Job
from pipeline.run import eventlog
from pipeline.run.fault_events import Fault
from pipeline.run.fault_schedule import RandomSettings, Schedule
from shards.errors import UsageError
from tests.jobs import small


def file(tmp_path, text: str):
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    return path


WRONG = {
    "faults: [{kind: kil, at: {step: 1}}]": "faults[0].kind=kil; choose one of kill, stop, ",
    "faults: [{kind: kill}]": "faults[0].step=null; write at: {rank: RANK, step: STEP}, ",
    "faults: [{at: {step: 1}}]": "faults[0].kind=; choose one of kill, ",
    "faults: [{kind: kill, at: {stp: 1}}]": "faults[0].at.stp is not a setting; "
    "did you mean faults[0].at.step?",
    "faults: [{kind: slow, at: {step: 1}}, {kind: kill, at: {rank: -1, step: 1}}]": ""
    "faults[1].at.rank=-1; it must be at least 0",
    "faults: [{kind: enospc, at: {rank: 1, step: 1}}]": "faults[0].at.rank=1; only worker 0 writes",
    "random: {count: 1, kinds: [kull]}": "random.kinds=[kull]; choose one of",
    "falts: []": "falts is not a setting; did you mean faults?",
    "": "the file has no faults; write faults: ",
    "faults: [": "",
    # of the run:
    "faults: [{kind: kill, at: {rank: 2, step: 1}}]": "faults[0].at.rank=2; give a rank below 2",
    "faults: [{kind: kill, at: {step: 17}}]": "faults[0].at.step=17; the run has 16 steps",
    "random: {count: 2, kinds: [kill, loader_kill]}": "random.kind=loader_kill; it needs "
    "data.loader_workers=1 or more",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_named_with_its_entry(text, tmp_path):
    path = file(tmp_path, text)
    config = configs.load("tiny", small.words(tmp_path)[2:])
    with pytest.raises(UsageError) as error:
        Faults.of(path).plan(config)
    assert str(error.value).startswith(f"{path}: {WRONG[text]}")


def test_a_submitted_command_has_no_faults(tmp_path):
    command = small.words(tmp_path, "--on", "slurm", "--allow-faults", "faults.yaml")
    outcome = small.call(tmp_path, *command)
    assert outcome.code == 2
    assert "--allow-faults: --on slurm has no faults; train here" in small.complaint(outcome)


def test_random_faults_follow_from_the_seed():
    kinds = ["kill", "enospc", "driver_kill"]

    def names(seed: int) -> list[str]:
        drawn = RandomSettings(seed=seed, count=30, kinds=kinds).drawn(steps=20, workers=2)
        return [*Schedule.of(drawn).faults]

    assert names(1) == names(1) != names(2)
    assert len(set(names(1))) == 30
    for kind in kinds:
        assert sum(name.startswith(kind) for name in names(1)) == 10


def test_equal_faults_are_numbered(tmp_path):
    path = file(tmp_path, "faults: [{kind: kill, at: {step: 2}}, {kind: kill, at: {step: 2}}]")
    faults = Faults.of(path)
    faults.plan(configs.load("tiny", small.words(tmp_path)[2:]))
    names = ["kill of worker 0 at step 2", "kill of worker 0 at step 2 #2"]
    assert [*faults.schedule.faults] == names


def test_the_command_carries_out_its_own_faults(tmp_path, monkeypatch):
    """The recorded faults of workers and of an earlier command are not its own."""
    sent = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    path = file(tmp_path, "faults: [{kind: sigterm, at: {step: 2}}]")
    with Faults.of(path).of_command(Job({}, tmp_path, launch="2")):
        for kind, launch in (
            ("sigterm", "1"),
            ("kill", "2"),
            ("sigterm", "2"),
            ("driver_kill", "2"),
        ):
            fault = Fault(fault="", kind=kind, rank=0, launch=launch, step=1)
            eventlog.append(tmp_path, fault)
        until = time.monotonic() + small.TIMEOUT_S
        while len(sent) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert sent == [(os.getpid(), signal.SIGTERM), (os.getpid(), signal.SIGKILL)]


@pytest.mark.slow
def test_nothing_is_imported_without_the_option():
    program = (
        "import sys, jobs.train, pipeline.train; "
        "print([name for name in sys.modules if 'fault' in name and 'run' in name])"
    )
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, env=small.environment(), capture_output=True, text=True).stdout
    assert out == "['pipeline.run.fault_events']\n"
