"""Shards built by a Ray cluster: the bytes of a local build, with the same retries and errors."""

import contextlib
import re
import socket

import pytest
from ray.cluster_utils import Cluster

from jobs.on_ray import tasks
from shards.errors import DataError, Failed, UsageError
from shards.parallel import ATTEMPTS, run
from tests.jobs import small
from tests.shards.build.test_build import tree
from tests.shards.raw import SAMPLE
from tests.shards.test_parallel import Piece, work


@pytest.fixture(scope="module")
def client_port():
    """A free port for the clients of the cluster, outside the range of its workers."""
    ports = range(9000, 10000)
    for port in ports:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no port of {ports} is free")


@pytest.fixture(scope="module")
def cluster(client_port):
    """The address of a cluster on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        head["ray_client_server_port"] = client_port
        cluster = Cluster(initialize_head=True, head_node_args=head)
        yield cluster.address
        cluster.shutdown()


def build(folder, *options):
    return small.call(folder, "build", "coco", "--root", str(SAMPLE), "--shards", "2", *options)


@pytest.mark.slow
def test_a_cluster_makes_the_same_bytes(cluster, tmp_path, photographs, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    outcome = build(tmp_path, "--out", "out")
    assert outcome.code == 0, outcome.err
    assert tree(tmp_path / "out") == tree(photographs)
    outcome = build(tmp_path, "--out", f"file://{tmp_path}/sent", "--work", "work")
    assert outcome.code == 0, outcome.err
    assert tree(tmp_path / "sent") == tree(photographs)
    outcome = build(tmp_path, "--out", "out", "--jobs", "2")
    assert outcome.code == 2
    assert "--jobs: is for processes on this machine" in small.complaint(outcome)


@pytest.mark.slow
def test_a_client_of_a_cluster_has_the_same_bytes_made(cluster, client_port, tmp_path, photographs):
    outcome = build(tmp_path, "--out", "out", "--on", f"ray://127.0.0.1:{client_port}")
    assert outcome.code == 0, outcome.err
    assert tree(tmp_path / "out") == tree(photographs)


@pytest.mark.slow
def test_a_piece_is_tried_again_and_its_errors_arrive(cluster, tmp_path):
    with tasks(cluster, []) as runner:
        pieces = [Piece(tmp_path / str(n), deaths=(ATTEMPTS - 1) * (n == 1)) for n in range(3)]
        assert run(work, pieces, runner, "pieces", [1] * 3) == ["0", "1", "2"]
        assert [piece.tar.stat().st_size for piece in pieces] == [1, ATTEMPTS, 1]
        deadly = [Piece(tmp_path / "good"), Piece(tmp_path / "deadly", deaths=ATTEMPTS)]
        with pytest.raises(Failed, match="deadly: its process died 3 times"):
            run(work, deadly, runner, "pieces", [1, 1])
        with pytest.raises(DataError, match="wrong: wrong") as error:
            run(work, [Piece(tmp_path / "wrong")], runner, "pieces", [1])
        assert type(error.value) is DataError
        assert "in work" in error.value.__notes__[0]
    with (
        tasks(cluster, [tmp_path / "here alone"]) as runner,
        pytest.raises(UsageError, match="here alone: is missing on the node"),
    ):
        run(work, [Piece(tmp_path / "good")], runner, "pieces", [1])


@pytest.mark.parametrize(
    ("on", "pattern"),
    [
        (
            "nowhere",
            r"--on nowhere: is not known; give local, auto, HOST:PORT \(a Ray cluster\)",
        ),
        ("127.0.0.1:1", r"--on 127\.0\.0\.1:1: no Ray cluster answers"),
        ("ray://127.0.0.1:1", r"--on ray://127\.0\.0\.1:1: no Ray cluster answers"),
    ],
)
def test_an_address_without_a_cluster_is_named(tmp_path, on, pattern):
    outcome = build(tmp_path, "--out", "out", "--on", on)
    assert outcome.code == 2
    assert re.search(pattern, small.complaint(outcome))
