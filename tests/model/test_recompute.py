"""Recomputation in backward gives the same values and gradients and keeps less memory."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.mask2former import Mask2Former
from model.pixel_decoder import EncoderLayer, PixelDecoderSettings
from model.position import pixel_centers
from model.recompute import recompute
from tests.model.samples import tiny_settings


def kept(function, *inputs) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Return the result, and the shape of each tensor that autograd keeps, except parameters."""
    tensors = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            tensors[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return function(*inputs), [tuple(tensor.shape) for tensor in tensors.values()]


def test_values_and_gradients_are_the_same_and_the_last_product_is_computed_once() -> None:
    torch.manual_seed(0)
    wide, narrow = nn.Linear(3, 50).double(), nn.Linear(50, 2).double()
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    calls = []
    narrow.register_forward_hook(lambda *_: calls.append(None))

    def function(x: Tensor) -> Tensor:
        return narrow(F.relu(wide(x)))

    leaves = [x, *wide.parameters(), *narrow.parameters()]
    plain, everything = kept(function, x)
    wanted = torch.autograd.grad(plain.square().sum(), leaves)
    result, shapes = kept(lambda x: recompute(function, x), x)
    calls.clear()
    gradients = torch.autograd.grad(result.square().sum(), leaves)
    assert not calls
    assert torch.equal(result, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))
    assert (7, 50) in everything
    assert (7, 50) not in shapes


def test_encoder_keeps_neither_its_queries_nor_the_hidden_layer() -> None:
    torch.manual_seed(0)
    shapes = ((1, 2), (2, 4), (4, 8))
    centers = pixel_centers(shapes, torch.device("cpu"), torch.float32)
    layer = EncoderLayer(64, PixelDecoderSettings(feedforward=96))
    source, position = torch.randn(1, 42, 64, requires_grad=True), torch.randn(42, 64)
    output, saved = kept(layer, source, position, centers, shapes)
    tokens = [shape for shape in saved if shape[-2:] in ((42, 64), (42, 96), (21, 2))]
    assert tokens == [
        *((1, 42, 64), (42, 64)),  # input, position
        (1, 64, 21, 2),  # sampled values, as `Linear` has them
        *[(1, 42, 64)] * 3,  # both norms' inputs, output of the first
    ]
    output.sum().backward()
    assert source.grad.abs().sum() > 0


def test_checkpointed_layers_have_the_same_gradients_and_keep_less() -> None:
    images = torch.randn(2, 3, 64, 64)
    outcomes = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        model = Mask2Former(tiny_settings(checkpoint_activations=checkpoint), num_classes=5)
        _, of_backbone = kept(model.backbone, images)
        predictions, shapes = kept(model, images)
        for shape in of_backbone:  # the backbone recomputes nothing
            shapes.remove(shape)
        sum(x.square().mean() for x in predictions).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        outcomes.append((predictions, gradients, shapes))
    (plain, wanted, everything), (predictions, gradients, shapes) = outcomes
    assert all(torch.equal(a, b) for a, b in zip(predictions, plain, strict=True))
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-7)
    assert sum(map(math.prod, shapes)) < 0.6 * sum(map(math.prod, everything))
