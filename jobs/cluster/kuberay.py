"""`--on kuberay`: commands as RayJobs on Kubernetes, through kubectl."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import yaml

from jobs.cluster.rayjob import manifest
from jobs.cluster.submissions import (
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    STOPPED,
    ClusterJob,
    Status,
    Submission,
)
from jobs.interrupts import Preempted
from shards.errors import Failed, UsageError

TIMEOUT_S = 60  # of a call of kubectl that does not follow
STATES = {"SUCCEEDED": DONE, "FAILED": FAILED, "STOPPED": STOPPED}
WAITING = ("Retrying", "Suspended", "Initializing", "Waiting", "")
_EXIT_CODE = re.compile(r"failed with exit code (\d+)")


class KubeRay:
    """Kubernetes with KubeRay's operator; see `Scheduler`."""

    def render(self, job: ClusterJob) -> str:
        """Return the manifest of the RayJob.

        Raises:
            UsageError: The site names no image, or the preset is not in the image.
        """
        return yaml.safe_dump(manifest(job), sort_keys=False, width=1000)

    def submit(self, job: ClusterJob) -> Submission:
        """Create the RayJob.

        Raises:
            UsageError: kubectl is missing or fails, or the manifest cannot be made.
        """
        site, made = job.site.kuberay, manifest(job)
        address = f"{site.context}/{site.namespace}"
        _kubectl(address, "create", "-f", "-", text=json.dumps(made))
        name = made["metadata"]["name"]
        return Submission(job.name, "kuberay", name, job.command, address, job.runs)

    def status(self, submission: Submission) -> Status:
        """Return the state of a RayJob. A failed one that KubeRay starts again is not failed."""
        found = _status(submission)
        deployment, message = found.get("jobDeploymentStatus", ""), found.get("message", "")
        code = _EXIT_CODE.search(message)
        exit_code = int(code[1]) if code else None
        restarts = found.get("failed") or 0
        text = f"restarted {restarts} times" if restarts else ""
        if deployment in ("Complete", "Failed", "ValidationFailed"):
            state = STATES.get(found.get("jobStatus", ""), FAILED)
            if state == STOPPED or exit_code == Preempted.exit_code:
                return Status(STOPPED, text, Preempted.exit_code)
            if state == DONE:
                return Status(DONE, text, 0)
            reason = found.get("reason", "") if code else message[-300:]
            return Status(FAILED, " ".join(reason.split()), exit_code)
        return Status(QUEUED if deployment in WAITING else RUNNING, text or deployment)

    def logs(self, submission: Submission, follow: bool) -> Iterator[str]:
        """Yield the output of the command, while the head exists; then the end of it, if it failed.

        Raises:
            UsageError: kubectl is missing or fails.
        """
        found = _status(submission)
        head = _head(submission, found)
        if not head:
            yield found.get("message", "") or "the head does not run; see the events of the run\n"
            return
        words = ["ray", "job", "logs", *["--follow"] * follow, found["jobId"]]
        process = subprocess.Popen(
            [*_command(submission.address), "exec", head, "-c", "ray-head", "--", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout
        with process:
            yield from process.stdout

    def stop(self, submission: Submission) -> None:
        """Send SIGTERM to the command, which writes a checkpoint; without a head, suspend the job.

        Raises:
            UsageError: kubectl is missing or fails.
        """
        found = _status(submission)
        if head := _head(submission, found):
            words = ["ray", "job", "stop", "--no-wait", found["jobId"]]
            _kubectl(submission.address, "exec", head, "-c", "ray-head", "--", *words)
        else:
            patch = json.dumps({"spec": {"suspend": True}})
            options = ["--type=merge", f"--patch={patch}"]
            _kubectl(submission.address, "patch", "rayjob", submission.id, *options)


def _status(submission: Submission) -> dict[str, Any]:
    """Return the status of a RayJob."""
    found = _kubectl(submission.address, "get", "rayjob", submission.id, "-o", "json")
    return json.loads(found).get("status", {})


def _head(submission: Submission, status: dict[str, Any]) -> str:
    """Return the name of the running head pod of a RayJob; "" if it has none."""
    if not status.get("rayClusterName") or not status.get("jobId"):
        return ""
    labels = f"ray.io/cluster={status['rayClusterName']},ray.io/node-type=head"
    running = "--field-selector=status.phase=Running"
    return _kubectl(submission.address, "get", "pods", "-l", labels, running, "-o", "name").strip()


def _command(address: str) -> list[str]:
    """Return the start of a command line of kubectl.

    Raises:
        UsageError: It is not installed.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise UsageError(
            "kubectl is not installed",
            where="--on kuberay",
            fix="install it, or write the manifest with --dry-run and apply it elsewhere",
        )
    context, _, namespace = address.rpartition("/")
    return [kubectl, *([f"--context={context}"] if context else []), f"--namespace={namespace}"]


def _kubectl(address: str, *words: str, text: str | None = None) -> str:
    """Run kubectl and return its output.

    Raises:
        UsageError: It fails, or is not installed.
        Failed: It does not end in time.
    """
    command = [*_command(address), *words]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"kubectl did not answer in {TIMEOUT_S} s", where=address) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason is given"])[-1]
        fix = "see docs/cluster.md for what the cluster must have"
        raise UsageError(f"kubectl {words[0]} fails: {reason}", where=address, fix=fix)
    return done.stdout
