"""Deformable attention agrees with plain torch and works with autograd, autocast, and compile."""

import pytest
import torch
from torch import Tensor

from model.deformable_attention import deformable_attention, reference

SHAPES = ((3, 4), (6, 8), (12, 15))


def sample(dtype: torch.dtype = torch.float64, batch: int = 2, heads: int = 2, dim: int = 4):
    """Return value, locations, and weights, which require gradients; a third lie outside."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    value = draw(batch, tokens, heads, dim) - 0.5
    locations = 1.6 * draw(batch, 7, heads, len(SHAPES), 4, 2) - 0.3
    weights = draw(batch, 7, heads, len(SHAPES), 4)
    return [x.to(dtype).requires_grad_() for x in (value, locations, weights)]


def results(function, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """Return the output and the gradients of the inputs."""
    value, locations, weights = inputs
    output = function(value, SHAPES, locations, weights)
    return [output, *torch.autograd.grad(output, inputs, gradient)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_values_and_gradients_of_the_reference(dtype: torch.dtype, tolerance: float) -> None:
    inputs = sample(dtype)
    gradient = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    expected = results(reference, inputs, gradient)
    for ours, theirs in zip(results(deformable_attention, inputs, gradient), expected, strict=True):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_gradients_are_finite_differences() -> None:
    inputs = sample(batch=1, heads=1, dim=2)
    assert torch.autograd.gradcheck(
        lambda value, *samples: deformable_attention(value, SHAPES, *samples), inputs
    )


def test_far_samples_read_zeros_and_nan_stays_in_its_query() -> None:
    value, locations, weights = sample()
    with torch.no_grad():
        for query, location in enumerate((-1e30, 1e30, -torch.inf, torch.inf, torch.nan)):
            locations[:, query] = location
    gradient = torch.ones(2, 7, 8, dtype=torch.float64)
    gradient[:, 4] = 0
    output, _, of_locations, of_weights = results(
        deformable_attention, [value, locations, weights], gradient
    )
    assert not output[:, :4].any()
    assert not of_locations[:, :4].any()
    assert not of_weights[:, :4].any()
    assert output[:, 4].isnan().all()
    assert output[:, 5:].isfinite().all()
    clean = results(reference, [value, locations[:, 5:], weights[:, 5:]], gradient[:, 5:])
    torch.testing.assert_close(output[:, 5:], clean[0], rtol=0, atol=1e-12)


def test_saves_its_inputs_alone() -> None:
    saved: set[int] = set()
    inputs = sample()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.add(x.data_ptr()) or x, lambda x: x
    ):
        output = deformable_attention(inputs[0], SHAPES, *inputs[1:])
    output.sum().backward()
    assert saved == {x.data_ptr() for x in inputs}


def test_operator_passes_opcheck() -> None:
    value, locations, weights = sample(torch.float32)
    weights = weights.detach().transpose(1, 4).contiguous().transpose(1, 4).requires_grad_()
    sizes = [side for shape in SHAPES for side in shape]
    torch.library.opcheck(
        torch.ops.m2f.deformable_attention.default, (value, sizes, locations, weights)
    )
    inputs = [x.detach() for x in (value, locations, weights)]
    torch.library.opcheck(
        torch.ops.m2f.deformable_attention_backward.default,
        (torch.ones(2, 7, 8), inputs[0], sizes, *inputs[1:]),
    )


def test_half_precision_values_are_summed_in_float32() -> None:
    value, locations, weights = sample(torch.float32)
    gradient = torch.randn(2, 7, 8).bfloat16()
    half = value.detach().bfloat16().requires_grad_()
    ours = results(deformable_attention, [half, locations, weights], gradient)
    exact = [half.detach().float().requires_grad_(), locations, weights]
    expected = results(deformable_attention, exact, gradient.float())
    assert [x.dtype for x in ours] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y.to(x.dtype))


def test_under_autocast_the_operator_is_float32() -> None:
    value, locations, weights = (x.detach() for x in sample(torch.float32))
    sizes = [side for shape in SHAPES for side in shape]
    expected = torch.ops.m2f.deformable_attention(value, sizes, locations, weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            torch.ops.m2f.deformable_attention(value, sizes, locations, weights), expected
        )
        half = torch.ops.m2f.deformable_attention(
            value, sizes, locations.bfloat16(), weights.bfloat16()
        )
    assert half.dtype == torch.float32


def test_compiles_without_a_break() -> None:
    inputs = sample(torch.float32)
    gradient = torch.randn(2, 7, 8)
    compiled = torch.compile(deformable_attention, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(
        results(compiled, inputs, gradient),
        results(deformable_attention, inputs, gradient),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": SHAPES[:2]}, r"value has 240 tokens.*\(3, 4\)"),
        ({"weights": torch.zeros(2, 7, 2, 3, 5)}, r"weights \[2, 7, 2, 3, 5\]"),
        ({"locations": torch.zeros(2, 7, 2, 3, 4, 2).bfloat16()}, r"locations torch.bfloat16"),
    ],
)
def test_inputs_that_do_not_fit(changes: dict, message: str) -> None:
    value, locations, weights = sample(torch.float32)
    given = {"value": value, "shapes": SHAPES, "locations": locations, "weights": weights}
    with pytest.raises(ValueError, match=message):
        deformable_attention(**given | changes)
