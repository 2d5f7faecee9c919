"""The commands that this user has submitted to schedulers: what was sent where, by name.

A record holds no secret: it is the command line, and how the scheduler calls the job.
"""

import dataclasses
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jobs.cluster.site import Site
from shards.checked import checked
from shards.errors import UsageError
from shards.files import read_json, write_json

# What a scheduler says about a job. The last three are final.
QUEUED, RUNNING, DONE, FAILED, STOPPED = "queued", "running", "done", "failed", "stopped"
FINAL = (DONE, FAILED, STOPPED)


@dataclass(frozen=True)
class ClusterJob:
    """A command that a scheduler is to run.

    Attributes:
        name: Name of the run, by which `status`, `logs`, and `stop` find it.
        command: The words of the command after `./launch.sh`, without `--on` and `--site`.
        address: What --on names: the URL of a job server, otherwise "".
        site: The facts about the cluster.
        runs: Folder or URL of all runs; "" for the default of the settings.
        preset: The preset if it is a file, which is one of the words of the command.
    """

    name: str
    command: list[str]
    address: str = ""
    site: Site = field(default_factory=Site)
    runs: str = ""
    preset: str = ""

    def words(self, on: str) -> list[str]:
        """Return the words that run the command on a node of the cluster."""
        return ["python", "-P", "-m", "jobs", *self.command, "--on", on]


@dataclass(frozen=True)
class Submission:
    """A command that was submitted.

    Attributes:
        name: Name of the run.
        kind: Kind of the scheduler: job, slurm, or kuberay.
        id: How the scheduler calls the job.
        command: The words of the command after `./launch.sh`.
        address: Where the scheduler is: the URL of a job server, or the context and the namespace
            of Kubernetes; "" for SLURM.
        runs: Folder or URL of all runs.
        log: Path of the job's output, if a file that this machine can read holds it.
        time: Seconds after 1970.
    """

    name: str
    kind: str
    id: str
    command: list[str]
    address: str = ""
    runs: str = ""
    log: str = ""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Status:
    """What a scheduler says about a job.

    Attributes:
        state: One of QUEUED, RUNNING, DONE, FAILED, and STOPPED.
        text: More about it for people, such as the reason why it waits.
        exit_code: Exit code of the command; None while it runs, or if it is unknown.
    """

    state: str
    text: str = ""
    exit_code: int | None = None


class Scheduler(Protocol):
    """What runs commands on a cluster. Each method raises UsageError or Failed."""

    def render(self, job: ClusterJob) -> str:
        """Return what `--dry-run` prints: the script, the manifest, or the command line."""
        ...

    def submit(self, job: ClusterJob) -> Submission:
        """Submit a command."""
        ...

    def status(self, submission: Submission) -> Status:
        """Return the state of a job."""
        ...

    def logs(self, submission: Submission, follow: bool) -> Iterator[str]:
        """Yield the output so far in pieces and, if it is followed, the rest until the job ends."""
        ...

    def stop(self, submission: Submission) -> None:
        """Ask a job to write a checkpoint and end, without waiting for it."""
        ...


def folder() -> Path:
    """Return the folder of the records."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "mask2former", "submissions")


def save(submission: Submission) -> None:
    """Write the record of a submission, over an earlier one of the same name."""
    write_json(_path(submission.name), dataclasses.asdict(submission))


def find(name: str) -> Submission | None:
    """Return the last submission of a name, or None if there is none.

    Raises:
        UsageError: Its record is damaged.
    """
    path = _path(name)
    try:
        return checked(Submission, read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        fix = "remove the file, and ask the scheduler for the job"
        raise UsageError(f"the record is damaged ({error})", where=path, fix=fix) from error


def every() -> list[Submission]:
    """Return all submissions whose records can be read, the newest first."""
    found = []
    for path in folder().glob("*.json"):
        try:
            found.append(checked(Submission, read_json(path)))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda submission: submission.time, reverse=True)


def file_name(name: str) -> str:
    """Return the name of a run without the characters that a path could misread."""
    return re.sub(r"[^-\w.]", "_", name).lstrip(".")


def _path(name: str) -> Path:
    """Return the path of a record."""
    return folder() / f"{file_name(name)}.json"
