"""Ask SLURM about a job. Only the standard library is needed, as on the first node of a job."""

import re
import subprocess
from dataclasses import dataclass

from shards.errors import Failed

TIMEOUT_S = 60
_FIELD = re.compile(r"(?:^|\s)(JobState|Reason|Requeue|Restarts|ExitCode|NodeList)=(\S*)")
UNKNOWN_JOB = "Invalid job id"


@dataclass(frozen=True)
class JobState:
    """What SLURM says about a job that it still knows.

    Attributes:
        state: Such as PENDING, RUNNING, COMPLETED, CANCELLED, or TIMEOUT.
        reason: Why it waits.
        may_requeue: Whether it may be requeued.
        restarts: Number of times that it was requeued.
        exit_code: Exit code of the batch script.
        nodes: Its nodes, as SLURM abbreviates them.
    """

    state: str
    reason: str
    may_requeue: bool
    restarts: int
    exit_code: int
    nodes: str


def call(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM, with a text as its input.

    Raises:
        Failed: It is not installed here, or SLURM does not answer.
    """
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        fix = "run this where SLURM's commands are, such as on a login node"
        raise Failed(f"{command[0]} is not installed here", where="SLURM", fix=fix) from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{command[0]} had no answer in {TIMEOUT_S} s", where="SLURM") from error


def job_state(job: str) -> JobState | None:
    """Return what SLURM says about a job, or None if it has forgotten the job.

    Raises:
        Failed: SLURM does not answer.
    """
    asked = call("scontrol", "show", "job", "--oneliner", job)
    if asked.returncode:
        if UNKNOWN_JOB in asked.stderr:
            return None
        raise Failed(complaint(asked), where="SLURM", fix="try again later")
    found = dict(_FIELD.findall(asked.stdout))
    return JobState(
        state=found.get("JobState", ""),
        reason=found.get("Reason", ""),
        may_requeue=found.get("Requeue") == "1",
        restarts=int(found.get("Restarts", 0)),
        exit_code=int(found.get("ExitCode", "0:0").partition(":")[0]),
        nodes=found.get("NodeList", ""),
    )


def requeue(job: str) -> None:
    """Put a running job back into the queue, which ends its processes.

    Raises:
        Failed: SLURM refuses, or does not answer.
    """
    asked = call("scontrol", "requeue", job)
    if asked.returncode:
        raise Failed(complaint(asked), where=f"scontrol requeue {job}")


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return the first error that a failed command printed, without the name of the command."""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "warning" not in line] or lines
    first = errors[0] if errors else f"exit code {done.returncode}"
    return re.sub(r"^\w+: ((error|fatal): )?", "", first).strip()
