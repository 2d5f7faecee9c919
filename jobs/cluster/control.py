"""`status`, `logs`, and `stop`: of what was submitted, and of runs on this machine."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from jobs import config as configs
from jobs.cluster import local_run, submissions
from jobs.cluster.dispatch import follow as follow_job
from jobs.cluster.dispatch import in_background, scheduler
from jobs.cluster.submissions import FINAL, Status, Submission
from jobs.interrupts import handled, requests
from shards.errors import M2FError, UsageError

UNKNOWN = "unknown"


def status(run: str | None) -> list[dict[str, Any]]:
    """Print one line per submission, or one for a run, and return them as JSON types.

    Raises:
        UsageError: There is no such run.
    """
    found = [_found(run)] if run else submissions.every()
    described = [_describe(run or "", one) for one in found]
    for row in described:
        text = f" ({row['text']})" if row["text"] else ""
        print(f"{row['name']}  {row['state']}{text}  {row['where']}")
    if not described:
        print("nothing was submitted; ./launch.sh train … --on slurm submits a run")
    return described


def _describe(run: str, found: Submission | Path) -> dict[str, Any]:
    if isinstance(found, Path):
        record = {"name": run, "where": str(found), "id": "", "command": ""}
        state = local_run.status(found)
    else:
        command = shlex.join(["./launch.sh", *found.command])
        where = " ".join(filter(None, (found.kind, found.address, found.id)))
        record = {"name": found.name, "where": where, "id": found.id, "command": command}
        state = _state(found)
    return record | dataclasses.asdict(state)


def logs(run: str, follow: bool) -> None:
    """Print the output of a submission, or the events of a run.

    Raises:
        M2FError: There is no such run; or a submission that is followed ends with an exit code
            other than 0, which is that of the error.
    """
    found = _found(run)
    if isinstance(found, Submission) and follow:
        follow_job(found)
        return
    pieces = (
        scheduler(found.kind).logs(found, follow=False)
        if isinstance(found, Submission)
        else local_run.logs(found, follow)
    )
    with handled(requests.receive):
        for piece in in_background(pieces):
            print(piece, end="", flush=True)
    if requests.first:
        raise requests.error("the run continues")


def stop(run: str) -> None:
    """Ask a run to write a checkpoint and end.

    Raises:
        UsageError: There is no such run, or it has ended.
    """
    found = _found(run)
    if isinstance(found, Path):
        local_run.request_stop(found)
    else:
        where = scheduler(found.kind)
        if (state := where.status(found).state) in FINAL:
            raise UsageError(f"{run} has ended: it is {state}", where=found.id)
        where.stop(found)
    print(f"{run} writes a checkpoint and ends; ./launch.sh logs -f {run} shows when")


def _found(run: str) -> Submission | Path:
    """Return the submission of a name, or the folder of a run on this machine.

    A run whose submission has ended, and that now runs on this machine, is the latter.

    Raises:
        UsageError: There is neither.
    """
    submission = submissions.find(run)
    try:
        folder = configs.run_folder(run)
    except UsageError:
        if submission is None:
            raise
        return submission
    if submission is None:
        return folder
    has_moved = local_run.is_running(folder) and _state(submission).state in (*FINAL, UNKNOWN)
    return folder if has_moved else submission


def _state(submission: Submission) -> Status:
    """Return the state of a submission; UNKNOWN if its cluster does not answer."""
    try:
        return scheduler(submission.kind).status(submission)
    except M2FError as error:
        return Status(UNKNOWN, str(error))
