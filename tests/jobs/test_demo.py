"""A small demo: the files it prints exist, and a second run repeats nothing."""

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from jobs.demo import demo
from pipeline.run.eventlog import EVENTS
from shards.jsonl import rows
from tests.jobs import small

pytestmark = pytest.mark.slow

STEPS = ["trainer.steps=3", "checkpoint.every_steps=3", "evaluation.every_steps=1000"]
SCORES = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A demo of 40 images and 3 steps: its folder, its two outcomes, and its files in between."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    full_train = demo.train

    def train(preset, overrides, **options):
        return full_train(preset, [*overrides, *STEPS], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRAIN_IMAGES", 32)
        patch.setattr(demo, "VAL_IMAGES", 8)
        patch.setattr(demo, "train", train)
        call = partial(small.call, out.parent, "demo", "--out", str(out))
        first = call()
        made = {path: path.read_bytes() for path in (out / "runs").rglob("*.jsonl")}
        times = {path: path.stat().st_mtime_ns for path in (out / "raw").rglob("*.*")}
        times |= {path: path.stat().st_mtime_ns for path in (out / "shards").rglob("*.tar")}
        second = call()
    assert first.code == 0, first.err
    return out, first, second, made, times


def test_the_demo_shows_its_scores(shown):
    out, first, *_ = shown
    table = {line.split()[0]: line.split()[1:] for line in first.out.splitlines() if line.strip()}
    assert len(table["untrained"]) == len(table["trained"]) == len(SCORES)
    scores = json.loads((out / "runs/tiny/evaluations/step-000000003.json").read_text())
    assert table["trained"] == [f"{scores[name]:.1f}" for name in SCORES]
    assert "Traceback" not in first.err


def test_the_files_that_it_prints_exist(shown):
    out, first, *_ = shown
    named = {Path(word.strip(",:")) for word in first.out.split() if word.startswith(str(out))}
    expected = {out / name for name in ("raw", "shards", "runs/tiny", "runs/tiny/pictures")}
    assert expected <= named
    predictions = {out / "predictions"}  # written by the command that the demo suggests
    assert not [path for path in named - predictions if not path.exists()]
    run = out / "runs/tiny"
    Image.open(run / "pictures/step-000000003.png").verify()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["pictures"], summary["position"] > 0) == (["step-000000003.png"], True)


def test_the_demo_trains_two_workers_under_zero_1(shown):
    out, *_ = shown
    (start,) = [row for row in rows(out / "runs/tiny" / EVENTS) if row["event"] == "start"]
    assert (start["world_size"], start["zero_stage"]) == (2, 0)
    assert len(set(start["process_ids"])) == 2
    scored = [
        row["step"] for row in rows(out / "runs/tiny" / EVENTS) if row["event"] == "evaluation"
    ]
    assert scored == [0, 3]


def test_a_second_run_repeats_nothing(shown):
    _, _, second, made, times = shown
    assert second.code == 0, second.err
    for text in ("already painted", "is finished (3 steps)"):
        assert text in second.out
    assert {path: path.read_bytes() for path in made} == made
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_the_next_command_it_suggests_works(shown):
    out, first, *_ = shown
    (line,) = [line for line in first.out.splitlines() if "launch.sh predict" in line]
    command = line.split()[1:]
    outcome = small.call(out.parent, *command)
    assert outcome.code == 0, outcome.err
    assert len(list((out / "predictions").glob("*.png"))) == 8


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    outcome = small.call(tmp_path, "demo", "--out", "file/demo")
    assert outcome.code == 2
    complaint = small.complaint(outcome)
    assert "file/demo: Not a directory; name another folder" in complaint
