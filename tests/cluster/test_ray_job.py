"""Commands on a Ray cluster of two hosts, submitted to the job server of its dashboard."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex

import pytest

from jobs.cluster import package, ray_job
from jobs.cluster.ray_job import RayJobs
from jobs.cluster.rayjob import STOP_JOBS
from jobs.cluster.site import RaySite, Site
from jobs.cluster.submissions import ClusterJob, Status, Submission
from pipeline.run import eventlog, events, stop
from pipeline.run.checkpoint import committed
from pipeline.run.folder import CHECKPOINTS
from shards.errors import Failed, UsageError
from tests.cluster.hosts import Host, RayCluster, hosts, ray_cluster
from tests.jobs import small

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 8, 2
GATE = small.GLOBAL_BATCH * EVERY  # the position where the first start waits
# They are random, because this file is among the code that is sent.
PLANTED = {name: token_hex() for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")}
OF_CLIENT = {name: token_hex() for name in PLANTED}
WAIT_S = 600  # on a loaded machine


@dataclass
class Client:
    """A user's machine, which is not a node of the cluster."""

    folder: Path
    cluster: RayCluster
    shards: Path

    def environment(self, **more: str) -> dict[str, str]:
        home = {"HOME": str(self.folder), "XDG_STATE_HOME": str(self.folder / "state")}
        home |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return os.environ | home | OF_CLIENT | self.cluster.access | more

    def start(self, *words: str, **more: str) -> subprocess.Popen:
        """Start `python -m jobs WORDS…`."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "jobs", *words],
            cwd=self.folder,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *words: str, **more: str) -> small.Outcome:
        process = self.start(*words, **more)
        out, err = process.communicate(timeout=WAIT_S)
        return small.Outcome(process.returncode, out, err)

    def train(self, *changes: str) -> list[str]:
        """Return the command that trains the small run on the cluster, from a preset elsewhere."""
        _, _, *settings = small.words(self.shards, f"runs={self.folder / 'runs'}", *changes)
        site = str(self.folder / "site.yaml")
        return ["train", str(self.folder / "mine.yaml"), *settings, "--on", self.cluster.url,
                "--site", site]  # fmt: skip

    def state(self) -> str:
        [row] = json.loads(self.call("status", small.NAME, "--json").out)
        return row["state"]


@pytest.fixture
def client(tmp_path, tmp_path_factory):
    with hosts(2) as machines, ray_cluster(machines, dashboard=True, cpus=3) as cluster:
        secrets = machines[0].folder / "secrets.env"
        secrets.write_text("".join(f"{name}={value}\n" for name, value in PLANTED.items()))
        (tmp_path / "site.yaml").write_text(
            f"ray: {{python: {sys.executable}, env_file: {secrets}, "
            f"env: {{M2F_GATE: {tmp_path}/gate, M2F_GATE_POSITION: {GATE}}}}}\n"
        )
        preset = (ROOT / "jobs" / "presets" / "tiny.yaml").read_text()
        (tmp_path / "mine.yaml").write_text(preset)
        yield Client(tmp_path, cluster, small.photographs(tmp_path_factory.getbasetemp()))


def until(condition, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if process and process.poll() is not None:
            raise AssertionError(process.communicate())
        assert time.monotonic() < deadline
        time.sleep(0.2)


def environments(host: Host, command: bytes) -> list[bytes]:
    """Return the environments of the processes of a host with this part of a command line."""
    found = []
    for process in host.processes():
        with contextlib.suppress(OSError):  # it has ended
            if command in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(Path(f"/proc/{process}/environ").read_bytes())
    return found


def answers(cluster: RayCluster, path: str) -> str:
    """Return what the server of the dashboard answers to somebody who has the token."""
    token = {"x-ray-authorization": f"Bearer {cluster.token}"}
    with urllib.request.urlopen(urllib.request.Request(cluster.url + path, headers=token)) as reply:
        return reply.read().decode()


def files_with(folder: Path, texts: list[str]) -> list[Path]:
    """Return the regular files below a folder that hold one of the texts."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in paths if any(text.encode() in path.read_bytes() for text in texts)]


def test_the_entry_point_survives_the_shell_of_the_job_server():
    words = ["train", "x=a $(b); 'c'", "data.scale=[0.5,2]"]
    job = ClusterJob("a", words, site=Site(ray=RaySite(python="/bin/echo")))
    said = subprocess.run(ray_job._entrypoint(job), shell=True, capture_output=True, text=True)
    assert said.stdout == f"-P -m jobs {' '.join(words)} --on auto\n"


def test_a_preset_from_elsewhere_has_a_path_in_the_code():
    job = ClusterJob("a", ["train", "/else/mine.yaml", "b=/else/mine"], preset="/else/mine.yaml")
    assert ray_job._with_preset(job).command == ["train", "submitted/mine.yaml", "b=/else/mine"]


def test_wrong_versions_of_the_cluster_are_named():
    found = {name.name: version(name.name) for name in package.requirements()[1]}
    found["python"] = "3.11.7"
    ray_job._check_versions(found, "http://head")
    wrong = {**found, "python": "3.9.1", "torch": "2.1.0+cu118"}
    del wrong["wandb"]
    with pytest.raises(UsageError, match=r"Python 3\.9\.1 \(needs >=3\.11\), torch 2\.1\.0\+cu118 "
                       r"\(needs .*\), wandb is missing; run \./launch\.sh setup"):  # fmt: skip
        ray_job._check_versions(wrong, "http://head")


def test_output_is_followed_through_a_lost_connection(monkeypatch):
    outputs = iter([["one\n", "tw"], [], ["one\ntwo\n", "three\n"]])

    def tail(client, job):
        pieces = next(outputs)
        yield from pieces
        if len(pieces) < 2 or pieces[1] == "tw":
            raise RuntimeError("WebSocket connection closed unexpectedly")

    monkeypatch.setattr(ray_job, "_tail", tail)
    monkeypatch.setattr(ray_job, "_client", lambda address: None)
    monkeypatch.setattr(ray_job, "RETRY_S", 0)
    monkeypatch.setattr(RayJobs, "status", lambda self, submission: Status("done", exit_code=0))
    submission = Submission("a", "job", "a-1", ["train"])
    assert "".join(RayJobs().logs(submission, follow=True)) == "one\ntwo\nthree\n"
    monkeypatch.setattr(ray_job, "_tail", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(Failed, match="does not answer any more; the job may continue to run"):
        list(RayJobs().logs(submission, follow=True))


@pytest.mark.slow
def test_a_run_is_submitted_left_stopped_and_resumed(client):
    cluster, head = client.cluster, client.cluster.hosts[0]
    folder = client.folder / "runs" / small.NAME
    stage = "data.stages=[tests.pipeline.stages_for_tests:wait_for_gate]"
    train = client.train(f"trainer.steps={STEPS}", f"checkpoint.every_steps={EVERY}", stage)

    refused = client.call(*train, RAY_AUTH_TOKEN="b" * 64)
    assert refused.code == 2, refused
    assert "the job server refuses the token; set RAY_AUTH_MODE=token" in small.complaint(refused)
    elsewhere = client.call(*train[:-4], "--on", f"http://{head.address}:9")
    assert elsewhere.code == 2
    assert "no job server of Ray answers" in small.complaint(elsewhere)
    assert json.loads(answers(cluster, "/api/jobs/")) == []

    first = client.start(*train)
    until(lambda: len(committed(folder / CHECKPOINTS)) > 1, first)
    [driver] = environments(head, b"-m\0jobs\0train")
    assert all(f"{name}={value}\0".encode() in driver for name, value in PLANTED.items())
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=WAIT_S)
    assert first.returncode == 130, err
    assert "small continues to run; to come back: ./launch.sh logs -f small" in err
    assert "submitted small as small-" in out

    follower = client.start("logs", "-f", small.NAME)
    assert client.state() == "running"
    again = client.call(*train)
    assert again.code == 2
    assert "small is submitted already" in small.complaint(again)
    assert client.call("stop", small.NAME).code == 0
    until(lambda: stop.is_requested(folder))
    (client.folder / "gate").touch()
    out, err = follower.communicate(timeout=WAIT_S)
    assert follower.returncode == 75, (out, err)
    assert "a checkpoint is written after this step" in out
    assert client.state() == "stopped"
    [stopped] = eventlog.read_kind(folder, events.Stopped)
    assert EVERY <= stopped.step < STEPS

    resumed = client.call(*train)
    assert resumed.code == 0, resumed
    assert f"resuming from the checkpoint of step {stopped.step}" in resumed.out
    assert resumed.err == ""
    assert client.state() == "done"
    [finish] = eventlog.read_kind(folder, events.Finish)
    assert finish.step == STEPS
    for start in eventlog.read_kind(folder, events.Start):
        assert sorted(start.hosts) == [host.name for host in cluster.hosts]

    wrong = client.call(*client.train("name=other", "data.val=/nowhere"))
    assert wrong.code == 2, wrong
    assert "other has failed; its output: ./launch.sh logs other" in small.complaint(wrong)
    assert "data.val=/nowhere" in client.call("logs", "other").out

    head.run(sys.executable, "-c", STOP_JOBS, env=cluster.access)  # there is no job to stop
    planted = [*PLANTED.values(), *OF_CLIENT.values(), cluster.token]
    assert not re.search("|".join(planted), answers(cluster, "/api/jobs/"))
    (head.folder / "secrets.env").unlink()
    assert [files_with(place, planted) for place in (head.folder, client.folder)] == [[], []]
