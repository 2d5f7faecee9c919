"""The manifest of a RayJob.

It has `submissionMode: HTTPMode`: KubeRay sends the command to Ray as it is, and sends it again if
the head was lost and made again. In its other modes two shells would read the command.
"""

import re
import secrets
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from jobs.cluster.site import HeadSite, KubeRaySite
from jobs.cluster.submissions import ClusterJob
from shards.errors import UsageError
from shards.files import is_url

NAME_LENGTH = 47  # KubeRay appends to the name of a RayJob
# What the head does before it ends (a node is drained, the RayJob is deleted or suspended): the
# command writes a checkpoint, for which Kubernetes waits as long as the grace period.
STOP_JOBS = """
import time
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient("http://127.0.0.1:8265")
jobs = [job.submission_id for job in client.list_jobs() if not job.status.is_terminal()]
jobs = [job for job in jobs if job]
for job in jobs:
    client.stop_job(job)
while not all(client.get_job_status(job).is_terminal() for job in jobs):
    time.sleep(1)
"""


def manifest(job: ClusterJob) -> dict[str, Any]:
    """Return the RayJob of a command.

    Raises:
        UsageError: The site names no image, or the preset is not in the image.
    """
    site = job.site.kuberay
    if not site.image:
        raise UsageError(
            "kuberay.image is not set",
            where="--on kuberay",
            fix="name the container image in the site file (--site)",
        )
    if job.preset:
        raise UsageError(
            "the preset is a file of this machine, which the image does not have",
            where=job.preset,
            fix="give a preset of the checkout with key=value, or add the file to jobs/presets/ of "
            "the image and give its name",
        )
    environment: dict[str, Any] = {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(site.grace_s)},
    }
    if is_url(site.code):
        environment["working_dir"] = site.code
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": _name(job.name),
            "namespace": site.namespace,
            "labels": {"app.kubernetes.io/name": "mask2former"},
            "annotations": {"mask2former/run": job.name},
        },
        "spec": {
            "submissionMode": "HTTPMode",
            "entrypoint": f"exec {shlex.join([site.python, *job.words('auto')[1:]])}",
            "runtimeEnvYAML": yaml.safe_dump(environment, sort_keys=False),
            "backoffLimit": site.backoff_limit,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": site.ttl_s,
            "rayClusterSpec": _cluster(site),
        },
    }


def _name(run: str) -> str:
    """Return a name for the RayJob of a run: a DNS label that no earlier job has."""
    label = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    label = label if label[:1].isalpha() else f"m2f-{label}".rstrip("-")
    return f"{label[: NAME_LENGTH - 7].rstrip('-')}-{secrets.token_hex(3)}"


def _cluster(site: KubeRaySite) -> dict[str, Any]:
    gpus = {"nvidia.com/gpu": str(site.gpus)} if site.gpus else {}
    worker = {"cpu": site.cpus, "memory": site.memory, **gpus}
    head = {"cpu": site.head.cpus, "memory": site.head.memory}
    stop_first = {"lifecycle": {"preStop": {"exec": {"command": [site.python, "-c", STOP_JOBS]}}}}
    return {
        "rayVersion": version("ray"),
        **({"authOptions": {"mode": "token"}} if site.auth == "token" else {}),
        "enableInTreeAutoscaling": site.workers_min < site.workers_max,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},  # the head gets no worker
            "template": _pod(site, "ray-head", head, site.head, stop_first),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": site.workers_min,
                "minReplicas": site.workers_min,
                "maxReplicas": site.workers_max,
                "rayStartParams": {},
                "template": _pod(site, "ray-worker", worker, site),
            }
        ],
    }


def _pod(
    site: KubeRaySite,
    name: str,
    resources: dict[str, str],
    where: HeadSite | KubeRaySite,
    more: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Return the template of a pod.

    Args:
        site: The facts about the cluster.
        name: Name of its container.
        resources: What it reserves, and its limits.
        where: The nodes that may run it.
        more: Other fields of its container.
    """
    claims = {claim: f"claim-{number}" for number, claim in enumerate(dict.fromkeys(
        site.mounts.values()))}  # fmt: skip
    path = [] if is_url(site.code) else [{"name": "PYTHONPATH", "value": site.code}]
    container = {
        "name": name,
        "image": site.image,
        "env": [
            *path,
            *({"name": key, "value": value} for key, value in site.env.items()),
            *(_from_secret(key, source) for key, source in site.secrets.items()),
        ],
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            *({"name": claims[claim], "mountPath": path} for path, claim in site.mounts.items()),
        ],
        **more,
    }
    pod = {
        "terminationGracePeriodSeconds": site.grace_s,
        "serviceAccountName": site.service_account,
        "imagePullSecrets": [{"name": site.pull_secret}] if site.pull_secret else [],
        "nodeSelector": where.node_selector,
        "tolerations": list(map(_toleration, where.tolerations)),
        "containers": [container],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": site.shm}},
            *(
                {"name": name, "persistentVolumeClaim": {"claimName": claim}}
                for claim, name in claims.items()
            ),
        ],
    }
    return {"spec": {key: value for key, value in pod.items() if value}}


def _from_secret(name: str, source: str) -> dict[str, Any]:
    secret, _, key = source.partition("/")
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _toleration(taint: str) -> dict[str, str]:
    key, _, effect = taint.rpartition(":")
    key, equals, value = key.partition("=")
    matched = {"operator": "Equal", "value": value} if equals else {"operator": "Exists"}
    return {"key": key, "effect": effect, **matched}
