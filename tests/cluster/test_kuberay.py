"""RayJobs: the manifest against the published schema, and what happens through kubectl."""

import copy
import functools
import gzip
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.cluster import kuberay, rayjob
from jobs.cluster import site as sites
from jobs.cluster.kuberay import KubeRay
from jobs.cluster.submissions import ClusterJob, Status, Submission
from shards.errors import UsageError

SCHEMA = Path(__file__).parents[1] / "data" / "kuberay" / "ray.io_rayjobs.yaml.gz"
SHA256 = "01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5"
SITE = """
kuberay:
  image: registry.example/mask2former:1
  workers_min: 1
  workers_max: 4
  gpus: 8
  head: {node_selector: {pool: on-demand}, tolerations: [dedicated=head:NoSchedule]}
  node_selector: {pool: spot}
  tolerations: [nvidia.com/gpu:NoSchedule]
  mounts: {/data: shards, /more: shards, /runs: runs}
  env: {NCCL_DEBUG: INFO}
  secrets: {WANDB_API_KEY: wandb/api-key, AWS_SECRET_ACCESS_KEY: aws/secret}
  service_account: trainer
  pull_secret: registry
  grace_s: 900
"""


@pytest.fixture
def job(tmp_path):
    """A job with words that two shells would change."""
    path = tmp_path / "site.yaml"
    path.write_text(SITE)
    words = ["train", "tiny", "name=My_Run.2", "data.scale=[0.5,2]", "tracking.notes=a $(b); 'c'"]
    return ClusterJob("My_Run.2", words, site=sites.load(path))


@functools.cache
def schema() -> dict[str, Any]:
    """Return the schema of a RayJob, in which a field that is not declared is an error.

    Kubernetes drops such fields silently.
    """
    text = gzip.decompress(SCHEMA.read_bytes())
    assert hashlib.sha256(text).hexdigest() == SHA256
    crd = yaml.load(text, yaml.CSafeLoader)
    [found] = [one["schema"] for one in crd["spec"]["versions"] if one["name"] == "v1"]
    whole = found["openAPIV3Schema"]
    names = {name: {"type": "string"} for name in ("name", "namespace")}
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    whole["properties"]["metadata"] = {
        "type": "object",
        "properties": names | {"labels": texts, "annotations": texts},
    }
    _close(whole)
    return whole


def _close(node: Any) -> None:
    if isinstance(node, list):
        for entry in node:
            _close(entry)
    elif isinstance(node, dict):
        is_open = node.get("x-kubernetes-preserve-unknown-fields", False)
        if isinstance(node.get("properties"), dict) and "type" in node and not is_open:
            node.setdefault("additionalProperties", False)
        for entry in node.values():
            _close(entry)


def problems(manifest: dict[str, Any]) -> list[str]:
    """Return what the schema refuses in a manifest."""
    errors = jsonschema.Draft202012Validator(schema()).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]


def nodes(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every mapping in a manifest."""
    if isinstance(value, dict):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in items:
        if isinstance(entry, dict | list):
            yield from nodes(entry, (*path, key))


FREE = ("labels", "annotations", "nodeSelector", "rayStartParams", "requests", "limits")


def test_the_manifest_has_the_published_schema_and_a_typo_in_any_field_is_noticed(job):
    made = rayjob.manifest(job)
    assert problems(made) == []
    declared = [path for path in nodes(made) if not {*FREE} & {*path}]
    assert len(declared) > 40
    for path in declared:
        wrong = copy.deepcopy(made)
        functools.reduce(lambda node, key: node[key], path, wrong)["typo"] = "x"
        assert problems(wrong), path


def test_the_smallest_site_has_the_schema_too():
    site = sites.Site(
        kuberay=sites.KubeRaySite(image="a", gpus=0, auth="disabled", code="s3://b/code.zip")
    )
    made = rayjob.manifest(ClusterJob("0", ["train", "tiny"], site=site))
    assert problems(made) == []
    assert made["metadata"]["name"].startswith("m2f-0-")
    cluster = made["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    assert "authOptions" not in cluster  # operators before 1.5.1 do not know it
    assert "nvidia.com/gpu" not in json.dumps(cluster)
    assert yaml.safe_load(made["spec"]["runtimeEnvYAML"])["working_dir"] == "s3://b/code.zip"


def test_the_manifest_keeps_the_promises_of_the_docs(job):
    spec = rayjob.manifest(job)["spec"]
    assert shlex.split(spec["entrypoint"]) == [
        *("exec", "python", "-P", "-m", "jobs", *job.command, "--on", "auto")
    ]
    assert spec["backoffLimit"] == 3
    assert spec["shutdownAfterJobFinishes"] is True
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert variables == {"RAY_JOB_STOP_WAIT_TIME_S": "900"}
    cluster = spec["rayClusterSpec"]
    head, [group] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 4)
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["template"]["spec"]["nodeSelector"] == {"pool": "on-demand"}
    assert group["template"]["spec"]["nodeSelector"] == {"pool": "spot"}
    assert "preStop" in head["template"]["spec"]["containers"][0]["lifecycle"]
    for pod in (head["template"]["spec"], group["template"]["spec"]):
        [container] = pod["containers"]
        assert pod["terminationGracePeriodSeconds"] == 900
        assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
        assert {volume["name"] for volume in pod["volumes"]} == {"shm", "claim-0", "claim-1"}
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert paths == ["/dev/shm", "/data", "/more", "/runs"]
        by_name = {variable["name"]: variable for variable in container["env"]}
        for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
            assert "secretKeyRef" in by_name[name]["valueFrom"]
            assert "value" not in by_name[name]


def test_names_are_labels_that_kuberay_accepts():
    for run in ("My_Run.2", "1", "a" * 200, "_-", "x-"):
        name = rayjob._name(run)
        assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name), name
        assert len(name) <= rayjob.NAME_LENGTH
        assert name != rayjob._name(run)


def test_what_the_image_lacks_is_named(job):
    with pytest.raises(UsageError, match=r"kuberay\.image is not set"):
        rayjob.manifest(ClusterJob("a", ["train"]))
    site = job.site
    with pytest.raises(UsageError, match=r"mine\.yaml: the preset is a file of this machine"):
        rayjob.manifest(ClusterJob("a", ["train"], site=site, preset="mine.yaml"))


STATUSES = [
    ({}, Status("queued")),
    ({"jobDeploymentStatus": "Initializing"}, Status("queued", "Initializing")),
    ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, Status("running", "Running")),
    (
        {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", "failed": 1},
        Status("queued", "restarted 1 times"),
    ),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, Status("done", "", 0)),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, Status("stopped", "", 75)),
    (
        {
            "jobDeploymentStatus": "Failed",
            "jobStatus": "FAILED",
            "reason": "AppFailed",
            "message": "Job entrypoint command failed with exit code 3, last available logs: …",
        },
        Status("failed", "AppFailed", 3),
    ),
    (
        {"jobDeploymentStatus": "ValidationFailed", "message": "The spec\nis invalid"},
        Status("failed", "The spec is invalid"),
    ),
]


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """A kubectl that records its calls, and answers as the file `answer` of the folder says."""
    program = tmp_path / "kubectl"
    program.write_text(f"""#!{sys.executable}
import json, pathlib, sys
folder = pathlib.Path({str(tmp_path)!r})
words = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
if "create" in words:
    (folder / "created.json").write_text(sys.stdin.read())
if "rayjob" in words and "get" in words:
    print(json.dumps({{"status": json.loads((folder / "answer").read_text())}}))
if "pods" in words:
    print("pod/head-1")
if "logs" in words:
    print("hello from the job")
if (folder / "refuse").exists():
    sys.exit("Error from server (Forbidden): no")
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_a_job_is_created_and_found_again(job, kubectl):
    submission = KubeRay().submit(job)
    created = json.loads((kubectl / "created.json").read_text())
    assert problems(created) == []
    assert created["metadata"]["name"] == submission.id
    for answer, expected in STATUSES:
        (kubectl / "answer").write_text(json.dumps(answer))
        assert KubeRay().status(submission) == expected
    assert calls(kubectl)[-1] == [
        *("--namespace=default", "get", "rayjob", submission.id, "-o", "json")
    ]


def test_the_output_and_the_stop_go_through_the_head(kubectl):
    submission = Submission("a", "kuberay", "a-1", ["train"], "prod/ml")
    (kubectl / "answer").write_text(json.dumps({"rayClusterName": "a-c", "jobId": "a-x"}))
    assert list(KubeRay().logs(submission, follow=True)) == ["hello from the job\n"]
    KubeRay().stop(submission)
    head = ["--context=prod", "--namespace=ml", "exec", "pod/head-1", "-c", "ray-head", "--"]
    assert [*head, "ray", "job", "logs", "--follow", "a-x"] in calls(kubectl)
    assert calls(kubectl)[-1] == [*head, "ray", "job", "stop", "--no-wait", "a-x"]


def test_a_job_without_a_head_shows_its_message_and_is_suspended(kubectl):
    submission = Submission("a", "kuberay", "a-1", ["train"], "/ml")
    (kubectl / "answer").write_text(json.dumps({"message": "the end of the output"}))
    assert list(KubeRay().logs(submission, follow=False)) == ["the end of the output"]
    KubeRay().stop(submission)
    assert calls(kubectl)[-1][-1] == '--patch={"spec": {"suspend": true}}'


def test_a_failing_or_missing_kubectl_is_one_line(job, kubectl, monkeypatch):
    (kubectl / "refuse").touch()
    with pytest.raises(UsageError, match=r"kubectl create fails: Error from server \(Forbidden\)"):
        KubeRay().submit(job)
    monkeypatch.setattr(kuberay.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="kubectl is not installed; install it, or write the"):
        KubeRay().submit(job)
