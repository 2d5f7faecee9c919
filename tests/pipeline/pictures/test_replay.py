"""What `replay` draws is what the net was given, to the bit."""

import dataclasses
import itertools
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.data.store import Store
from pipeline.pictures.replay import SIDE, batches_of_step, pictures
from pipeline.settings import TrainerSettings
from pipeline.step.step import TrainingStep
from pipeline.train import train
from tests import distributed
from tests.pipeline.data.test_stages import HERE
from tests.pipeline.runs import smallest


def settings_of(sets: Path):
    plain = smallest(sets)
    data = dataclasses.replace(plain.data, stages=[f"{HERE}:darken"], loader_workers=1)
    return dataclasses.replace(plain, data=data, trainer=TrainerSettings(steps=3, log_every=1))


def seen_by_the_net(sets: Path, folder: Path) -> list[tuple[int, tuple]]:
    """Train on this rank; (step, micro-batch) of all that the step was given."""
    receive, seen, steps = TrainingStep.receive, [], itertools.count(1)

    def recorded(self, batches):
        received = receive(self, batches)
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
    """Two ranks with a loader process each and a stage of the user's; replayed in this process."""
    ranks = distributed.run(seen_by_the_net, 2, photographs, tmp_path / "run")
    settings = settings_of(photographs)
    for rank, seen in enumerate(ranks):
        assert [step for step, _ in seen] == [1, 1, 2, 2, 3, 3]
        for step in (1, 2, 3):
            given = [batch for s, batch in seen if s == step]
            again = list(batches_of_step(settings, step, 2, rank))
            for then, now in zip(given, again, strict=True):
                now = (*now[:1], *now.targets, *now[2:])
                for one, other in zip(then, now, strict=True):
                    assert torch.equal(one, other) if torch.is_tensor(one) else one == other


def test_pictures_show_image_and_truth(photographs):
    settings = settings_of(photographs)
    taxonomy = Store(photographs / "train").manifest.taxonomy
    batch = next(iter(batches_of_step(settings, 1, 1, 0)))
    height, width = batch.sizes[0].tolist()
    bare, covered = pictures(batch, 0, taxonomy)
    assert bare.shape == covered.shape == (256, 256, 3)  # enlarged, so that names can be read
    change = np.abs(covered.astype(int) - bare).sum(-1)
    factor = 256 // 64
    labeled = (batch.targets.maps[0, 0, :height, :width] > 0).numpy().mean()
    inside = change[: height * factor, : width * factor]
    assert (inside > 0).mean() == pytest.approx(labeled, abs=0.15)
    large = batch._replace(
        images=torch.zeros(4, 3, 2 * SIDE, SIDE, dtype=torch.uint8),
        targets=batch.targets._replace(maps=torch.zeros(4, 1, 2 * SIDE, SIDE, dtype=torch.uint8)),
    )
    assert pictures(large, 0, taxonomy)[1].shape[0] / pictures(large, 0, taxonomy)[1].shape[1] == 2
