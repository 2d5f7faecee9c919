"""A replay finds the image and the tensor that make the numbers of a step wrong."""

import math

import pytest
import torch
from torch import nn

from model.mask2former import Mask2Former
from pipeline.data.split import BatchSplit
from pipeline.data.stream import train_stream
from pipeline.pictures.replay import pictures
from pipeline.run.diagnoses import first_wrong, table, wrong_samples
from pipeline.settings import BatchSettings
from pipeline.step.diagnose import Replay, replay
from pipeline.step.step import GlobalBatch, PlainNetwork, TrainingStep
from tests.pipeline.runs import smallest

CPU = torch.device("cpu")


class Planted(nn.Module):
    """Multiplies the features of one image, which is marked by a white first pixel."""

    def __init__(self, inner: nn.Module, factor: float):
        super().__init__()
        self.inner, self.factor = inner, factor
        self.images = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        marked = (self.images[:, :, 0, 0] > 2).all(1).view(-1, 1, 1, 1)  # white, normalized
        return self.inner(x) * torch.where(marked, self.factor, 1.0)


@pytest.fixture
def step_and_batch(train_set, photographs):
    """Return a step of four images, its network, and its batch, in which image 2 is marked."""
    settings = smallest(photographs, batch=BatchSettings(4, 2))
    torch.manual_seed(3)
    model = Mask2Former(settings.model, len(train_set.manifest.taxonomy))
    split = BatchSplit(4, 2)
    step = TrainingStep(
        PlainNetwork(model, CPU), settings.criterion, queries=settings.model.queries, seed=3,
        split=split, device=CPU,
    )  # fmt: skip
    stream = train_stream(settings.data, [train_set], "panoptic", 3, 0, split)
    batch = step.receive(iter(stream))
    for micro_batch in batch.batches:
        micro_batch.images[:, :, 0, 0] = 0
    batch.batches[1].images[0, :, 0, 0] = 255
    return step, model, batch


def planted(model: Mask2Former, name: str, factor: float) -> None:
    """Let a module of the network multiply the features of the marked image."""
    parent, _, child = name.rpartition(".")
    wrapper = Planted(model.get_submodule(name), factor)
    setattr(model.get_submodule(parent), child, wrapper)
    forward = model.forward

    def remembering(images, draw=None):
        wrapper.images = images
        return forward(images, draw)

    model.forward = remembering


def first_projection(model: Mask2Former) -> str:
    """Return the name of the first module of the pixel decoder that has weights."""
    return next(n for n, m in model.named_modules() if n.startswith("pixel_decoder.")
                and isinstance(m, nn.Conv2d))  # fmt: skip


@pytest.mark.parametrize("factor", [float("nan"), 1e4])
def test_the_image_and_the_first_tensor_are_found(step_and_batch, factor):
    step, model, batch = step_and_batch
    name = "pixel_decoder.mask_features"  # no norm follows
    planted(model, name, factor)
    found = replay(step, model, batch, why_not="")
    assert found.error == ""
    (wrong, *_) = wrong_samples([found])
    assert wrong["key"] == batch.batches[1].keys[0]
    assert first_wrong([Replay(), found]) == (1, f"output {name}")
    rows = table(found.norms)
    assert math.isfinite(rows["weight"][f"{name}.inner.weight"])
    assert math.isfinite(rows["output"][name]) == math.isfinite(factor)


def test_a_gradient_and_a_weight_that_are_not_finite_are_named(step_and_batch):
    step, model, batch = step_and_batch
    name = first_projection(model)
    hook = model.get_submodule(name).register_forward_hook(
        lambda _, __, output: output.register_hook(lambda g: g * math.inf) and None
    )
    found = replay(step, model, batch, why_not="")
    hook.remove()
    assert first_wrong([found]) == (0, f"gradient of {name}")
    weight = model.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    weight.data.view(-1)[3] = math.inf
    found = replay(step, model, batch, why_not="")
    assert first_wrong([found]) == (0, f"weight {name}.weight")
    assert len(wrong_samples([found])) == 4  # each image alone has such numbers, too


def test_a_replay_has_the_numbers_of_the_step_and_changes_nothing(step_and_batch):
    step, model, batch = step_and_batch
    losses = step.forward_backward(batch)
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    state = {n: t.clone() for n, t in model.state_dict().items()}
    draws = torch.get_rng_state()
    found = replay(step, model, batch, why_not="")
    total = sum(sample["loss"] for sample in found.samples)
    assert total == pytest.approx(sum(loss.item() for loss in losses.values()), rel=1e-5)
    assert found.first_not_finite() is None
    assert first_wrong([found]) == (0, "")
    assert wrong_samples([found]) == []
    assert torch.equal(draws, torch.get_rng_state())
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(p.grad, grads[n]) for n, p in model.named_parameters() if n in grads)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_replay_that_fails_is_a_result(step_and_batch, monkeypatch):
    step, model, batch = step_and_batch
    monkeypatch.setattr(model, "forward", lambda *_: torch.zeros(2**62))
    found = replay(step, model, batch, why_not="")
    assert found.error.startswith("RuntimeError")
    assert [sample["position"] for sample in found.samples] == [0, 1, 2, 3]
    assert replay(step, model, batch, why_not="sharded").error == "sharded"


def test_logits_that_are_not_finite_make_every_gradient_nan(step_and_batch):
    """A rank that raised an error instead would leave the others waiting in the backward pass."""
    step, model, batch = step_and_batch
    names = list(step.forward_backward(batch))
    model.zero_grad(set_to_none=True)
    model.get_submodule(first_projection(model)).weight.data.fill_(math.nan)
    losses = step.forward_backward(GlobalBatch(batch.batches, batch.totals, []))
    assert list(losses) == names
    assert all(loss.isnan() for loss in losses.values())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) > 10
    assert math.isnan(step.take_loss())
    assert step.take_loss() == 0


def test_single_images_have_their_pictures(step_and_batch, train_set):
    _, _, batch = step_and_batch
    alone = batch.batches[1].image(1)
    assert alone.keys == batch.batches[1].keys[1:]
    pair, single = (pictures(b, n, train_set.manifest.taxonomy) for b, n in
                    ((batch.batches[1], 1), (alone, 0)))  # fmt: skip
    assert (pair[1] == single[1]).all()
