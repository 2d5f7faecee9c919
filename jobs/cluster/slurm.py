"""Jobs of SLURM: the script of a command, its submission, and what SLURM says about it.

The script runs `jobs.cluster.slurm_job` on the first node of the job. Its output, and the log of
Ray's nodes, are in the folder of this user's submissions, which the nodes have to share.
"""

import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.cluster import scontrol, submissions
from jobs.cluster.package import python_path
from jobs.cluster.site import SlurmSite
from jobs.cluster.slurm_job import PREEMPTED, RECORD
from jobs.cluster.submissions import (
    DONE,
    FAILED,
    FINAL,
    QUEUED,
    RUNNING,
    STOPPED,
    ClusterJob,
    Status,
    Submission,
)
from jobs.interrupts import Interrupted
from shards.errors import Failed, UsageError
from shards.files import make_folder, read_json

POLL_S = 1.0
PYTHON = "python3"  # in a container
# What sbatch refuses: a pattern of its message, the keys of the site, and the fix.
_REFUSALS = (
    ("account", "account", "give one that `sacctmgr show associations` lists for you"),
    ("partition|permission|group", "partition", "give one that `sinfo` lists and you may use"),
    ("qos", "qos", "give one that `sacctmgr show qos` lists"),
    ("--time|time limit", "time", "write MINUTES or D-HH:MM:SS, within the partition's limit"),
    ("generic resource|tres|gpu", "gpus_per_node", "`sinfo -o '%P %G'` lists the GPUs of nodes"),
    ("memory", "memory", "`sinfo -o '%P %m'` lists the memory of nodes"),
    ("node count", "nodes", "`sinfo` lists the number of nodes"),
    (
        "node configuration",
        "nodes cpus_per_node gpus_per_node memory",
        "`sinfo -N -l` lists the nodes of each partition, with their CPUs and memory",
    ),
)
_STOPPED_CODES = (PREEMPTED, Interrupted.exit_code)


class Slurm:
    """SLURM, as the commands of this machine reach it."""

    def render(self, job: ClusterJob) -> str:
        """Return the script that `submit` passes to sbatch.

        Raises:
            UsageError: A value cannot be written into a script.
        """
        site = job.site.slurm
        log = _folder(job) / "%j.log"
        lines = [f"#SBATCH {option}" for option in _options(job, log)]
        lines += ["# shellcheck disable=SC2016 # a $ in a value is not expanded"]
        lines += ["set -eo pipefail"]
        lines += [f"module load {shlex.quote(module)}" for module in site.modules]
        lines += site.setup
        variables = {"PYTHONPATH": python_path(), **site.env}
        lines += [f"export {name}={shlex.quote(text)}" for name, text in variables.items()]
        lines += [f"exec {shlex.join(_body(job))}"]
        shell = "#!/bin/bash -l" if site.modules else "#!/bin/bash"  # -l defines `module`
        script = "\n".join([shell, *lines, ""])
        if "\0" in script:
            raise UsageError("a value holds a zero byte", where="--site")
        return script

    def submit(self, job: ClusterJob) -> Submission:
        """Submit a command.

        Raises:
            UsageError: SLURM refuses the job, or is not here.
        """
        script = self.render(job)
        try:
            tried = scontrol.call("sbatch", "--test-only", text=script)
            if tried.returncode and (error := _refusal(scontrol.complaint(tried), job.site.slurm)):
                raise error
            folder = _folder(job)
            make_folder(folder)
            sent = scontrol.call("sbatch", "--parsable", text=script)
        except Failed as error:
            raise UsageError(
                error.problem.what, where="--on slurm", fix=error.problem.fix
            ) from error
        if sent.returncode:
            text = scontrol.complaint(sent)
            refusal = UsageError(
                f"sbatch refuses the job: {text}",
                where="--on slurm",
                fix="run the command where `sinfo` lists the partitions, and correct slurm.sbatch "
                "and the other keys of the site file",
            )
            raise _refusal(text, job.site.slurm) or refusal
        number = sent.stdout.strip().partition(";")[0]
        return Submission(
            name=job.name,
            kind="slurm",
            id=number,
            command=job.command,
            runs=job.runs,
            log=str(folder / f"{number}.log"),
        )

    def status(self, submission: Submission) -> Status:
        """Return the state of a job."""
        state = scontrol.job_state(submission.id)
        if state is None:
            return _forgotten(submission)
        restarts = f"; restart {state.restarts}" if state.restarts else ""
        if state.state in ("PENDING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD"):
            again = "requeued, and waits to start again" if state.restarts else "waits to start"
            return Status(QUEUED, f"{again} ({state.reason}){restarts}")
        if state.state in ("RUNNING", "COMPLETING", "CONFIGURING", "STOPPED"):
            return Status(RUNNING, f"on {state.nodes}{restarts}")
        return _final(state.state, state.exit_code)

    def logs(self, submission: Submission, follow: bool) -> Iterator[str]:
        """Yield the output so far in pieces and, if it is followed, the rest until the job ends."""
        position = 0
        while True:
            is_over = not follow or self.status(submission).state in FINAL  # before the last look
            if Path(submission.log).exists():
                with Path(submission.log).open(errors="replace") as file:
                    file.seek(position)
                    if text := file.read():
                        yield text
                    position = file.tell()
            if is_over:
                return
            time.sleep(POLL_S)

    def stop(self, submission: Submission) -> None:
        """Ask a job to write a checkpoint and end, without waiting for it.

        Raises:
            Failed: SLURM does not answer.
        """
        state = scontrol.job_state(submission.id)
        if state is None or self.status(submission).state in FINAL:
            return
        commands = [["scancel", submission.id]]  # a job that waits has nothing to write
        if state.state == "RUNNING":
            commands = [
                ["scontrol", "update", f"JobId={submission.id}", "Requeue=0"],
                ["scancel", "--signal=TERM", "--batch", submission.id],
            ]
        for command in commands:
            done = scontrol.call(*command)
            if done.returncode:
                raise Failed(scontrol.complaint(done), where=shlex.join(command))


def _options(job: ClusterJob, log: Path) -> Iterator[str]:
    """Yield the options of sbatch."""
    site = job.site.slurm
    given = {
        "job-name": job.name,
        "nodes": str(site.nodes),
        "ntasks-per-node": "1",
        "signal": f"B:TERM@{site.grace_s}",
        "output": str(log).replace("%", "%%").replace("%%j.log", "%j.log"),
        "open-mode": "append",
        "chdir": str(Path.cwd()),
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "time": site.time,
        "gpus-per-node": str(site.gpus_per_node or ""),
        "cpus-per-task": str(site.cpus_per_node or ""),
        "mem": site.memory,
    }
    for name, value in given.items():
        if "\n" in value:
            raise UsageError(f"{name} holds a line break", where="--on slurm")
        if value:
            yield f"--{name}={shlex.quote(value)}"
    yield "--requeue"
    if site.cpus_per_node is None:
        yield "--exclusive"
    for option in site.sbatch:
        name, equals, value = option.partition("=")
        yield f"{name}{equals}{shlex.quote(value) if value else ''}"


def _body(job: ClusterJob) -> list[str]:
    """Return the words of the command that the script executes."""
    site = job.site.slurm
    container = [f"--container-image={site.container}"] if site.container else []
    if site.container_mounts:
        container += [f"--container-mounts={','.join(site.container_mounts)}"]
    run = f"{job.runs or 'runs'}/{job.name}" if job.command[0] == "train" else ""
    python = PYTHON if container else sys.executable
    return [
        *(sys.executable, "-P", "-m", "jobs.cluster.slurm_job"),
        *(f"--state={_folder(job)}", f"--grace={site.grace_s}", f"--run={run}"),
        *(f"--container={option}" for option in container),
        *("--", python, "-P", "-m", "jobs", *job.command),
    ]


def _folder(job: ClusterJob) -> Path:
    """Return the folder of a run's jobs: their output, the log of Ray's nodes, and their record."""
    return submissions.folder().parent / "slurm" / submissions.file_name(job.name)


def _refusal(text: str, site: SlurmSite) -> UsageError | None:
    """Return the error for a message of sbatch that names what is wrong with the site."""
    for pattern, keys, fix in _REFUSALS:
        if re.search(pattern, text, re.IGNORECASE):
            values = {key: getattr(site, key) for key in keys.split()}
            given = [f"slurm.{key}={value}" for key, value in values.items() if value]
            where = ", ".join(given) or f"slurm.{keys}"
            return UsageError(f"SLURM refuses it: {text}", where=where, fix=fix)
    return None


def _forgotten(submission: Submission) -> Status:
    """Return the state of a job that only the accounting of SLURM, or its own record, knows."""
    asked = scontrol.call(
        *("sacct", "--noheader", "--allocations", "--parsable2"),
        *("--format=State,ExitCode", f"--jobs={submission.id}"),
    )
    state, _, code = asked.stdout.strip().partition("|")
    if asked.returncode == 0 and state:
        return _final(state.split()[0], int(code.partition(":")[0] or 0))
    try:
        code = read_json(Path(submission.log).with_suffix(RECORD))["exit_code"]
    except (OSError, ValueError, KeyError):
        return Status(FAILED, "SLURM does not know the job any longer, and it left no exit code")
    return _final("COMPLETED" if code == 0 else "FAILED", code)


def _final(state: str, code: int) -> Status:
    if state == "COMPLETED":
        return Status(DONE, exit_code=0)
    if state == "CANCELLED":
        return Status(STOPPED, "canceled")
    if state == "FAILED" and code in _STOPPED_CODES:
        return Status(STOPPED, "stopped by a signal", code)
    texts = {"TIMEOUT": "the time limit was reached", "FAILED": f"exit code {code}"}
    return Status(FAILED, texts.get(state, state), code or None)
