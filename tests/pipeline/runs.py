"""The smallest run that trains on the photographs, and what interrupts it."""

import dataclasses
from pathlib import Path
from unittest import mock

from model.criterion import CriterionSettings
from model.mask2former import ModelSettings
from model.masked_decoder import MaskedDecoderSettings
from model.pixel_decoder import PixelDecoderSettings
from pipeline.data.stream import DataSettings
from pipeline.run.checkpoint import CheckpointSettings
from pipeline.run.track import TrackingSettings, WandbSettings
from pipeline.score.evaluate import EvaluationSettings
from pipeline.settings import BatchSettings, RunSettings, TrainerSettings
from pipeline.step.optimizer import OptimizerSettings
from pipeline.step.schedule import ScheduleSettings
from pipeline.train import Worker, train

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
    """Four steps of eight crops of 64 pixels; `changes` are fields of `RunSettings`."""
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


class Killed(BaseException):
    """The worker dies here."""


def attempt(settings: RunSettings, folder: Path) -> str:
    """Train; what was raised, as text."""
    folder.mkdir(exist_ok=True)
    try:
        train(settings, folder)
    except (Exception, Killed) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def interrupted(settings: RunSettings, folder: Path) -> list[str]:
    """Die in the fourth step, after a checkpoint at the second and metrics of the third."""
    one_step = Worker._one_step

    def until_fourth(self, batches):
        if self.step == 3:
            raise Killed
        return one_step(self, batches)

    with mock.patch.object(Worker, "_one_step", until_fourth):
        first = attempt(settings, folder)
    return [first, attempt(settings, folder)]
