"""`--on http://HOST:8265`: commands as jobs of a Ray cluster, through its job server."""

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import yaml

from jobs.cluster.package import ROOT, copy_code, files, requirements
from jobs.cluster.ray_cluster import CONNECT_TIMEOUT_S, TOKEN_FIX
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
from jobs.interrupts import Preempted
from shards.errors import Failed, M2FError, UsageError, some_of

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PROBE_TIMEOUT_S = 120  # for the job that prints the versions of the cluster
RETRY_S, RETRIES = 2, 60  # while the output is followed and the server does not answer
TALKATIVE = (  # loggers of Ray's client
    *("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"),
    "ray._private.runtime_env.packaging",
)
PRESETS = Path("submitted")  # folder of the code that holds a preset from outside the checkout
STATES = {"PENDING": QUEUED, "RUNNING": RUNNING, "SUCCEEDED": DONE, "STOPPED": STOPPED}
MARK = "mask2former versions "
PROBE = f"""
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {{"python": sys.version.split()[0]}}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print({MARK!r} + json.dumps(found))
"""


class RayJobs:
    """The job server of a Ray cluster; see `Scheduler`."""

    def render(self, job: ClusterJob) -> str:
        """Return the job as YAML."""
        names = files()
        mib = sum((ROOT / name).stat().st_size for name in names) / 2**20
        described = {
            "address": job.address,
            "entrypoint": _entrypoint(_with_preset(job)),
            "env_vars": _variables(job),
            "working_dir": f"{len(names)} files of {ROOT}, {mib:.1f} MiB",
        }
        return yaml.safe_dump(described, sort_keys=False, width=1000)

    def submit(self, job: ClusterJob) -> Submission:
        """Compare the versions of the cluster with ours, send the code, and submit a command.

        Raises:
            UsageError: No job server answers, it refuses the token, a package of the cluster is
                missing or has a wrong version, or the code is too large.
        """
        client = _client(job.address)
        _check_versions(_versions_of(client, job), job.address)
        with tempfile.TemporaryDirectory() as folder, _one_line(job.address):
            code = copy_code(Path(folder))
            if job.preset:
                target = code / _with_preset(job).preset
                target.parent.mkdir()
                shutil.copy(job.preset, target)
            submitted = client.submit_job(
                entrypoint=_entrypoint(_with_preset(job)),
                submission_id=f"{job.name}-{secrets.token_hex(3)}",
                runtime_env={"working_dir": str(code), "env_vars": _variables(job)},
                metadata={"run": job.name},
            )
        return Submission(job.name, "job", submitted, job.command, job.address, job.runs)

    def status(self, submission: Submission) -> Status:
        """Return the state of a job, with the exit code of its command."""
        client = _client(submission.address)
        with _one_line(submission.address):
            details = client.get_job_info(submission.id)
        state, code = STATES.get(details.status.value, FAILED), details.driver_exit_code
        if state == STOPPED or code == Preempted.exit_code:
            return Status(STOPPED, exit_code=Preempted.exit_code)
        is_started = code is not None or state not in (FAILED, QUEUED)
        text = "" if is_started else " ".join((details.message or "").split())[-300:]
        return Status(state, text, code)

    def logs(self, submission: Submission, follow: bool) -> Iterator[str]:
        """Yield the output of a job."""
        client = _client(submission.address)
        if not follow:
            with _one_line(submission.address):
                yield client.get_job_logs(submission.id)
            return
        printed, failures = 0, 0
        while failures < RETRIES:
            read = 0
            try:
                for piece in _tail(client, submission.id):
                    read += len(piece)
                    yield piece[max(0, len(piece) - (read - printed)) :] if read > printed else ""
                    printed, failures = max(printed, read), 0
                if self.status(submission).state in FINAL:
                    return
            except (OSError, RuntimeError, ValueError):  # the connection is lost
                failures += 1
            time.sleep(RETRY_S)
        raise Failed(
            "the job server does not answer any more; the job may continue to run",
            where=submission.address,
            fix=f"to come back: ./launch.sh logs -f {submission.name}",
        )

    def stop(self, submission: Submission) -> None:
        """Send SIGTERM to a job, which then has `ray.stop_s` seconds to write a checkpoint."""
        client = _client(submission.address)
        with _one_line(submission.address):
            client.stop_job(submission.id)


def _with_preset(job: ClusterJob) -> ClusterJob:
    """Return the job with the path that its preset has in the code on the cluster."""
    if not job.preset:
        return job
    sent = str(PRESETS / Path(job.preset).name)
    command = [sent if word == job.preset else word for word in job.command]
    return replace(job, command=command, preset=sent)


def _entrypoint(job: ClusterJob) -> str:
    """Return the command as the shell of the job server takes it."""
    words = shlex.join([job.site.ray.python, *job.words("auto")[1:]])
    if not job.site.ray.env_file:
        return f"exec {words}"
    return f"set -a; . {shlex.quote(job.site.ray.env_file)}; set +a; exec {words}"


def _variables(job: ClusterJob) -> dict[str, str]:
    """Return the environment variables of the job, which Ray shows to everybody: no secrets."""
    return {**job.site.ray.env, "RAY_JOB_STOP_WAIT_TIME_S": str(job.site.ray.stop_s)}


def _client(address: str) -> "JobSubmissionClient":
    """Connect to a job server.

    Raises:
        UsageError: None answers, or it refuses the token.
    """
    url = urlsplit(address)
    with _one_line(address):  # Ray itself would wait for minutes
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        socket.create_connection((url.hostname or "", port), CONNECT_TIMEOUT_S).close()
        from ray.job_submission import JobSubmissionClient

        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _variable("RAY_API_SERVER_ADDRESS", address):  # Ray prefers RAY_ADDRESS to arguments
            return JobSubmissionClient(address)


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one line for the user."""
    try:
        yield
    except M2FError:
        raise
    except Exception as error:  # Ray raises plain exceptions, too
        name, reason = type(error).__name__, " ".join(str(error).split())
        if name == "AuthenticationError":
            what, fix = "the job server refuses the token", TOKEN_FIX
        elif missing := re.search(r"Job \S+ does not exist", reason):
            what, fix = missing[0], "the cluster was started again; submit the command again"
        else:
            what = f"no job server of Ray answers ({reason[:200]})"
            fix = "give the address of the dashboard of a running cluster, such as http://HOST:8265"
        raise UsageError(what, where=address, fix=fix) from error


def _versions_of(client: "JobSubmissionClient", job: ClusterJob) -> dict[str, str]:
    """Return the versions of Python and of our packages on the cluster: a job prints them.

    Raises:
        UsageError: Its Python does not start.
        Failed: The cluster does not start it in time.
    """
    names = [requirement.name for requirement in requirements()[1]]
    words = [job.site.ray.python, "-c", PROBE, *names]
    with _one_line(job.address):
        probe = client.submit_job(
            entrypoint=shlex.join(words),
            submission_id=f"{job.name}-versions-{secrets.token_hex(3)}",
        )
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        while not client.get_job_status(probe).is_terminal():
            if time.monotonic() > deadline:
                client.stop_job(probe)
                raise Failed(
                    f"the cluster did not start a job in {PROBE_TIMEOUT_S} s",
                    where=job.address,
                    fix="look at its dashboard; its head may be busy",
                )
            time.sleep(0.2)
        output = client.get_job_logs(probe)
    found = re.search(f"^{MARK}(.*)$", output, re.MULTILINE)
    if not found:
        last = (output.strip().splitlines() or ["no output"])[-1]
        raise UsageError(
            f"{job.site.ray.python} does not start on the cluster ({last[:200]})",
            where=job.address,
            fix="set ray.python of the site file to the Python of the nodes",
        )
    return json.loads(found[1])


def _check_versions(found: dict[str, str], address: str) -> None:
    """Check that the cluster has what this checkout requires.

    Raises:
        UsageError: A package is missing or has a wrong version.
    """
    python, packages = requirements()
    wrong = [] if found["python"] in python else [f"Python {found['python']} (needs {python})"]
    for needed in packages:
        if needed.name not in found:
            wrong.append(f"{needed.name} is missing")
        elif not needed.specifier.contains(found[needed.name], prereleases=True):
            wrong.append(f"{needed.name} {found[needed.name]} (needs {needed.specifier})")
    if wrong:
        raise UsageError(
            f"the cluster does not have the packages of this checkout: {some_of(wrong, 5)}",
            where=address,
            fix="run ./launch.sh setup on its nodes, and start Ray from that environment",
        )


def _tail(client: "JobSubmissionClient", job: str) -> Iterator[str]:
    """Yield the output of a job from its start until the job ends."""
    loop = asyncio.new_event_loop()
    stream = client.tail_job_logs(job).__aiter__()
    try:
        while True:
            yield loop.run_until_complete(anext(stream))
    except StopAsyncIteration:
        return
    finally:
        loop.close()
