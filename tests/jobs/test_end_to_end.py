"""From raw photographs to scores and pictures, with real workers and DeepSpeed at a small size."""

import json
import math
import shutil

import pytest
import xxhash
import yaml
from PIL import Image
from safetensors.torch import load_file

from pipeline.run import eventlog, events, wandb_log
from pipeline.run.eventlog import EVENTS
from pipeline.run.track import METRICS
from shards.format.manifest import Manifest
from shards.jsonl import rows
from tests.jobs import small
from tests.shards.raw import SAMPLE

pytestmark = pytest.mark.slow

TERMS = {
    f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1", "_2")
}
SHORT = 5  # steps; rounding errors grow until they decide a close match
SUMMARY = {
    "PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU",
    "images", "step", "position", "wall_s", "ledger_s", "goodput", "checkpoint", "checkpoints",
    "pictures",
}  # fmt: skip


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """Return a copy of the trained small run in a separate folder, and the outcome of `train`."""
    run, outcome = small.trained(base)
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(run, folder / "runs" / small.NAME, symlinks=True)
    return folder, outcome


@pytest.fixture(scope="module")
def run(trained):
    return trained[0] / "runs" / small.NAME


def of_kind(run, kind):
    return [event for event in rows(run / EVENTS) if event["event"] == kind]


def losses(run):
    """Return the rows of training steps."""
    return [row for row in rows(run / METRICS) if "loss" in row]


def test_train_prints_its_progress(trained):
    _, outcome = trained
    assert "attempt 1: 2 workers, ZeRO 1 on cpu, from scratch" in outcome.out
    assert f"step {small.STEPS}: PQ" in outcome.out
    assert "done: " in outcome.out
    assert "Traceback" not in outcome.err
    assert "error" not in outcome.err.lower()


def test_the_run_folder_holds_what_was_asked_for(run, photographs):
    config = yaml.safe_load((run / "config.yaml").read_text())
    for setting in small.SETTINGS:
        key, _, value = setting.partition("=")
        node = config
        for part in key.split("."):
            node = node[part]
        assert node == yaml.safe_load(value) or float(node) == float(value)
    environment = json.loads((run / "environment.json").read_text())
    fingerprints = {
        name: Manifest.load(photographs / name).fingerprint for name in ("train", "val")
    }
    assert environment["data"] == fingerprints | {"train": [fingerprints["train"]]}
    assert environment["packages"]["torch"].startswith("2.")
    assert not list(run.glob("*.tmp"))


def test_events_tell_the_story(run):
    events = rows(run / EVENTS)
    start, *_, end = events
    assert start["event"] == "start"
    assert (start["world_size"], start["zero_stage"], start["attempt"]) == (2, 1, 1)
    assert len(set(start["process_ids"])) == 2
    assert (start["step"], start["position"], start["checkpoint"]) == (0, 0, None)
    saved = [(event["step"], event["position"]) for event in of_kind(run, "checkpoint")]
    expected = range(0, small.STEPS + 1, small.EVERY)
    assert saved == [(step, step * small.GLOBAL_BATCH) for step in expected]
    assert [event["step"] for event in of_kind(run, "evaluation")] == [small.STEPS]
    assert (end["event"], end["step"]) == ("finish", small.STEPS)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


def test_metrics_have_one_row_a_step(run):
    trained = losses(run)
    assert [row["step"] for row in trained] == list(range(1, small.STEPS + 1))
    for row in trained:
        step = row["step"]
        assert row["position"] == step * small.GLOBAL_BATCH
        assert {name for name in row if name.startswith("loss_")} == TERMS
        assert row["loss"] == pytest.approx(math.fsum(row[name] for name in TERMS), rel=1e-9)
        assert all(row[name] > 0 for name in TERMS)
        warmed = min(1, step / (small.WARMUP + 1))  # linear from lr / (warmup + 1), then flat
        assert row["lr"] == pytest.approx(small.LR * warmed, rel=1e-9)
        assert row["grad_norm"] > 0
        assert row["images_per_s"] == pytest.approx(
            small.GLOBAL_BATCH / row["interval_s"], rel=0.01
        )
    assert sum(row["loss"] for row in trained[-4:]) < sum(row["loss"] for row in trained[:4])
    (scored,) = [row for row in rows(run / METRICS) if "val/PQ" in row]
    assert scored["step"] == small.STEPS


def test_wandb_has_the_same_rows_offline(run):
    (path,) = (run / "wandb").glob("offline-run-*/*.wandb")
    records = [r for r in wandb_log.records(path) if r.WhichOneof("record_type") == "history"]
    history = [
        {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
    ]
    trained = [row for row in history if "train/loss" in row]
    assert [row["train/loss"] for row in trained] == [row["loss"] for row in losses(run)]
    assert [row["trainer/step"] for row in trained] == list(range(1, small.STEPS + 1))


def test_checkpoints_are_whole_and_the_newest_are_kept(run, photographs):
    folders = sorted((run / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == [
        f"step-{step:09d}-a01" for step in (small.STEPS - 4, small.STEPS - 2, small.STEPS)
    ]
    for folder in folders:
        manifest = json.loads((folder / "MANIFEST.json").read_text())
        files = {path.name for path in folder.iterdir()}
        assert files == {*manifest, "MANIFEST.json", "COMMITTED"}
        for name, seen in manifest.items():
            content = (folder / name).read_bytes()
            assert seen["bytes"] == len(content)
            assert seen["xxh3_128"] == xxhash.xxh3_128_hexdigest(content)
    trainer = json.loads((folders[-1] / "trainer_state.json").read_text())
    assert trainer["position"] == small.STEPS * small.GLOBAL_BATCH
    assert trainer["updates"] == small.STEPS
    assert trainer["order"]["fingerprint"] == [Manifest.load(photographs / "train").fingerprint]
    state = load_file(folders[-1] / "state.safetensors")
    moments = {name for name in state if name.startswith("exp_avg.")}
    assert moments
    assert all(state[name].abs().sum() > 0 for name in moments if "conv" in name)


def test_the_summary_has_its_fields(run):
    summary = json.loads((run / "summary.json").read_text())
    scores = json.loads((run / f"evaluations/step-{small.STEPS:09d}.json").read_text())
    assert set(summary) == SUMMARY
    for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU"):
        assert summary[name] == scores[name]
        assert 0 <= summary[name] <= 100
    assert (summary["step"], summary["position"]) == (small.STEPS, 128)
    assert summary["wall_s"] > 0
    history = eventlog.read(run)
    first = next(event for event in history if isinstance(event, events.Start))
    wall = history[-1].time - float(first.launch)
    assert sum(summary["ledger_s"].values()) == pytest.approx(wall, rel=0.01)
    assert summary["ledger_s"]["lost"] == summary["ledger_s"]["stopped"] == 0
    assert all(summary["ledger_s"][kind] > 0 for kind in ("start", "train", "checkpoint"))
    assert 0 < summary["goodput"] < 1
    assert (run / "checkpoints" / summary["checkpoint"]).is_dir()


def test_evaluate_repeats_the_scores_of_the_workers(trained, run):
    """Two ranks that share the images count the same as one process that has them all."""
    path = run / f"evaluations/step-{small.STEPS:09d}.json"
    of_workers = json.loads(path.read_text())
    outcome = small.call(trained[0], "evaluate", small.NAME)
    assert outcome.code == 0, outcome.err
    alone = json.loads(path.read_text())
    assert of_workers["mIoU"] > 0
    for name in SUMMARY & set(alone) - {"step"}:
        assert alone[name] == pytest.approx(of_workers[name], rel=1e-3, abs=1e-3), name
    assert f"step {small.STEPS}, 5 images" in outcome.out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["pictures"] == [f"step-{small.STEPS:09d}.png"]


def test_predict_writes_its_files(trained):
    folder, _ = trained
    command = ["predict", small.NAME, str(SAMPLE / "val2017"), "--out", "seen"]
    outcome = small.call(folder, *command, "--checkpoint", "last")
    assert outcome.code == 0, outcome.err
    stems = sorted(path.stem for path in (SAMPLE / "val2017").iterdir())
    pictures = sorted((folder / "seen").glob("*.png"))
    assert [path.stem for path in pictures] == stems
    for path in pictures:
        assert Image.open(path).size == Image.open(SAMPLE / f"val2017/{path.stem}.jpg").size
    document = json.loads((folder / "seen/panoptic.json").read_text())
    assert [entry["image_id"] for entry in document["annotations"]] == stems


def test_a_finished_run_is_left_alone(trained, run, photographs):
    before = (run / EVENTS).read_bytes()
    outcome = small.call(trained[0], *small.words(photographs))
    assert outcome.code == 0
    assert f"is finished ({small.STEPS} steps); to continue, raise trainer.steps" in outcome.out
    assert (run / EVENTS).read_bytes() == before


@pytest.fixture(scope="module")
def stages(base, photographs, tmp_path_factory):
    """Return runs of the other ZeRO stages; stage 2 takes more steps than the small run."""
    folder = tmp_path_factory.mktemp("stages")

    def train(stage, steps):
        changes = [f"name=zero{stage}", f"zero.stage={stage}", f"trainer.steps={steps}"]
        outcome = small.finish(small.start(folder, *small.words(photographs, *changes)))
        assert outcome.code == 0, outcome.err
        return folder / "runs" / f"zero{stage}"

    return {0: train(0, SHORT), 2: train(2, small.STEPS + 4), 3: train(3, SHORT)}


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_stage_takes_the_same_steps(stage, stages, run):
    """The ZeRO stage changes memory only: losses agree with those of stage 1 to rounding."""
    assert {event["zero_stage"] for event in of_kind(stages[stage], "start")} == {stage}
    ours, theirs = (losses(folder)[:SHORT] for folder in (stages[stage], run))
    for name in ("step", "position", "loss", "grad_norm", "lr"):
        assert [row[name] for row in ours] == pytest.approx(
            [row[name] for row in theirs], rel=1e-4
        ), name


def test_a_run_of_stage_3_is_evaluated(stages):
    outcome = small.call(stages[3].parents[1], "evaluate", stages[3].name)
    assert outcome.code == 0, outcome.err
    assert f"step {SHORT}, 5 images" in outcome.out


def test_a_run_resumes_with_fewer_workers_and_more_steps(trained, run, stages, photographs):
    """One worker instead of two has the same samples, and losses that differ by rounding errors,
    which have grown over so many steps."""
    before = losses(run)
    changes = [f"trainer.steps={small.STEPS + 4}", "scaling.workers=1"]
    outcome = small.finish(small.start(trained[0], *small.words(photographs, *changes)))
    assert outcome.code == 0, outcome.err
    assert f"resuming from the checkpoint of step {small.STEPS}" in outcome.out
    start = of_kind(run, "start")[-1]
    assert (start["world_size"], start["attempt"], start["step"]) == (1, 2, small.STEPS)
    assert start["position"] == small.STEPS * small.GLOBAL_BATCH
    after = losses(run)
    assert after[: small.STEPS] == before
    assert [row["step"] for row in after] == list(range(1, small.STEPS + 5))
    for ours, whole in zip(after[small.STEPS :], losses(stages[2])[small.STEPS :], strict=True):
        assert ours["position"] == whole["position"]
        assert ours["loss"] == pytest.approx(whole["loss"], rel=3e-2)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["position"] == (small.STEPS + 4) * small.GLOBAL_BATCH
