"""`check` without a cluster: this machine, the data, and the config."""

import json
import shutil

import pytest

from tests.jobs import small


def words(shards, *changes: str) -> list[str]:
    """Return the command line that checks the small run."""
    return ["check", *small.words(shards, *changes)[1:]]


@pytest.mark.slow
def test_what_would_be_used_is_printed(photographs, tmp_path):
    outcome = small.call(tmp_path, *words(photographs))
    assert (outcome.code, outcome.err) == (0, "")
    assert "workers: 2 (CPUs of each: 1, GPUs of each: 0, threads of each: " in outcome.out
    assert "batch: 8 images in 2 passes of each worker, 2 images at most; " in outcome.out
    assert outcome.out.splitlines()[-1].startswith("0 errors and ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_everything_that_is_wrong_is_printed_at_once(photographs, tmp_path):
    changes = ["data.stages=[os:nothing]", f"data.val={tmp_path}/val", "model.init_from=/nothing"]
    outcome = small.call(tmp_path, *words(photographs, *changes), "--json")
    assert outcome.code == 2
    findings = json.loads(outcome.out)["findings"]
    assert all(finding["hosts"] and finding["fix"] for finding in findings)
    found = [finding["what"] for finding in findings if finding["level"] == "error"]
    assert found == [
        f"data.val={tmp_path}/val: not a shard set (no manifest.json)",
        "model.init_from=/nothing: does not exist",
        "data.stages=os:nothing: os has no function nothing",
    ]
    assert outcome.err.splitlines()[-1].startswith("error: preflight found 3 errors on ")


@pytest.mark.slow
def test_wrong_data_alone_has_a_code_of_its_own(photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "shards")
    shard = next((tmp_path / "shards" / "train").glob("*.tar"))
    shard.write_bytes(b"1")
    outcome = small.call(tmp_path, *words(tmp_path / "shards"))
    assert outcome.code == 3
    assert f"{shard.name} has 1 bytes instead of" in outcome.out
    assert "copy the whole set again" in outcome.out


def test_a_scheduler_is_refused(photographs, tmp_path):
    outcome = small.call(tmp_path, *words(photographs), "--on", "http://localhost:8265")
    assert outcome.code == 2
    assert "train checks its hosts in the job" in small.complaint(outcome)
