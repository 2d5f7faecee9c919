"""`model.compile` gives the same network through torch.compile."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from model.mask2former import Mask2Former
from model.network import buffers_kept
from tests.model.test_recompute import tiny_settings


def outcome(model, images):
    """Return the predictions, and the gradients of a function of them by parameter name."""
    model.zero_grad()
    predictions = model(images)
    sum(x.square().mean() for x in predictions).backward()
    return predictions, {name: p.grad for name, p in model.named_parameters()}


def test_a_compiled_network_is_the_same_by_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    images = torch.randn(2, 3, 64, 64)
    models = []
    for compiled in (False, True):
        torch.manual_seed(0)
        models.append(Mask2Former(tiny_settings(checkpoint_activations=True), num_classes=5))
        if compiled:
            models[1].compile_blocks()
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    torch._dynamo.reset()
    counters.clear()
    (wanted, expected), (predictions, gradients) = (outcome(model, images) for model in models)
    for ours, theirs in zip(predictions, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    graphs = counters["stats"]["unique_graphs"]
    outcome(models[1], images + 1)
    assert graphs == counters["stats"]["unique_graphs"] > 3
    assert not counters["graph_break"]


def test_warming_up_changes_no_statistics() -> None:
    """Recording a CUDA graph runs the network on images without content."""
    torch.manual_seed(0)
    model = Mask2Former(tiny_settings(norm="batch"), num_classes=5)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert "backbone.body.embedder.embedder.normalization.running_mean" in before
    with buffers_kept(model):
        model(torch.zeros(2, 3, 64, 64))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
