"""One training step: its random numbers, and its use in a plain loop without DeepSpeed."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.mask2former import Mask2Former
from pipeline.data.split import BatchSplit, split_of
from pipeline.data.stream import train_stream
from pipeline.settings import RunSettings
from pipeline.step import step as steps
from pipeline.step.draws import Draws
from pipeline.step.step import GlobalBatch, PlainNetwork, TrainingStep, global_losses
from tests.pipeline.runs import smallest

CPU = torch.device("cpu")


def plain_step(model: Mask2Former, settings: RunSettings, split: BatchSplit) -> TrainingStep:
    return TrainingStep(
        PlainNetwork(model, CPU),
        settings.criterion,
        queries=settings.model.queries,
        seed=3,
        split=split,
        device=CPU,
    )


def test_a_plain_loop_takes_the_step_in_one_process(train_set, photographs):
    """Four micro-batches have the losses and the gradients of the whole batch."""
    settings = smallest(photographs)
    losses, gradients = [], []
    for micro_batch in (8, 2):
        split = BatchSplit(8, micro_batch)
        torch.manual_seed(3)
        model = Mask2Former(settings.model, len(train_set.manifest.taxonomy))
        step = plain_step(model, settings, split)
        stream = train_stream(settings.data, [train_set], "panoptic", 3, 0, split)
        batch = step.receive(iter(stream))
        losses.append(global_losses(step.forward_backward(batch)))
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def losses_of_pairs(train_set, photographs):
    """Return the class losses of every two consecutive images of a batch of eight, alone."""
    settings = smallest(photographs)
    found = []
    for first in range(8, 16, 2):
        split = BatchSplit(2, 2)
        torch.manual_seed(3)
        model = Mask2Former(settings.model, len(train_set.manifest.taxonomy))
        step = plain_step(model, settings, split)
        stream = train_stream(settings.data, [train_set], "panoptic", 3, first, split)
        losses = step.forward_backward(step.receive(iter(stream)))
        found.append([loss for name, loss in losses.items() if name.startswith("loss_ce")])
    return found


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 3), (2, 3), (3, 1)])
def test_groups_of_the_class_loss_do_not_depend_on_the_division(
    train_set, photographs, losses_of_pairs, monkeypatch, world, micro
):
    """The class losses of all ranks add up to the mean of those of the groups."""
    settings = smallest(photographs)
    criterion = replace(settings.criterion, class_normalizer="groups")
    settings = replace(settings, criterion=criterion)
    torch.manual_seed(3)
    model = Mask2Former(settings.model, len(train_set.manifest.taxonomy))
    splits = [BatchSplit(8, micro, world, rank) for rank in range(world)]
    assert split_of(settings, world) == BatchSplit(8, settings.batch.micro, world)

    def received(split: BatchSplit) -> tuple[TrainingStep, GlobalBatch]:
        stream = train_stream(settings.data, [train_set], "panoptic", 3, 8, split)
        step = plain_step(model, settings, split)
        return step, step.receive(iter(stream))

    parts: list[torch.Tensor] = []
    with monkeypatch.context() as patched:
        patched.setattr(steps, "sum_on_hosts", lambda part: parts.append(part.clone()) or part)
        for split in splits:
            received(split)
    monkeypatch.setattr(steps, "sum_on_hosts", lambda part: part.copy_(sum(parts)))
    total: Counter[str] = Counter()
    for split in splits:
        step, batch = received(split)
        total.update({name: loss.item() for name, loss in step.forward_backward(batch).items()})
    wanted = torch.tensor(losses_of_pairs).mean(0).tolist()
    assert [x for name, x in total.items() if name.startswith("loss_ce")] == pytest.approx(wanted)


def test_draws_follow_from_seed_epoch_key_and_purpose(train_set, photographs):
    def numbers(seed, position, share, purpose="match/0"):
        stream = train_stream(
            smallest(photographs).data, [train_set], "panoptic", 3, position, share
        )
        batch = next(iter(stream))
        draw = Draws(seed, batch)
        return {p: draw(b, purpose, (5, 2)) for b, p in enumerate(batch.positions)}

    whole = numbers(3, 0, BatchSplit(8, 8))
    for rank in range(4):
        for position, drawn in numbers(3, 0, BatchSplit(8, 2, 4, rank)).items():
            assert torch.equal(drawn, whole[position])
            assert drawn.dtype == torch.float32
            assert ((drawn >= 0) & (drawn < 1)).all()
    different = [
        *whole.values(),
        *numbers(4, 0, BatchSplit(8, 8)).values(),
        *numbers(3, 0, BatchSplit(8, 8), "match/1").values(),
        *numbers(3, 10, BatchSplit(8, 8)).values(),
    ]
    assert len({tuple(drawn.flatten().tolist()) for drawn in different}) == 32


def test_rows_of_all_images_are_those_of_each(train_set, photographs):
    stream = train_stream(
        smallest(photographs).data, [train_set], "panoptic", 3, 0, BatchSplit(4, 4)
    )
    draw = Draws(3, next(iter(stream)))
    counts = [2, 0, 1, 3]
    together = draw.rows("candidates/0", counts, (5, 2))
    alone = [draw(b, "candidates/0", (count, 5, 2)) for b, count in enumerate(counts)]
    assert torch.equal(together, torch.cat(alone))


class ReadsOfTheHost(TorchDispatchMode):
    """Counts the operations for which the host would wait for a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.WAITING:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def test_losses_and_gradients_read_no_number_on_the_host(train_set, photographs):
    """The copy of the matching costs, which is not counted here, is the only one of a step."""
    settings = smallest(photographs)
    model = Mask2Former(settings.model, len(train_set.manifest.taxonomy))
    split = BatchSplit(4, 2)
    step = plain_step(model, settings, split)
    stream = train_stream(settings.data, [train_set], "panoptic", 3, 0, split)
    batch = step.receive(iter(stream))
    step.forward_backward(batch)  # fills the caches of constants
    with ReadsOfTheHost() as reads:
        step.forward_backward(batch)
    assert not reads.counts
