"""The Triton kernels of sampling in the interpreter, compiled for a GPU, and on a GPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.points import row_sampler, sample
from tests.model.test_points import edgy_points
from tests.model.triton_process import run

INTERPRETED = """
import torch
from model import points
from tests.model.test_points_triton import check_rows

points.implementation = lambda operation, device: "triton"
for dtype, of_points, tolerance in (
    (torch.float64, torch.float64, 1e-12),
    (torch.float32, torch.float32, 1e-5),
    (torch.bfloat16, torch.float32, 1e-5),
):
    check_rows(dtype, of_points, torch.device("cpu"), tolerance)
"""
COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from model.kernels import points_triton

kernel = points_triton._sample_rows
constants = {"BLOCK_P": points_triton.BLOCK, "BLOCK_C": 256}
types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
for dtype in ("*bf16", "*fp32"):
    types |= {"features": dtype, "points": "*fp32", "output": "*fp32"}
    source, target = ASTSource(kernel, types, constants), GPUTarget("cuda", 90, 32)
    assert compile(source, target, {"num_warps": points_triton.WARPS}).asm["cubin"]
"""


def check_rows(
    dtype: torch.dtype, of_points: torch.dtype, device: torch.device, tolerance: float
) -> None:
    """Compare with `sample` in float64, for features whose channels are or are not last."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 6, 9, generator=generator, dtype=torch.float64).to(dtype)
    points = edgy_points(2, 30).to(of_points)
    expected: Tensor = sample(features.double(), points.double()).transpose(1, 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = features.to(device, memory_format=layout)
        sampled = row_sampler(given)(points.to(device))
        assert sampled.dtype == of_points
        torch.testing.assert_close(sampled.double().cpu(), expected, rtol=0, atol=tolerance)


def test_interpreted_kernels() -> None:
    run(INTERPRETED, TRITON_INTERPRET="1")


def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


def test_the_reference_takes_half_precision() -> None:
    check_rows(torch.bfloat16, torch.float32, torch.device("cpu"), 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "of_points", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.float32, 1e-5),
    ],
)
def test_rows_on_a_gpu(dtype: torch.dtype, of_points: torch.dtype, tolerance: float) -> None:
    check_rows(dtype, of_points, torch.device("cuda"), tolerance)
