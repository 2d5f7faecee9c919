"""Complete jobs of minimal size: a network of 16 channels, images of 64 pixels, 16 steps."""

import contextlib
import functools
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from safetensors.torch import load_file

from jobs import config as configs
from jobs.__main__ import main
from jobs.config import Config
from model.mask2former import Mask2Former
from pipeline.data.store import Store
from pipeline.run import checkpoint
from pipeline.run.checkpoint import Progress, TrainerState
from pipeline.run.folder import CHECKPOINTS
from shards.build.build import build
from shards.files import write_json
from tests.shards.raw import SAMPLE

ROOT = Path(__file__).parents[2]
NAME, STEPS, GLOBAL_BATCH, EVERY, LR, WARMUP = "small", 16, 8, 2, 1e-3, 4
TIMEOUT_S = 300
# Every setting that matters is here, so that tuning the preset does not change the tests.
# Thresholds of 0 let an untrained network predict segments.
SETTINGS = (
    f"name={NAME}",
    "data.crop=64",
    "data.augment=lsj",
    "data.scale=[0.5,1.5]",
    "data.loader_workers=0",
    f"batch.size={GLOBAL_BATCH}",
    "batch.micro=2",
    "model.backbone=resnet",
    "model.backbone_config.layer_type=basic",
    "model.backbone_config.embedding_size=8",
    "model.backbone_config.hidden_sizes=[8,8,16,16]",
    "model.backbone_config.depths=[1,1,1,1]",
    "model.norm=group",
    "model.dim=16",
    "model.queries=12",
    "model.pixel_decoder.layers=1",
    "model.pixel_decoder.heads=2",
    "model.pixel_decoder.feedforward=16",
    "model.masked_decoder.layers=3",
    "model.masked_decoder.heads=2",
    "model.masked_decoder.feedforward=16",
    "criterion.points=64",
    "criterion.no_object_weight=0.001",
    f"optimizer.lr={LR}",
    "schedule.name=step",
    "schedule.milestones=[]",
    f"schedule.warmup_steps={WARMUP}",
    f"trainer.steps={STEPS}",
    "trainer.log_every=1",
    "zero.stage=1",
    f"checkpoint.every_steps={EVERY}",
    "checkpoint.keep=3",
    "evaluation.every_steps=1000",
    "evaluation.short=64",
    "evaluation.long=96",
    "evaluation.segment.object_threshold=0",
    "evaluation.segment.overlap_threshold=0",
    "evaluation.segment.detections=20",
    "tracking.wandb.mode=offline",
    "scaling.workers=2",
    "scaling.gpu=false",
)


class Outcome(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def words(shards: Path, *changes: str) -> list[str]:
    """Return the command line that trains the small run on `shards`, with changed settings."""
    sets = [f"data.{name}={shards / name}" for name in ("train", "val")]
    return ["train", "tiny", *sets, *SETTINGS, *changes]


def config(shards: Path, *changes: str) -> Config:
    """Return the config of the small run on `shards`, with changed settings."""
    _, preset, *overrides = words(shards, *changes)
    return configs.load(preset, overrides)


def call(folder: Path, *command: str) -> Outcome:
    """Run `python -m jobs COMMAND…` in `folder`, in this process."""
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        mock.patch.object(sys, "argv", ["jobs", *command]),
    ):
        code = main()
    return Outcome(code, out.getvalue(), err.getvalue())


def start(
    folder: Path, *command: str, start_new_session: bool = False, **variables: str
) -> subprocess.Popen:
    """Start `python -m jobs COMMAND…` in `folder`, in a new process, with more variables."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *command],
        cwd=folder,
        env=environment(**variables),
        start_new_session=start_new_session,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a new process that runs the project, with more variables."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables


def finish(process: subprocess.Popen) -> Outcome:
    """Wait for a started command; kill it after TIMEOUT_S seconds."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Outcome(process.returncode, out, err)


def complaint(outcome: Outcome) -> str:
    """Return the one line that a failed command printed on stderr."""
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    return line


def last_state(run: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Return the weights and moments in the last checkpoint of a run that has taken all steps."""
    (path,) = run.glob(f"{CHECKPOINTS}/step-{steps:09d}-a*/{checkpoint.STATE}")
    return load_file(path)


def assert_same_state(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Compare the weights and moments of two runs, to the bit."""
    assert ours.keys() == theirs.keys()
    assert sum(name.startswith("exp_avg_sq.") for name in ours) > 50
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@functools.cache
def photographs(base: Path) -> Path:
    """Return the CC BY sample of COCO as shard sets, built once below pytest's folder `base`."""
    out = base / "job-photographs"
    build("coco", SAMPLE, out, jobs=1, shards=2, report=lambda _: None)
    return out


@functools.cache
def trained(base: Path) -> tuple[Path, Outcome]:
    """Return the folder of the small run, trained once without interruption, and the outcome."""
    folder = base / "job-uninterrupted"
    folder.mkdir()
    outcome = finish(start(folder, *words(photographs(base))))
    assert outcome.code == 0, outcome.err
    return folder / "runs" / NAME, outcome


def untrained(folder: Path, shards: Path, *changes: str) -> Path:
    """Return the folder of a small run as it is after its first checkpoint, written without Ray."""
    settings = config(shards, *changes)
    run = folder / "runs" / settings.name
    run.mkdir(parents=True)
    store = Store(settings.data.train[0])
    fingerprints = {name: Store(shards / name).manifest.fingerprint for name in ("train", "val")}
    write_json(run / "environment.json", {"data": fingerprints})
    configs.save(settings, run / "config.yaml")
    torch.manual_seed(0)
    model = Mask2Former(settings.model, len(store.manifest.taxonomy))
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    trainer = TrainerState(Progress(), {}, 1, 1, store.manifest.taxonomy, {})
    checkpoint.save(run / CHECKPOINTS / checkpoint.name_of(0, 1), state, trainer)
    return run
