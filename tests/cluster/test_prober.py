"""What a host says about itself, and the process with torch that it asks."""

import os
import shutil
from pathlib import Path

import pytest

from jobs.cluster import probe, reach
from jobs.cluster.marker import exchange, forget, marker, unseen
from jobs.cluster.prober import Prober
from jobs.cluster.ray_cluster import Variables
from shards.errors import DataError, Failed, UsageError


@pytest.fixture
def plan(tmp_path, photographs) -> probe.Plan:
    return probe.Plan(
        packages=("numpy", "no-such-package"),
        sets={
            str(photographs / "train"): "data.train",
            f"file://{photographs}/val": "data.val",
            str(tmp_path / "nothing"): "data.train",
        },
        cache=str(tmp_path / "cache"),
        runs=str(tmp_path / "runs"),
        work=str(tmp_path / "runs"),
        marker=".preflight-1",
        weights=str(tmp_path / "nothing"),
        weights_key="model.weights",
    )


def test_all_probes_answer(plan, tmp_path, photographs):
    answers = probe.look(plan, "h1 (10.0.0.1)")
    assert answers["versions"].keys() == {"Python", "numpy"}
    assert "jobs/cluster/probe.py" in answers["code"]
    assert answers["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert answers["cache"]["is_usable"]
    assert answers["runs"] is False
    for location in (photographs / "train", f"file://{photographs}/val"):
        assert len(answers[f"set {location}"]["fingerprint"]) == 64
    missing = answers[f"set {tmp_path / 'nothing'}"]
    assert isinstance(missing, UsageError)
    assert missing.problem.where == f"data.train={tmp_path / 'nothing'}"
    assert str(answers["weights"]) == f"model.weights={tmp_path / 'nothing'}: does not exist"


def test_a_probe_that_hangs_or_raises_is_an_answer(plan, monkeypatch):
    def hang(address: str) -> None:
        os.read(reader, 1)

    reader, writer = os.pipe()
    monkeypatch.setattr(probe, "machine", hang)
    monkeypatch.setattr(probe, "code", lambda: 1 / 0)
    monkeypatch.setattr(probe, "room", lambda folder: Path("/nothing").read_text())
    answers = probe.look(plan.__class__(**vars(plan) | {"limit_s": 1}), "h1")
    os.close(writer)
    assert str(answers["machine"]) == (
        "machine: the probe gave no answer in 1 s; check what it waits for"
    )
    assert answers["code"].problem.what == "ZeroDivisionError: division by zero"
    assert answers["cache"].problem.where == "/nothing"


def test_missing_and_short_shards_are_found(photographs, tmp_path):
    shutil.copytree(photographs / "train", tmp_path, dirs_exist_ok=True)
    first, second = sorted(tmp_path.glob("*.tar"))
    first.unlink()
    second.write_bytes(b"1")
    for location in (str(tmp_path), f"file://{tmp_path}"):
        with pytest.raises(DataError, match="2 of 2 shards are missing") as caught:
            probe.shard_set(location, "data.train")
        assert f"{second.name} has 1 bytes" in str(caught.value)


def test_hosts_exchange_files_through_the_runs(tmp_path):
    runs, host = str(tmp_path / "runs"), "h1 (::1)"
    with marker(runs) as folder:
        assert not exchange(runs, "other", host)
        assert exchange(runs, folder, host)
        assert list(unseen(runs, folder, [host], "driver")) == []
        forget(runs, folder, host)
        (finding,) = unseen(runs, folder, [host], "driver")
        assert finding.hosts == (host,)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_equal_if_their_files_are(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"1")
    assert probe.weights(first, "") == probe.weights(second, "")
    (second / "model.safetensors").write_bytes(b"2")
    assert probe.weights(first, "") != probe.weights(second, "")


def test_a_blocked_port_is_named():
    port = reach.serve("127.0.0.1")
    closed = reach.free_port("127.0.0.1")
    servers = {"h1": ("127.0.0.1", port), "h2": ("127.0.0.1", closed)}
    assert reach.reach(servers) == {"h2": "Connection refused"}


@pytest.mark.slow
def test_the_process_with_torch_answers_dies_and_starts_again(tmp_path, monkeypatch, plan):
    (tmp_path / "crash.py").write_text("import os; os.abort()")
    monkeypatch.syspath_prepend(tmp_path)
    prober = Prober(Variables())
    devices, stages = prober.examine(["os:path"], 120)
    assert isinstance(devices["gpus"], list)
    assert [stage["where"] for stage in stages] == ["data.stages=os:path"]
    crashed = prober.ask("stages", {"names": ["crash:it"]}, 120)
    assert isinstance(crashed, Failed)
    assert "the process died (SIGABRT)" in crashed.problem.what
    alone = {"rank": 0, "world": 1, "gpu": False, "limit_s": 60}
    address = {"address": "127.0.0.1", "host": "127.0.0.1", "port": prober.free_port("127.0.0.1")}
    assert prober.ask("meet", alone | address, 120) == 1
    late = prober.ask("meet", alone | address | {"world": 2, "rank": 1}, 0.5)
    assert late.problem.what == "no answer in 0.5 s"
    prober.end(plan, "h1")
