"""Metrics and events in the run folder and in W&B, whose failures never stop the run."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image

from pipeline.run import track, wandb_log, wandb_run
from pipeline.run.eventlog import EVENTS
from pipeline.run.events import Checkpoint, Damage, Start, Warned
from pipeline.run.phases import Phases
from pipeline.run.track import METRICS, Tracker
from pipeline.run.wandb_media import Media
from pipeline.score.picture import Picture
from pipeline.settings import WandbSettings
from shards.jsonl import append, keep_rows, rows

OFF = WandbSettings(mode="disabled")


def tracker(folder: Path, settings: WandbSettings = OFF, active: bool = True) -> Tracker:
    return Tracker(
        folder, settings, active=active, name="small", run_id="small-00c0ffee",
        config={"optimizer": {"lr": 0.25}, "world_size": 2},
    )  # fmt: skip


def plain_rows(path: Path) -> list[dict]:
    """Parse strict JSON, without NaN and Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_metrics_are_one_row_a_step(tmp_path):
    tracked = tracker(tmp_path)
    tracked.metrics(10, {"loss": 2.5, "lr": 1e-4})
    tracked.metrics(20, {"loss": 2.25, "lr": 1e-4})
    first, second = plain_rows(tmp_path / METRICS)
    assert first.items() >= {"step": 10, "loss": 2.5, "lr": 1e-4}.items()
    assert second.items() >= {"step": 20, "loss": 2.25, "lr": 1e-4}.items()
    assert 0 <= second["time"] - first["time"] < 10
    assert rows(tmp_path / METRICS) == [first, second]


def test_what_is_not_finite_is_null(tmp_path):
    values = {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 0.0}
    tracker(tmp_path).metrics(1, values)
    (row,) = plain_rows(tmp_path / METRICS)
    assert [row[name] for name in "abcd"] == [None, None, None, 0.0]


def test_events_carry_their_fields(tmp_path):
    tracked = tracker(tmp_path)
    tracked.event(Start(world_size=2, process_ids=[1, 2], step=0))
    tracked.event(Checkpoint(step=1, position=8, folder="step-1"))
    start, saved = plain_rows(tmp_path / EVENTS)
    assert start.items() >= {"event": "start", "world_size": 2, "process_ids": [1, 2]}.items()
    assert saved.items() >= {"event": "checkpoint", "name": "step-1"}.items()


def test_an_inactive_tracker_writes_nothing(tmp_path):
    tracked = tracker(tmp_path, WandbSettings(), active=False)
    tracked.metrics(1, {"loss": 1.0})
    tracked.event(Start(world_size=1, step=0))
    tracked.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_disabled_tracker_leaves_wandb_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("wandb.init was called"))
    tracked = tracker(tmp_path)
    tracked.metrics(1, {"loss": 1.0})
    tracked.finish()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_rows_of_no_file_are_none(tmp_path):
    assert rows(tmp_path / METRICS) == []


@pytest.mark.parametrize("kept", [1, 5, 12, 13])
def test_a_line_cut_by_a_crash_is_left_out_and_harms_no_other(tmp_path, kept):
    path = tmp_path / EVENTS
    append(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"event": "x"}'[:kept])
    assert rows(path) == [{"n": 1}]
    append(path, {"n": 2})  # a restarted worker appends to the same file
    append(path, {"n": 3})
    assert rows(path) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_keep_rows_drops_the_rows_that_will_be_written_again(tmp_path):
    tracked = tracker(tmp_path)
    for step in (1, 2, 3, 4):
        tracked.metrics(step, {"loss": float(step)})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "los')
    keep_rows(tmp_path / METRICS, track.FIELDS, lambda row: row["step"] <= 2)
    assert [row["step"] for row in plain_rows(tmp_path / METRICS)] == [1, 2]
    tracked.metrics(3, {"loss": 0.5})
    assert [(r["step"], r["loss"]) for r in rows(tmp_path / METRICS)] == [(1, 1), (2, 2), (3, 0.5)]
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def whole_run(folder: Path, mode: str = "offline") -> None:
    tracked = tracker(folder, WandbSettings(mode=mode))
    tracked.open(0, {}, Phases())
    tracked.metrics(1, {"loss": 1.0})
    tracked.metrics(2, {"loss": 0.5})
    tracked.finish()


class FakeRun:
    """A run of W&B in which one method fails in one mode."""

    starting_step = 0

    def __init__(self, mode: str, failing: str):
        self.mode, self.failing = mode, failing
        self.rows: list[dict] = []
        self.alerts: list[tuple[str, str]] = []
        self.exit_code: int | None = None

    def define_metric(self, *_, **__): ...

    def log(self, values: dict, step: int, commit: bool) -> None:
        self.fail_in("log")
        assert commit
        assert values["trainer/step"] == step
        self.rows.append(values)

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def finish(self, exit_code: int) -> None:
        self.fail_in("finish")
        self.exit_code = exit_code

    def log_artifact(self, *_, **__) -> None:
        self.fail_in("artifact")

    def fail_in(self, method: str) -> None:
        if self.failing == f"{self.mode} {method}":
            raise RuntimeError("the server is\non fire")


@pytest.fixture
def fake(monkeypatch):
    """Replace `wandb.init`; return a function that sets what fails and returns the opened runs."""

    def install(failing: str = "") -> list[FakeRun]:
        opened: list[FakeRun] = []

        def init(*, mode: str, **_) -> FakeRun:
            run = FakeRun(mode, failing)
            run.fail_in("init")
            opened.append(run)
            return run

        monkeypatch.setattr(wandb, "init", init)
        return opened

    return install


@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_a_failing_wandb_is_only_a_warning(tmp_path, fake, method):
    fake(f"offline {method}")
    text = "W&B is off: the server is on fire; metrics are kept in metrics.jsonl alone"
    with pytest.warns(UserWarning, match=text) as warned:
        whole_run(tmp_path)
    assert len(warned) == 1  # given up after the first failure
    assert [row["step"] for row in rows(tmp_path / METRICS)] == [1, 2]


@pytest.mark.parametrize(
    ("method", "modes"), [("init", ["offline"]), ("log", ["online", "offline"])]
)
def test_a_failing_server_is_replaced_by_an_offline_run(tmp_path, fake, method, modes):
    opened = fake(f"online {method}")
    with pytest.warns(UserWarning, match="W&B is off: .* on fire; metrics are kept offline"):
        whole_run(tmp_path, "online")
    assert [run.mode for run in opened] == modes
    assert [row["train/loss"] for row in opened[-1].rows] == [1.0, 0.5]


def test_warnings_of_every_worker_are_alerts_in_wandb(tmp_path, fake):
    opened = fake()
    tracked = tracker(tmp_path, WandbSettings())
    tracked.open(0, {}, Phases())
    append(tmp_path / EVENTS, Warned(rank=1, category="UserWarning", text="slow").to_json())
    tracked.event(Damage(text="checkpoint step-1 is skipped"))
    tracked.event(Start(world_size=2, step=0))
    tracked.event(Start(attempt=2, world_size=2, step=1, checkpoint="step-1"))
    tracked.metrics(1, {"loss": 1.0})
    tracked.finish()
    assert opened[0].alerts == [
        ("small: warning", "warning (worker 1): slow"),
        ("small: damage", "checkpoint step-1 is skipped"),
        ("small: start", "attempt 2: 2 workers, ZeRO 0 on , from step-1"),
    ]


def test_wandb_groups_the_metrics(tmp_path, fake):
    opened = fake()
    tracked = tracker(tmp_path, WandbSettings())
    tracked.open(0, {}, Phases())
    tracked.metrics(
        1, {"loss_ce": 1.0, "loss_ce_0": 2.0, "step_s": 0.5, "attempt": 1, "lr/head": 3}
    )
    tracked.finish()
    assert opened[0].rows == [{
        "trainer/step": 1, "train/loss_ce": 1.0, "layers/loss_ce_0": 2.0, "speed/step_s": 0.5,
        "trainer/attempt": 1, "lr/head": 3,
    }]  # fmt: skip


def test_scores_join_the_row_of_their_step(tmp_path, fake):
    opened = fake()
    tracked = tracker(tmp_path, WandbSettings())
    tracked.open(0, {}, Phases())
    tracked.metrics(2, {"loss": 1.0})
    tracked.metrics(2, {"val/PQ": 50.0})
    tracked.metrics(3, {"loss": 0.5})
    tracked.finish(
        before=3, error="the disk is full"
    )  # the scores of step 3 may follow after a restart
    assert opened[0].rows == [{"trainer/step": 2, "train/loss": 1.0, "val/PQ": 50.0}]
    assert opened[0].exit_code == 1
    assert opened[0].alerts == [("small: failure", "the disk is full")]


def test_wandb_gets_the_earlier_rows_that_it_lacks(tmp_path, fake, monkeypatch):
    tracked = tracker(tmp_path)
    for step in (1, 2, 3, 4, 5):
        tracked.metrics(step, {"loss": float(step)})
    opened = fake()
    monkeypatch.setattr(FakeRun, "starting_step", 3)
    again = tracker(tmp_path, WandbSettings(mode="online"))
    again.open(4, {}, Phases())  # the metrics of step 5 are past the checkpoint
    again.metrics(5, {"loss": 5.5})
    again.finish()
    assert [(row["trainer/step"], row["train/loss"]) for row in opened[0].rows] == [
        (3, 3), (4, 4), (5, 5.5),
    ]  # fmt: skip


def test_an_extra_that_fails_leaves_the_run_online(tmp_path, fake):
    opened = fake("online artifact")
    (tmp_path / "step-1").mkdir()
    tracked = tracker(tmp_path, WandbSettings(mode="online"))
    tracked.open(0, {}, Phases())
    tracked.checkpoint(tmp_path / "step-1", 1, {"PQ": 50.0}, best=True)
    tracked.metrics(2, {"loss": 1.0})
    with pytest.warns(UserWarning, match="W&B lacks the checkpoint step-1: the server is on fire"):
        tracked.finish()
    assert [run.mode for run in opened] == ["online"]
    assert len(opened[0].rows) == 1


def test_a_stall_is_one_alert(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(wandb_run, "STALL_S", -1)
    monkeypatch.setattr(wandb_run, "WATCH_S", 0.01)
    opened = fake()
    tracked = tracker(tmp_path, WandbSettings())
    tracked.open(0, {}, Phases())
    time.sleep(0.3)
    tracked.finish()
    ((title, _),) = opened[0].alerts
    assert title == "small: stalled"


def test_a_wandb_that_hangs_holds_nothing_up(tmp_path, monkeypatch):
    hangs, released = threading.Event(), threading.Event()

    def init(**_):
        hangs.set()
        released.wait()
        raise RuntimeError("too late")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_run, "CLOSE_S", 0.1)
    whole_run(tmp_path, "offline")
    assert hangs.is_set()
    assert [row["step"] for row in rows(tmp_path / METRICS)] == [1, 2]
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "wandb"]
    released.set()
    with pytest.warns(UserWarning, match="too late"):
        thread.join()


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("s3://bucket/coco", "s3://bucket/coco"),
        ("https://me:secret@host/coco?X-Amz-Signature=secret", "https://host/coco"),
        ({"data": {"train": ["http://secret@host/a"]}}, {"data": {"train": ["http://host/a"]}}),
        ("me@home?", "me@home?"),
        (None, None),
    ],
)
def test_locations_have_no_secrets_in_wandb(value, public):
    assert track.without_secrets(value) == public


@pytest.mark.slow
def test_an_unreachable_server_gives_a_real_offline_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT_S", 2)
    tracked = tracker(tmp_path, WandbSettings(mode="online"))
    tracked.open(0, {}, Phases())
    tracked.metrics(1, {"loss": 0.5})
    with pytest.warns(UserWarning, match="W&B is off: .*; metrics are kept offline"):
        tracked.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert [row["train/loss"] for row in history(path, 1)] == [0.5]


def history(path: Path, count: int) -> list[dict]:
    """Wait until `count` rows were logged, by the process of W&B, and return them."""
    deadline = time.monotonic() + 20
    while len(logged := history_now(path)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return logged


def history_now(path: Path) -> list[dict]:
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json)
         for item in record.history.item}
        for record in wandb_log.records(path) if record.WhichOneof("record_type") == "history"
    ]  # fmt: skip


def test_wandb_offline_really_writes_the_rows(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    tracked = tracker(tmp_path, WandbSettings(mode="offline", project="painted"))
    tracked.open(0, {}, Phases())
    for step in (10, 20, 30):
        tracked.metrics(step, {"loss": 1 / step, "val/PQ": float("nan")})
    tracked.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    logged = [
        {name: value for name, value in row.items() if not name.startswith("_")}
        for row in history(path, 3)
    ]
    assert logged == [
        {"trainer/step": step, "train/loss": 1 / step, "val/PQ": None} for step in (10, 20, 30)
    ]
    (run,) = [r.run for r in wandb_log.records(path) if r.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.display_name, run.project) == ("small-00c0ffee", "small", "painted")
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config.items() >= {"optimizer": {"lr": 0.25}, "world_size": 2}.items()
    assert wandb_log.last_step(tmp_path, "small-00c0ffee") == 30
    assert wandb_log.last_step(tmp_path, "small-00c0ffe") == -1
    cut = path.read_bytes()[:-200]  # as a crash may leave it
    path.write_bytes(cut)
    assert wandb_log.last_step(tmp_path, "small-00c0ffee") <= 30


def test_offline_runs_of_restarts_hold_each_step_once(tmp_path):
    """The second start repeats the steps since its checkpoint, as after `kill -9`."""
    first = tracker(tmp_path, WandbSettings())
    first.open(0, {}, Phases())
    for step in (1, 2, 3, 4):
        first.metrics(step, {"loss": float(step)})
    first.finish(before=4)
    keep_rows(tmp_path / METRICS, track.FIELDS, lambda row: row["step"] <= 2)
    second = tracker(tmp_path, WandbSettings())
    second.open(2, {}, Phases())
    for step in (3, 4, 5):
        second.metrics(step, {"loss": float(step)})
    second.finish()
    runs = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    steps = [[row["trainer/step"] for row in history(path, 2)] for path in runs]
    assert sorted(steps) == [[1, 2, 3], [4, 5]]


def test_an_evaluation_has_a_table_and_pictures(tmp_path):
    tracked = tracker(tmp_path, WandbSettings())
    tracked.open(0, {}, Phases())
    image = np.zeros((8, 8, 3), np.uint8)
    truth = np.arange(64).reshape(8, 8) * 8  # classes above 254 share one value
    picture = Picture("cat", image, truth, np.zeros((8, 8), int))
    classes = [{"name": f"c{n}", "PQ": float(n)} for n in range(600)]
    tracked.metrics(1, {"val/PQ": 5.0}, Media(classes, [picture]))
    tracked.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    (row,) = history(path, 1)
    assert row["val/classes.nrows"] == 600
    assert row["val/pictures.count"] == 1
    masks = sorted(tmp_path.glob("wandb/offline-run-*/files/media/images/mask/**/*.png"))
    values = [np.unique(np.asarray(Image.open(mask))).tolist() for mask in masks]
    assert sorted(values) == [[0], [*range(0, 255, 8), 255]]
