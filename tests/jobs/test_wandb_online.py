"""W&B in its online mode against a local server: one run through kills, and what it shows."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeline.run import checkpoint, wandb_run
from pipeline.run.eventlog import read_kind
from pipeline.run.events import Start, Warned
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.phases import Phases
from pipeline.run.track import METRICS, Tracker
from pipeline.settings import WandbSettings
from shards.jsonl import rows
from tests.jobs import small
from tests.wandb_stub import ENTITY, KEY, StubRun, WandbStub

pytestmark = pytest.mark.slow

STEPS, SAVED_EVERY, SCORED_EVERY = 140, 40, 70
VICTIMS = ("worker", "driver", "driver")
SETTINGS = (
    *("tracking.wandb.mode=online", f"trainer.steps={STEPS}", "evaluation.images=3"),
    *(f"checkpoint.every_steps={SAVED_EVERY}", f"evaluation.every_steps={SCORED_EVERY}"),
)
SECRET = "planted5ecret"


@pytest.fixture(scope="module")
def stub():
    with WandbStub() as server:
        yield server


def wait_until(happened: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Wait until something has happened; fail if the process ends or time runs out before."""
    until = time.monotonic() + small.TIMEOUT_S
    while not happened():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < until, "nothing happened in time"
        time.sleep(0.05)


def is_past(run: Path, stub: WandbStub, step: int) -> bool:
    """Return whether a checkpoint of `step` or later exists, and W&B has a later step than it."""
    saved = checkpoint.committed(run / CHECKPOINTS)
    newest = checkpoint.step_of(saved[0]) if saved else STEPS
    return newest >= step and any(known.last_step > newest for known in stub.runs.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photographs, stub) -> Path:
    """A run whose worker was killed once, and its command twice, each past a checkpoint."""
    folder = tmp_path_factory.mktemp("online")
    run = folder / "runs" / small.NAME
    command = small.words(photographs, *SETTINGS)
    environment = stub.variables | {"AWS_SECRET_ACCESS_KEY": SECRET}
    driver = small.start(folder, *command, **environment)
    for number, victim in enumerate(VICTIMS):
        wait_until(lambda number=number: is_past(run, stub, number * SAVED_EVERY), driver)
        if victim == "worker":
            os.kill(read_kind(run, Start)[-1].process_ids[0], signal.SIGKILL)
        else:
            driver.kill()
            driver.communicate()
            driver = small.start(folder, *command, **environment)
    outcome = small.finish(driver)
    assert outcome.code == 0, outcome.err
    assert read_kind(run, Warned) == []
    return folder


@pytest.fixture
def run(folder, stub) -> StubRun:
    """The one run that W&B has."""
    (found,) = stub.runs.values()
    return found


def test_a_run_killed_three_times_is_one_run_with_each_step_once(folder, run):
    starts = read_kind(folder / "runs" / small.NAME, Start)
    assert [start.attempt for start in starts] == [1, 2, 3, 4]
    assert starts[-1].step >= 2 * SAVED_EVERY  # W&B had later steps at each kill
    assert run.steps == list(range(1, STEPS + 1))
    assert run.exits == [0]


def test_wandb_has_the_numbers_of_the_run(folder, run):
    kept = [row for row in rows(folder / "runs" / small.NAME / METRICS) if "loss" in row]
    assert [row["trainer/step"] for row in run.rows] == [row["step"] for row in kept]
    assert [row["train/loss"] for row in run.rows] == [row["loss"] for row in kept]
    last = run.rows[-1]
    layers = {f"layers/loss_{kind}_{n}" for kind in ("ce", "mask", "dice") for n in range(3)}
    assert layers | {"train/loss_ce", "train/grad_norm", "lr/backbone", "lr/head"} <= last.keys()
    assert {"speed/images_per_s", "speed/data_wait_s", "speed/step_s"} <= last.keys()
    assert {"speed/images_per_s_per_worker", "trainer/skipped_steps"} <= last.keys()
    assert {"trainer/world_size", "trainer/attempt", "trainer/damaged_samples"} <= last.keys()
    assert any(name.startswith("hosts/") and name.endswith(".memory_gib") for name in last)
    scored = [row["trainer/step"] for row in run.rows if "val/PQ" in row]
    assert scored == [SCORED_EVERY, STEPS]


def test_wandb_shows_classes_and_the_same_pictures_each_time(run, stub):
    tables = [a for a in stub.artifacts.values() if a.type == "run_table" and a.aliases]
    assert tables
    shown = [row["val/pictures"] for row in run.rows if "val/pictures" in row]
    assert [pictures["count"] for pictures in shown] == [3, 3]
    assert shown[0]["captions"] == shown[1]["captions"]
    last = shown[-1]  # a kill can hit an evaluation before its pictures are sent
    for name, masks in zip(last["filenames"], last["all_masks"], strict=True):
        size = Image.open(io.BytesIO(run.uploads[name])).size
        assert max(size) <= 512
        assert masks.keys() == {"truth", "prediction"}
        for mask in masks.values():
            assert Image.open(io.BytesIO(run.uploads[mask["path"]])).size == size


def test_checkpoints_and_data_are_artifacts_by_reference(folder, run, stub):
    models = [a for a in stub.artifacts.values() if a.type == "model"]
    assert {alias for a in models for alias in a.aliases} >= {f"step-{SCORED_EVERY}", "best"}
    for model in models:
        references = [entry["ref"] for entry in model.manifest.values()]
        assert any(ref.endswith("/COMMITTED") for ref in references)
        assert all(ref.startswith(f"file://{folder}/runs/") for ref in references)
        assert model.files == {}  # nothing was copied
        assert "PQ" in model.metadata
    (data,) = [a for a in stub.artifacts.values() if a.type == "dataset"]
    assert data.used_by
    assert next(iter(data.manifest.values()))["ref"].endswith("/train/manifest.json")


def test_restarts_are_alerts(stub):
    titles = [title for title, _ in stub.alerts]
    assert titles == [f"{small.NAME}: start"] * len(VICTIMS)


def test_wandb_has_the_config_and_no_secret_is_anywhere(folder, run):
    assert run.config["optimizer"]["lr"] == small.LR
    assert run.config["world_size"] == 2
    sent = [*run.uploads.values(), str(run.config).encode(), *map(str.encode, run.system)]
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    for secret in (SECRET.encode(), KEY.encode()):
        assert not any(secret in content for content in sent + written)


def online(folder: Path, step: int = 0) -> Tracker:
    """Return the metrics of a run that resumes from a step, with W&B online."""
    settings = WandbSettings(mode="online")
    tracker = Tracker(folder, settings, active=True, name="n", run_id="n-1", config={})
    tracker.open(step, {}, Phases())
    return tracker


def test_an_outage_loses_no_row(tmp_path, monkeypatch):
    for limit in ("INIT_TIMEOUT_S", "FINISH_TIMEOUT_S", "CLOSE_S"):
        monkeypatch.setattr(wandb_run, limit, small.TIMEOUT_S)  # a busy machine is slow
    with WandbStub() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        tracker = online(tmp_path)
        for step in range(1, 6):
            tracker.metrics(step, {"loss": 1.0})
        wait_until(lambda: [run.last_step for run in server.runs.values()] == [4])
        server.is_down = True
        for step in range(6, 11):
            tracker.metrics(step, {"loss": 1.0})
        wait_until(lambda: server.refused > 0)
        server.is_down = False
        tracker.finish()
        assert server.runs["n-1"].steps == list(range(1, 11))


@pytest.mark.parametrize("fault", ["is_down", "wrong_key"])
def test_a_server_that_refuses_a_start_gets_the_rows_at_the_next_one(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT_S", 3)
    with WandbStub() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        setattr(server, fault, True)
        tracker = online(tmp_path)
        tracker.metrics(1, {"loss": 1.0})
        with pytest.warns(UserWarning, match="W&B is off: .*; metrics are kept offline"):
            tracker.finish()
        setattr(server, fault, False)
        again = online(tmp_path, step=1)
        again.metrics(2, {"loss": 0.5})
        again.finish()
        assert server.runs["n-1"].steps == [1, 2]


def test_an_agent_runs_the_sweep_of_the_docs(tmp_path, photographs):
    """`wandb agent` gets two trials of docs/sweep.yaml from the local server."""
    text = (small.ROOT / "docs" / "sweep.yaml").read_text()
    sweep = yaml.safe_load(text)
    launch = sweep["command"][2]
    assert launch.startswith("exec ./launch.sh train tiny ")
    sweep["command"][2] = launch.replace("./launch.sh", f"{sys.executable} -P -m jobs")
    fixed = {
        **{f"data.{name}": str(photographs / name) for name in ("train", "val")},
        **{"trainer.steps": 2, "evaluation.images": 1, "scaling.workers": 1, "batch.size": 4},
        "tracking.wandb.mode": sweep["parameters"]["tracking.wandb.mode"]["value"],
    }
    with WandbStub() as server:
        server.sweep_yaml = yaml.safe_dump(sweep)
        server.trials = {
            "trial1": {"optimizer.lr": 0.0005, "criterion.no_object_weight": 0.05, **fixed},
            "trial2": {"optimizer.lr": 1e-05, "criterion.no_object_weight": 0.2, **fixed},
        }
        assert server.trials["trial1"].keys() >= sweep["parameters"].keys()
        agent = subprocess.Popen(
            [sys.executable, "-m", "wandb", "agent", f"{ENTITY}/{sweep['project']}/tuning"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(small.ROOT)} | server.variables,
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, errors = agent.communicate(timeout=2 * small.TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(agent.pid, signal.SIGTERM)
    assert agent.returncode == 0, errors
    assert server.runs.keys() == server.trials.keys(), errors
    for name, run in server.runs.items():
        assert (run.sweep, run.names[-1], run.exits) == ("tuning", f"sweep-{name}", [0])
        assert run.config["optimizer"]["lr"] == server.trials[name]["optimizer.lr"]
        assert "val/PQ" in run.summary
