"""`status`, `logs`, and `stop`: of what was submitted, and of runs by their own files."""

import dataclasses
import shlex
import threading
import time
from collections.abc import Iterator
from typing import Any

from jobs.cluster import submissions
from jobs.cluster.dispatch import follow as follow_job
from jobs.cluster.dispatch import in_background, scheduler
from jobs.cluster.submissions import FINAL, Status, Submission
from jobs.interrupts import handled, requests
from jobs.records import RESTARTING, RUNNING, View
from pipeline.run import stop as stops
from shards.errors import M2FError, UsageError

POLL_S = 0.5
UNKNOWN = "unknown"
ACTIVE = (RUNNING, RESTARTING)


def status(run: str | None) -> list[dict[str, Any]]:
    """Print one line per submission, or one for a run, and return them as JSON types.

    Raises:
        UsageError: There is no such run.
        Failed: The storage of the run does not answer.
    """
    found = [_found(run)] if run else submissions.every()
    described = [_describe(run or "", one) for one in found]
    for row in described:
        text = f" ({row['text']})" if row["text"] else ""
        print(f"{row['name']}  {row['state']}{text}  {row['where']}")
    if not described:
        print("nothing was submitted; ./launch.sh train … --on slurm submits a run")
    return described


def _describe(run: str, found: Submission | View) -> dict[str, Any]:
    if isinstance(found, View):
        record = {"name": run, "where": found.location, "id": "", "command": ""}
        text = f"step {found.step} of {found.steps}"
        state = Status(found.state(time.time())[0], text)
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
        else _events(found, follow)
    )
    with handled(requests.receive):
        for piece in in_background(pieces):
            print(piece, end="", flush=True)
    if requests.first:
        raise requests.error("the run continues")


def _events(view: View, follow: bool) -> Iterator[str]:
    """Yield the events of a run as lines and, if it is followed, those that come while it runs."""
    shown = 0
    while True:
        is_over = not follow or view.state(time.time())[0] not in ACTIVE
        view.read(with_metrics=False)
        yield from (f"{event.describe()}\n" for event in view.history[shown:])
        shown = len(view.history)
        if is_over:
            return
        threading.Event().wait(POLL_S)


def stop(run: str) -> None:
    """Ask a run to write a checkpoint and end.

    Raises:
        UsageError: There is no such run, or it has ended.
        Failed: The storage of the run does not answer.
    """
    found = _found(run)
    state = _describe(run, found)["state"]
    if state in FINAL or (isinstance(found, View) and state not in ACTIVE):
        where = found.location if isinstance(found, View) else found.id
        raise UsageError(f"{run} does not run: it is {state}", where=where)
    if isinstance(found, Submission):
        scheduler(found.kind).stop(found)
    elif found.puller is None:
        stops.request(found.folder)
    else:
        found.puller.remote.write(stops.STOP, b"")
    print(f"{run} writes a checkpoint and ends; ./launch.sh logs -f {run} shows when")


def _found(run: str) -> Submission | View:
    """Return the submission of a name, or the run of a name, a path, or a URL.

    A run whose submission has ended, and that now runs elsewhere, is the latter.

    Raises:
        UsageError: There is neither.
    """
    submission = submissions.find(run)
    try:
        view = View.of(run)
    except UsageError:
        if submission is None:
            raise
        return submission
    if submission is None:
        return view
    has_moved = view.state(time.time())[0] in ACTIVE
    return view if has_moved and _state(submission).state in (*FINAL, UNKNOWN) else submission


def _state(submission: Submission) -> Status:
    """Return the state of a submission; UNKNOWN if its cluster does not answer."""
    try:
        return scheduler(submission.kind).status(submission)
    except M2FError as error:
        return Status(UNKNOWN, str(error))
