"""Commands on a Ray cluster of two hosts, joined by HOST:PORT: same bytes, and what breaks."""

import filecmp
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from pipeline.run import eventlog, events
from pipeline.run.checkpoint import committed
from pipeline.run.folder import CHECKPOINTS
from tests.cluster import hosts as of_hosts
from tests.cluster.hosts import Host, RayCluster, hosts, ray_cluster
from tests.jobs import small
from tests.shards.raw import SAMPLE

pytestmark = pytest.mark.slow
RUN = Path("runs") / small.NAME
LIMIT_S = 300  # on a loaded machine
WORKER = b"RayTrainWorker"  # in the title of a worker's process


@pytest.fixture(scope="module")
def cluster():
    """Two hosts with a CPU each; a node that cannot be reached is lost after half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(of_hosts.RAY_ENVIRONMENT, "RAY_health_check_timeout_ms", "4000")
        with hosts() as made, ray_cluster(made, cpus=1) as up:
            yield up


@pytest.fixture(scope="module")
def local(tmp_path_factory, photographs) -> Path:
    """Return the folder of the run as two workers of one machine train it."""
    folder = tmp_path_factory.mktemp("local")
    outcome = small.finish(small.start(folder, *small.words(photographs, "scaling.threads=1")))
    assert outcome.code == 0, outcome.err
    return folder / RUN


def train(cluster: RayCluster, shards: Path, folder: Path, *changes: str):
    words = small.words(shards, "scaling.threads=1", *changes)
    host = cluster.hosts[0]
    return host.jobs(*words, "--on", cluster.address, cwd=folder, env=cluster.access)


def run(cluster: RayCluster, folder: Path, *words: str, on: str = "", **access: str):
    """Run a command on the first host to its end."""
    target = ["--on", on or cluster.address]
    env = access or cluster.access
    return small.finish(cluster.hosts[0].jobs(*words, *target, cwd=folder, env=env))


def wait_for(condition) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def has_step(folder: Path, step: int):
    return lambda: any(
        event.step >= step for event in eventlog.read_kind(folder / RUN, events.Checkpoint)
    )


def workers(host: Host) -> list[int]:
    """Return the ids of the processes of Ray's workers that train on a host."""
    found = []
    for pid in host.processes():
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if WORKER in title:
            found.append(pid)
    return found


def weights(folder: Path) -> dict[str, bytes]:
    """Return the bytes of the last checkpoint's files, without the number of the start."""
    newest = committed(folder / CHECKPOINTS)[0]
    assert newest.name.startswith(f"step-{small.STEPS:09d}")
    return {path.name: path.read_bytes() for path in newest.iterdir() if path.is_file()}


def test_two_hosts_train_the_bytes_of_one_machine(cluster, photographs, local, tmp_path):
    """Also if their link is down for less than a worker waits."""
    command = train(cluster, photographs, tmp_path)
    wait_for(has_step(tmp_path, 4))
    cluster.hosts[1].cut_link()
    time.sleep(3)
    cluster.hosts[1].join_link()
    outcome = small.finish(command)
    assert outcome.code == 0, outcome.err
    (start,) = eventlog.read_kind(tmp_path / RUN, events.Start)
    assert sorted(start.hosts) == ["h1", "h2"]
    assert start.threads == 1
    assert weights(tmp_path / RUN) == weights(local)


def test_scores_and_predictions_are_those_of_one_machine(cluster, local, tmp_path):
    shutil.copytree(local, tmp_path / RUN)
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(Path(SAMPLE).rglob("*.jpg"))[:3]:
        shutil.copy(path, images)
    (images / "broken.jpg").write_bytes(b"not an image")
    scores, summaries = [], []
    for name, on in (("local", "local"), ("cluster", cluster.address)):
        outcome = run(cluster, tmp_path, "evaluate", small.NAME, "--json", on=on)
        assert outcome.code == 0, outcome.err
        scores.append(json.loads(outcome.out))
        words = ["predict", small.NAME, str(images), "--out", name]
        outcome = run(cluster, tmp_path, *words, on=on)
        assert outcome.code == 3, outcome.err
        summaries.append((tmp_path / name / "summary.json").read_bytes())
    assert scores[0] == scores[1]
    assert summaries[0] == summaries[1]
    compared = filecmp.dircmp(tmp_path / "local", tmp_path / "cluster")
    assert not [*compared.left_only, *compared.right_only, *compared.diff_files]
    assert not compared.subdirs["panoptic"].diff_files


def test_what_the_user_can_correct_is_one_line(cluster, photographs, tmp_path):
    words = small.words(photographs)
    lines = []
    for changes, access in (
        ([], {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}),
        (["scaling.workers=4"], cluster.access),
        (["scaling.gpu=true"], cluster.access),
    ):
        outcome = run(cluster, tmp_path, *words, *changes, **access)
        assert outcome.code == 2, outcome.err
        lines.append(small.complaint(outcome))
    outside = small.start(tmp_path, *words, "--on", cluster.address, **cluster.access)
    outcome = small.finish(outside)
    assert outcome.code == 2
    lines.append(small.complaint(outcome))
    assert "refuses the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in lines[0]
    assert "(h1: 1, h2: 1)" in lines[1]
    assert "suffice for 2 workers" in lines[1]
    assert "has only 0 of the GPUs that 2 workers need" in lines[2]
    assert "is not a node of the Ray cluster" in lines[3]
    assert f"--on http://{cluster.hosts[0].address}:8265" in lines[3]
    assert not (tmp_path / "runs").exists()
    assert not [*workers(cluster.hosts[0]), *workers(cluster.hosts[1])]


def test_a_killed_command_and_a_lost_host_cost_no_weights(cluster, photographs, local, tmp_path):
    first, second = cluster.hosts
    command = train(cluster, photographs, tmp_path)
    wait_for(has_step(tmp_path, 2))
    assert len(workers(first)) == len(workers(second)) == 1
    os.killpg(command.pid, 9)
    command.wait()
    wait_for(lambda: not [*workers(first), *workers(second)])

    command = train(cluster, photographs, tmp_path)
    wait_for(has_step(tmp_path, 8))
    second.cut_link()
    wait_for(lambda: not workers(first))  # the cluster has given the host up
    second.join_link()
    second.kill_processes()
    cluster.nodes[second.name].wait()
    cluster.start_node(second)
    outcome = small.finish(command)
    assert outcome.code == 0, outcome.err
    starts = eventlog.read_kind(tmp_path / RUN, events.Start)
    assert [start.attempt for start in starts] == [1, 2, 3]
    assert sorted(starts[-1].hosts) == ["h1", "h2"]
    assert weights(tmp_path / RUN) == weights(local)
