"""A job of SLURM on its first node: Ray on all nodes of the job, and the command on that Ray.

It is what the batch script executes, so that SLURM's warnings (SIGTERM to the batch process alone)
reach it. If the job is to continue later, it is requeued. Only the standard library is imported,
because the command and Ray may run in a container that this process is not in.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from jobs.cluster import scontrol
from jobs.cluster.slurm_step import END_S, OF_STEPS, POLL_S, Nodes, end
from jobs.interrupts import Preempted, handled, requests
from jobs.processes import adopt_orphans, end_descendants
from shards.errors import Failed

MOST_WITHOUT_PROGRESS = 3  # times that a job is requeued while its run takes no checkpoint
ASK_EVERY_S, PATIENCE_S = 10, 3600  # if SLURM's controller does not answer
READY_S = 300  # for the nodes to join
STEP_S = 120  # to look for the newest checkpoint
SETTLE_S = 10  # after which a node that made the command fail is known
RECORD, RAY_LOG = ".json", ".ray.log"  # suffixes of a job's files
PREEMPTED = Preempted.exit_code
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Job:
    """What the batch script tells this process.

    Attributes:
        id: The id of the job.
        command: The words of the command on a node, without `--on`.
        state: Path of this job's files, without their suffix.
        grace_s: Time between the warning and the time limit.
        run: The folder of the run, which shows the progress; "" if it cannot be read here.
        container: Options of srun that enter the container; empty without one.
    """

    id: str
    command: list[str]
    state: Path
    grace_s: int
    run: str
    container: list[str]


class Result(NamedTuple):
    """How an attempt ended.

    Attributes:
        code: Exit code of the command.
        again: Why the job is to run again; "" if it is not.
    """

    code: int
    again: str = ""


def main() -> int:
    """Run a job, and requeue it if it is to continue. Return the exit code of the command."""
    job = _parse()
    adopt_orphans()
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.pop("RAY_ADDRESS", None)
    with handled(requests.receive):
        try:
            result = _run(job)
            code = _requeue(job, result) if result.again else result.code
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
        finally:
            end_descendants()
    _record(job, exit_code=code)
    return code


def _run(job: Job) -> Result:
    """Start Ray on all nodes and run the command on it, once."""
    listed = scontrol.call("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"])
    names = listed.stdout.split()
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    _say(f"on {len(names)} nodes: {', '.join(names)}; restart {restart}")
    python = [*job.container, job.command[0]]
    nodes = Nodes(job.id, names, python, job.state.with_suffix(RAY_LOG))
    deadline = time.monotonic() + READY_S
    try:
        while not nodes.address:
            if requests.first:
                return Result(PREEMPTED, f"{requests.first.name} before the nodes were ready")
            if lost := nodes.lost():
                return Result(1, lost)
            if time.monotonic() > deadline:
                return Result(1, f"after {READY_S} s {nodes.missing()}")
            time.sleep(POLL_S)
        _say(f"Ray is up on all nodes: {nodes.address}")
        return _follow(job, nodes)
    finally:
        nodes.end()


def _follow(job: Job, nodes: Nodes) -> Result:
    """Run the command on the Ray of the nodes, pass a warning to it, and watch the nodes."""
    assert nodes.address
    command = subprocess.Popen(
        [*_inside(job), *job.command, "--on", nodes.address], start_new_session=True
    )
    deadline = None
    while command.poll() is None:
        if lost := nodes.lost():
            end(command)
            return Result(1, lost)
        if requests.first and deadline is None:
            command.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + max(job.grace_s - 2 * END_S, job.grace_s / 2)
        if deadline and time.monotonic() > deadline:
            end(command)
            return Result(PREEMPTED, "the command did not end in time after the warning")
        time.sleep(POLL_S)
    code = command.returncode
    if code == PREEMPTED:
        return Result(code, "the command was stopped by a signal")
    if code < 0:
        return Result(1, f"the command was ended by {signal.Signals(-code).name}")
    return Result(code, nodes.lost_within(SETTLE_S) if code == Failed.exit_code else "")


def _requeue(job: Job, result: Result) -> int:
    """Requeue the job, unless SLURM or the user ends it.

    Returns:
        The exit code of this process if SLURM lets it end itself.

    Raises:
        Failed: The run makes no progress, or SLURM does not requeue the job.
    """
    _say(result.again)
    state = _patiently(lambda: scontrol.job_state(job.id))
    if state is None or state.state != "RUNNING":
        _say(f"SLURM ends the job ({state.state if state else 'unknown'})")
        return result.code
    if not state.may_requeue:
        _say("the job is not requeued; to resume the run, submit the same command again")
        return result.code
    if _without_progress(job) > MOST_WITHOUT_PROGRESS:
        fix = f"see {job.state.with_suffix(RAY_LOG)}"
        what = f"{MOST_WITHOUT_PROGRESS} restarts made no progress: {result.again}"
        raise Failed(what, where=f"job {job.id}", fix=fix)
    _patiently(lambda: scontrol.requeue(job.id))
    _say("requeued")
    return PREEMPTED


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """Ask SLURM until it answers, because its controller may be unreachable for a while."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except Failed as error:
            if time.monotonic() > deadline:
                raise
            _say(f"{error}")
        time.sleep(ASK_EVERY_S)


def _without_progress(job: Job) -> int:
    """Count this restart, and return the number of restarts since the run's last progress."""
    before = _record(job)
    step = _newest_step(job)
    restarts = 0 if step > before["step"] else before["restarts"] + 1
    _record(job, step=max(step, before["step"]), restarts=restarts)
    return restarts


def _record(job: Job, **changes: int) -> dict[str, int]:
    """Change the record of the job, which its restarts share, and return it."""
    path = job.state.with_suffix(RECORD)
    record = {"step": -1, "restarts": 0}
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(path.read_text())
    if changes:
        path.write_text(json.dumps(record | changes))
    return record | changes


def _newest_step(job: Job) -> int:
    """Return the step of the run's newest checkpoint; -1 if there is none or it is unknown."""
    if not job.run:
        return -1
    command = [*_inside(job), job.command[0], "-P", "-m", "jobs.cluster.newest_step", job.run]
    with contextlib.suppress(ValueError, subprocess.TimeoutExpired):
        asked = subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, check=False)
        return int(asked.stdout)
    return -1


def _inside(job: Job) -> list[str]:
    """Return the start of a command line that runs on this node, in the job's container."""
    if not job.container:
        return []
    node = f"--nodelist={os.environ['SLURMD_NODENAME']}"
    return ["srun", "--overlap", "--nodes=1", "--ntasks=1", node, *OF_STEPS, *job.container]


def _say(text: str) -> None:
    print(f"job {os.environ['SLURM_JOB_ID']}: {text}", flush=True)


def _parse() -> Job:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--grace", type=int, required=True)
    parser.add_argument("--run", default="")
    parser.add_argument("--container", action="append", default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    number = os.environ["SLURM_JOB_ID"]
    return Job(
        id=number,
        command=options.command,
        state=options.state / number,
        grace_s=options.grace,
        run=options.run,
        container=options.container,
    )


if __name__ == "__main__":
    sys.exit(main())
