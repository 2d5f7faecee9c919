"""The smallest run that trains on the photographs, and its interruption."""

import dataclasses
import errno
import json
from collections import deque
from pathlib import Path
from typing import Any
from unittest import mock

from model.criterion import CriterionSettings
from model.mask2former import ModelSettings
from model.masked_decoder import MaskedDecoderSettings
from model.pixel_decoder import PixelDecoderSettings
from pipeline.data.settings import DataSettings
from pipeline.run import commit, saver
from pipeline.run.checkpoint import Progress, TrainerState
from pipeline.run.writer import Reply, Writer, handle
from pipeline.settings import (
    BatchSettings,
    CheckpointSettings,
    EvaluationSettings,
    OptimizerSettings,
    RunSettings,
    ScheduleSettings,
    TrackingSettings,
    TrainerSettings,
    WandbSettings,
)
from pipeline.step.step import GlobalBatch, TrainingStep
from pipeline.train import train
from shards.format.taxonomy import Category, Taxonomy

TAXONOMY = Taxonomy("one class", (Category(1, "thing", True, (255, 0, 0)),))
MODEL = ModelSettings(
    backbone="resnet",
    backbone_config={
        "layer_type": "basic",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
    },
    norm="group",
    queries=12,
    dim=16,
    pixel_decoder=PixelDecoderSettings(layers=1, heads=2, feedforward=16),
    masked_decoder=MaskedDecoderSettings(layers=2, heads=2, feedforward=16),
)


def smallest(sets: Path, **changes) -> RunSettings:
    """Return settings of four steps of eight crops of 64 pixels, with changed fields."""
    plain = RunSettings(
        name="smallest",
        seed=3,
        data=DataSettings(
            train=str(sets / "train"),
            val=str(sets / "val"),
            crop=64,
            scale=[0.5, 1.5],
            loader_workers=0,
        ),
        batch=BatchSettings(size=8, micro=2),
        model=MODEL,
        criterion=CriterionSettings(points=64),
        optimizer=OptimizerSettings(lr=1e-3, backbone_lr_multiplier=0.5, clip=1.0),
        schedule=ScheduleSettings(milestones=[], warmup_steps=2),
        trainer=TrainerSettings(steps=4, log_every=1),
        checkpoint=CheckpointSettings(every_steps=2, keep=3),
        evaluation=EvaluationSettings(every_steps=1000, images=1, short=64, long=64),
        tracking=TrackingSettings(WandbSettings(mode="disabled")),
    )
    return dataclasses.replace(plain, **changes)


def trainer_state(step: int, taxonomy: Taxonomy = TAXONOMY) -> TrainerState:
    """Return the state of a trainer that has taken `step` steps."""
    return TrainerState(Progress(step, 8 * step, step), {}, 1, 1, taxonomy, {})


class Killed(BaseException):
    """Stands for the death of the worker."""


class AtOnce(Writer):
    """Stands for the process that writes checkpoints: it does at once what it is asked for."""

    def __init__(self, memory: int):
        self._memory, self._answers = memory, deque()

    def _ask(self, request: dict[str, Any]) -> None:
        self._answers.append(handle(json.loads(json.dumps(request)), self._memory))

    def reply(self, *, wait: bool) -> Reply:
        answer = json.loads(json.dumps(self._answers.popleft()))
        return Reply(answer["seconds"], OSError(*answer["error"]) if answer["error"] else None)

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        pass


def attempt(settings: RunSettings, folder: Path) -> str:
    """Train, and return the text of what was raised, otherwise "done"."""
    folder.mkdir(exist_ok=True)
    try:
        train(settings, folder)
    except (Exception, Killed) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def interrupted(settings: RunSettings, folder: Path) -> list[str]:
    """Die in step 4, after the checkpoint of step 2 and the metrics of step 3, then resume.

    Returns:
        The outcomes of both attempts.
    """
    receive, steps = TrainingStep.receive, []

    def until_fourth(self: TrainingStep, *args: Any) -> GlobalBatch:
        if len(steps) == 3:
            raise Killed
        steps.append(None)
        return receive(self, *args)

    with mock.patch.object(TrainingStep, "receive", until_fourth):
        first = attempt(settings, folder)
    return [first, attempt(settings, folder)]


def on_a_full_disk(settings: RunSettings, folder: Path, failing: int) -> str:
    """Train while the disk is full at the n-th checkpoint."""
    write, calls = commit.write, []

    def full(*args):
        calls.append(args)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    with mock.patch.object(saver, "Writer", AtOnce), mock.patch.object(commit, "write", full):
        return attempt(settings, folder)


def with_bad_gradients(settings: RunSettings, folder: Path, bad: range) -> str:
    """Train with gradients of NaN in the steps of `bad`, counted from 0; losses stay finite."""
    losses = TrainingStep.losses

    def poisoned(self, batch, totals):
        terms = losses(self, batch, totals)
        if batch.positions[0] // settings.batch.size in bad:
            terms["loss_ce"].register_hook(lambda gradient: gradient * float("nan"))
        return terms

    with mock.patch.object(TrainingStep, "losses", poisoned):
        return attempt(settings, folder)
