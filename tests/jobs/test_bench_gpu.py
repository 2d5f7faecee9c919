"""The GPU benchmark at small sizes on a CPU: every section runs, and one that fails says why."""

import pytest

from jobs.bench import gpu


@pytest.mark.slow
def test_every_section_runs_without_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "gpu_tests", lambda: [])  # they have a test each
    rows = {row["name"]: row for row in gpu.rows()}
    assert not {name: row["note"] for name, row in rows.items() if "note" in row}
    expected = {
        "gpu.matrix_product.bf16",
        "gpu.attention.forward",
        "gpu.attention.backward",
        "gpu.step.rate",
        "gpu.train.rate",
        "gpu.end_to_end.rate",
        "gpu.end_to_end.data_wait",
    }
    assert expected <= rows.keys()
    assert all(rows[name]["ours"] > 0 for name in expected)


def test_a_section_that_fails_leaves_the_others(monkeypatch):
    def fails():
        raise RuntimeError("no such device")

    for section in ("gpu_tests", "attention_rows", "peer_rows", "train_rows", "end_to_end_rows"):
        monkeypatch.setattr(gpu, section, fails)
    rows = gpu.rows()
    assert [row["name"] for row in rows[:2]] == ["gpu.copy", "gpu.matrix_product.bf16"]
    assert {row["note"] for row in rows[2:]} == {"RuntimeError: no such device"}
    assert len(rows) == 7
