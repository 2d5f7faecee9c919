"""`evaluate A B` from the command line."""

import json
import os
from dataclasses import replace

import pytest

from pipeline.run.folder import EVALUATIONS
from pipeline.score.record import Image
from tests.jobs import small
from tests.pipeline.score.test_compare import evaluated


@pytest.fixture
def work(tmp_path):
    """Return a folder with the runs `a` and `b`, each with an evaluation of the same images."""
    for seed, name in enumerate("ab"):
        folder = tmp_path / "runs" / name / EVALUATIONS
        folder.mkdir(parents=True)
        (folder.parent / "config.yaml").write_text("name: x\n")
        evaluated(seed)[0].save(folder / "step-000000005.npz")
    return tmp_path


def test_two_runs_are_compared_by_their_latest_records(work):
    old = work / "runs/a" / EVALUATIONS / "val-3-step-000000004.npz"
    old.write_bytes(b"an older record, which is not read")
    os.utime(old, (0, 0))
    outcome = small.call(work, "evaluate", "a", "b", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert [row["name"] for row in result["scores"]][:2] == ["PQ", "SQ"]
    assert result["records"] == [
        str(work / f"runs/{name}/{EVALUATIONS}/step-000000005.npz") for name in "ab"
    ]
    assert "no evidence" in outcome.err
    assert "A: a (step-000000005)" in outcome.err


def test_two_records_are_compared_by_their_paths(work):
    paths = [f"runs/{name}/{EVALUATIONS}/step-000000005.npz" for name in "ab"]
    assert small.call(work, "evaluate", *paths).code == 0


def test_records_of_other_images_or_classes_are_refused(work):
    record, _ = evaluated(2)
    path = work / "runs/b" / EVALUATIONS / "step-000000005.npz"
    about = record.about | {"names": list("abcdx")}
    renamed = [Image(f"x{image.key}", *image[1:]) for image in record.images]
    for changed, message in (
        (replace(record, images=renamed), "the images differ: 12 and 12 images, of which 0 are"),
        (replace(record, about=about), "the classes differ: e, x"),
        (replace(record, about=record.about | {"data": "g"}), "the images have different truth"),
    ):
        changed.save(path)
        outcome = small.call(work, "evaluate", "a", "b")
        assert outcome.code == 2
        assert message in small.complaint(outcome)


def test_what_cannot_be_compared_is_one_line(work):
    path = work / "runs/b" / EVALUATIONS / "step-000000005.npz"
    path.write_bytes(b"PK")
    outcome = small.call(work, "evaluate", "a", "b")
    assert (outcome.code, "not the record of an evaluation" in small.complaint(outcome)) == (
        3,
        True,
    )
    path.unlink()
    for words, message in (
        (["b"], "the run has no record of an evaluation"),
        (["c"], "no run 'c'"),
        (["d.npz"], "no such record"),
        (["a", "--images", "3"], "two evaluations are compared as they are"),
        (["a", "--on", "slurm"], "--on: two evaluations"),
    ):
        outcome = small.call(work, "evaluate", "a", *words)
        assert outcome.code == 2
        assert message in small.complaint(outcome)
