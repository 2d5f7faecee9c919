"""The batches that `replay` draws are those of training to the bit."""

import dataclasses
import itertools
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.data.batch import Batch
from pipeline.data.split import BatchSplit
from pipeline.data.stream import train_sets
from pipeline.pictures.replay import MAX_SIDE, batches_of_step, pictures
from pipeline.settings import RunSettings, TrainerSettings
from pipeline.step.step import TrainingStep
from pipeline.train import train
from tests import distributed
from tests.pipeline.data.test_stages import HERE
from tests.pipeline.runs import smallest


def settings_of(sets: Path) -> RunSettings:
    plain = smallest(sets)
    data = dataclasses.replace(plain.data, stages=[f"{HERE}:darken"], loader_workers=1)
    return dataclasses.replace(plain, data=data, trainer=TrainerSettings(steps=3, log_every=1))


def replayed(settings: RunSettings, step: int, world: int, rank: int) -> list[Batch]:
    """Return the micro-batches of a step that `batches_of_step` rebuilds."""
    split = BatchSplit(settings.batch.size, settings.batch.micro, world, rank)
    stores = train_sets(settings.data)
    position = (step - 1) * settings.batch.size
    return list(
        batches_of_step(settings.data, stores, settings.task, settings.seed, position, split)
    )


def batches_of_training(sets: Path, folder: Path) -> list[tuple[int, tuple]]:
    """Train on this rank; return the step and the fields of every micro-batch."""
    receive, seen, steps = TrainingStep.receive, [], itertools.count(1)

    def recorded(self, *args):
        received = receive(self, *args)
        step = next(steps)
        seen.extend((step, (*batch[:1], *batch.targets, *batch[2:])) for batch in received.batches)
        return received

    if dist.get_rank() == 0:
        folder.mkdir()
    dist.barrier()
    with mock.patch.object(TrainingStep, "receive", recorded):
        train(settings_of(sets), folder)
    return seen


@pytest.mark.slow
def test_replayed_tensors_are_those_of_training(photographs, tmp_path):
    """Train on two ranks with a loader process each and a stage; replay in this process."""
    ranks = distributed.run(batches_of_training, 2, photographs, tmp_path / "run")
    settings = settings_of(photographs)
    for rank, seen in enumerate(ranks):
        assert [step for step, _ in seen] == [1, 1, 2, 2, 3, 3]
        for step in (1, 2, 3):
            given = [batch for s, batch in seen if s == step]
            again = replayed(settings, step, 2, rank)
            for expected, batch in zip(given, again, strict=True):
                fields = (*batch[:1], *batch.targets, *batch[2:])
                for a, b in zip(expected, fields, strict=True):
                    assert torch.equal(a, b) if torch.is_tensor(a) else a == b


def test_pictures_show_image_and_truth(photographs):
    settings = settings_of(photographs)
    taxonomy = train_sets(settings.data)[0].manifest.taxonomy
    batch = replayed(settings, 1, 1, 0)[0]
    height, width = batch.sizes[0].tolist()
    bare, covered = pictures(batch, 0, taxonomy)
    assert bare.shape == covered.shape == (256, 256, 3)  # enlarged, so that names can be read
    change = np.abs(covered.astype(int) - bare).sum(-1)
    factor = 256 // 64
    labeled = (batch.targets.maps[0, 0, :height, :width] > 0).numpy().mean()
    inside = change[: height * factor, : width * factor]
    assert (inside > 0).mean() == pytest.approx(labeled, abs=0.15)
    large = batch._replace(
        images=torch.zeros(4, 3, 2 * MAX_SIDE, MAX_SIDE, dtype=torch.uint8),
        targets=batch.targets._replace(
            maps=torch.zeros(4, 1, 2 * MAX_SIDE, MAX_SIDE, dtype=torch.uint8)
        ),
    )
    assert pictures(large, 0, taxonomy)[1].shape[0] / pictures(large, 0, taxonomy)[1].shape[1] == 2
