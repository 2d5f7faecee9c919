"""A run on storage belongs to no host: it is resumed on another after its host is gone."""

import logging
import time

import pytest

from pipeline.run import eventlog, events
from pipeline.run.storage import committed
from shards.remote import RemoteFolder
from tests.cluster.hosts import hosts, ray_cluster
from tests.jobs import small
from tests.pipeline.servers import s3_server

pytestmark = pytest.mark.slow
KILLED_AT = 6  # checkpoints at even steps


def test_a_run_is_resumed_on_the_host_that_is_left(
    tmp_path, tmp_path_factory, photographs, monkeypatch
):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    expected, _ = small.trained(tmp_path_factory.getbasetemp())
    with hosts() as (first, second), s3_server(monkeypatch, "runs", address=first.gateway):
        first.hide(second.folder)
        second.hide(first.folder)  # the hosts share only the shards and the Python environment
        words = small.words(photographs, "runs=s3://runs/all", "scaling.threads=1")
        run = RemoteFolder(f"s3://runs/all/{small.NAME}")
        with ray_cluster([first, second]) as cluster:
            command = first.jobs(
                *words, "--on", cluster.address, cwd=first.folder, env=cluster.access
            )
            while not any(f"{KILLED_AT:09d}" in name for name in committed(set(run.files()))):
                assert command.poll() is None, command.communicate()
                time.sleep(1)
            first.kill_processes()  # the head, the command, and a worker
            command.communicate()
        with ray_cluster([second]) as cluster:
            command = second.jobs(
                *words, "--on", cluster.address, cwd=second.folder, env=cluster.access
            )
            outcome = small.finish(command)
        assert outcome.code == 0, outcome.out + outcome.err
        for name in run.files():
            if name.startswith(("checkpoints/", "events")):
                target = tmp_path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                run.fetch(name, target)
    starts = eventlog.read_kind(tmp_path, events.Start)
    assert sorted(starts[0].hosts) == ["h1", "h2"]
    assert starts[-1].hosts == ["h2", "h2"]
    assert starts[-1].step >= KILLED_AT
    small.assert_same_state(small.last_state(tmp_path), small.last_state(expected))
