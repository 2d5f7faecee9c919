"""Deformable attention from raw projections, and its kernels: interpreted, compiled, on a GPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.deformable_attention import deformable_attention
from model.deformable_self_attention import deformable_self_attention, sample_points
from model.position import pixel_centers
from tests.model.triton_process import run

SHAPES = ((1, 2), (2, 3), (3, 4))
# Triton reads TRITON_INTERPRET when a kernel is defined, so each test starts a process. The process
# runs the operator on a CPU, where it is not registered otherwise.
SETUP = """
import torch
from model import deformable_self_attention as module, kernels
from model.kernels import deformable_triton
from tests.model.test_deformable_self_attention import SHAPES, check, results, sample

def forward(value, sizes, projected):
    return deformable_triton.forward(value, module.pairs(sizes), projected)
def backward(gradient, value, sizes, projected):
    return deformable_triton.backward(gradient, value, module.pairs(sizes), projected)
module._forward.register_kernel("cpu")(forward)
module._backward.register_kernel("cpu")(backward)
module.implementation = lambda operation, device: "triton"
"""
INTERPRETED = """
for value_dtype, dtype, dim, tolerance in (
    (torch.float64, torch.float64, 3, 1e-12),
    (torch.float32, torch.float32, 4, 1e-5),
    (torch.bfloat16, torch.float32, 4, 1e-5),
):
    value, projected, gradient = sample(dtype, dim)
    value = value.to(value_dtype)
    check(value, projected, gradient.to(value_dtype), tolerance)
"""
NAN = """
value, projected, gradient = sample(torch.float64, 4)
projected[0, 3, 5] = projected[1, 7, 25] = torch.nan
gradient[0, 3] = gradient[1, 7] = 0
output, of_value, of_projected = results(value, projected, gradient)
for x in (output, of_projected):
    rows = x.isnan().any(2).nonzero().tolist()
    assert rows == [[0, 3], [1, 7]]
"""
OPERATOR = """
value, projected, gradient = (x[:1] for x in sample(torch.float32, 4))
sizes = [side for shape in SHAPES for side in shape]
operator = torch.ops.m2f.deformable_self_attention
torch.library.opcheck(operator.default, (value.requires_grad_(), sizes, projected.requires_grad_()))
compiled = torch.compile(module.deformable_self_attention, backend="aot_eager", fullgraph=True)
outputs = [f(value, SHAPES, projected) for f in (module.deformable_self_attention, compiled)]
assert torch.equal(*outputs)
saved = set()
with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.add(x.data_ptr()) or x, lambda x: x):
    operator(value, sizes, projected).sum().backward()
assert saved == {value.data_ptr(), projected.data_ptr()}
"""
COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from model.kernels import deformable_triton

VALUES = ("value", "output", "gradient")
constants = {"D": 32, "LEVELS": 3, "POINTS": 4, "BLOCK_Q": deformable_triton.BLOCK}
constants |= {"BLOCK_D": 32, "BLOCK_S": 32}
for kernel in (deformable_triton._deformable_forward, deformable_triton._deformable_backward):
    for dtype in ("*bf16", "*fp32"):
        types = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(constants, "constexpr")
        types |= {"levels": "*i32"} | dict.fromkeys(("tokens", "heads"), "i32")
        types |= {name: dtype for name in VALUES if name in types}
        source = ASTSource(kernel, types, constants)
        options = {"num_warps": deformable_triton.WARPS}
        assert compile(source, GPUTarget("cuda", 90, 32), options).asm["cubin"]
"""


def sample(dtype: torch.dtype, dim: int, heads: int = 2, points: int = 2) -> list[Tensor]:
    """Return values, projections, and a gradient of the output; some samples lie far outside."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)
    samples = heads * len(SHAPES) * points

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    projected = torch.cat((3 * draw(2, tokens, 2 * samples), 2 * draw(2, tokens, samples)), 2)
    for token, offset in enumerate((-1e30, 1e30, torch.inf)):
        projected[0, token, : 2 * samples] = offset
    inputs = draw(2, tokens, heads, dim), projected, draw(2, tokens, heads * dim)
    return [x.to(dtype) for x in inputs]


def results(value: Tensor, projected: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the output and the gradients of the inputs."""
    inputs = [x.detach().requires_grad_() for x in (value, projected)]
    output = deformable_self_attention(inputs[0], SHAPES, inputs[1])
    return [output, *torch.autograd.grad(output, inputs, gradient)]


def expected(value: Tensor, projected: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the same in float64 on a CPU, by the formulas of points and weights."""
    inputs = [x.detach().double().cpu().requires_grad_() for x in (value, projected)]
    offsets, logits = inputs[1].tensor_split([projected.shape[2] // 3 * 2], 2)
    centers = pixel_centers(SHAPES, torch.device("cpu"), torch.float64)
    points = sample_points(offsets, logits, centers, SHAPES, value.shape[2])
    output = deformable_attention(inputs[0], SHAPES, *points)
    return [output, *torch.autograd.grad(output, inputs, gradient.double().cpu())]


def check(value: Tensor, projected: Tensor, gradient: Tensor, tolerance: float) -> None:
    """Compare with float64, relative to the largest number; bfloat16 adds 2⁻⁷."""
    ours = results(value, projected, gradient)
    assert [x.dtype for x in ours] == [value.dtype, value.dtype, projected.dtype]
    for x, y in zip(ours, expected(value, projected, gradient), strict=True):
        assert y[1].abs().max() > 0.1
        rtol = 2**-7 if x.dtype == torch.bfloat16 else 0
        torch.testing.assert_close(
            x.double().cpu(), y, rtol=rtol, atol=tolerance * y.abs().max().item()
        )


@pytest.mark.parametrize(
    "script",
    [INTERPRETED, *(pytest.param(x, marks=pytest.mark.slow) for x in (NAN, OPERATOR))],
)
def test_interpreted_kernels(script: str) -> None:
    run(SETUP + script, TRITON_INTERPRET="1")


def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_reference_takes_the_same_projections(dtype: torch.dtype, tolerance: float) -> None:
    value, projected, gradient = sample(dtype, 4)
    check(value, projected, gradient, tolerance)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": SHAPES[:2]}, r"value has 20 tokens.*\(1, 2\)"),
        ({"projected": torch.zeros(2, 20, 73)}, r"projections \[2, 20, 73\].* points \* 18\]"),
        ({"projected": torch.zeros(2, 20, 36).bfloat16()}, r"projections torch.bfloat16"),
    ],
)
def test_inputs_that_do_not_fit(changes: dict, message: str) -> None:
    value, projected, _ = sample(torch.float32, 4)
    with pytest.raises(ValueError, match=message):
        deformable_self_attention(
            **{"value": value, "shapes": SHAPES, "projected": projected} | changes
        )


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("value_dtype", "dtype", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-11),
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.float32, 1e-5),
    ],
)
def test_kernels_on_a_gpu(value_dtype: torch.dtype, dtype: torch.dtype, tolerance: float) -> None:
    value, projected, gradient = (x.cuda() for x in sample(dtype, 32))
    check(value.to(value_dtype), projected, gradient.to(value_dtype), tolerance)
