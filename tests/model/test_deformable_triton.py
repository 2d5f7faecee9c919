"""The Triton kernels in the interpreter, compiled for a GPU, and on a GPU if there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.deformable_attention import deformable_attention, reference
from tests.model.test_deformable_attention import results, sample

# Triton reads TRITON_INTERPRET when a kernel is defined, so each test starts a process.
INTERPRETED = """
import torch
from model.kernels import deformable_cpu, deformable_triton
from tests.model.test_deformable_attention import SHAPES, sample

for value_dtype, dtype, dim, tolerance in (
    (torch.float64, torch.float64, 3, 1e-12),
    (torch.float32, torch.float32, 4, 1e-5),
    (torch.bfloat16, torch.float32, 4, 1e-5),
):
    value, locations, weights = (x.detach() for x in sample(dtype, dim=dim))
    value = value.to(value_dtype)
    for query, location in enumerate((-1e30, 1e30, torch.inf)):
        locations[0, query] = location
    weights = weights.transpose(1, 4).contiguous().transpose(1, 4)
    gradient = torch.randn(2, 7, 2 * dim, generator=torch.Generator().manual_seed(0))
    gradient = gradient.to(value_dtype)
    arguments = value, SHAPES, locations, weights
    ours = deformable_triton.forward(*arguments), *deformable_triton.backward(gradient, *arguments)
    theirs = deformable_cpu.forward(*arguments), *deformable_cpu.backward(gradient, *arguments)
    for x, y in zip(ours, theirs, strict=True):
        atol = 0.02 if x.dtype == torch.bfloat16 else tolerance
        torch.testing.assert_close(x, y, rtol=0, atol=atol)
        assert y[1].abs().max() > 0.1
"""

COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from model.kernels import deformable_triton

HALF = ("value", "output", "gradient")
CONSTANTS = {"D": 32, "LEVELS": 3, "POINTS": 4, "BLOCK_Q": deformable_triton.BLOCK, "BLOCK_D": 32}
for kernel in (deformable_triton._forward, deformable_triton._backward):
    types = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(CONSTANTS, "constexpr")
    types |= {"levels": "*i32"} | dict.fromkeys(("tokens", "queries", "heads"), "i32")
    types |= {name: "*bf16" for name in HALF if name in types}
    binary = compile(ASTSource(kernel, types, CONSTANTS), target=GPUTarget("cuda", 90, 32))
    assert binary.asm["cubin"]
"""


def run(script: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_interpreted_kernels_are_the_cpu_ones() -> None:
    run(INTERPRETED, TRITON_INTERPRET="1")


def test_kernels_compile_for_a_gpu(tmp_path) -> None:
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 0.05)]
)
def test_kernels_on_a_gpu(dtype: torch.dtype, tolerance: float) -> None:
    inputs = sample(torch.float64 if dtype == torch.float64 else torch.float32, dim=32)
    inputs = [x.detach().cuda().requires_grad_() for x in inputs]
    inputs[0] = inputs[0].detach().to(dtype).requires_grad_()
    gradient = torch.randn(2, 7, 64, device="cuda").to(dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for ours, theirs in zip(
        results(deformable_attention, inputs, gradient),
        results(reference, exact, gradient.double()),
        strict=True,
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
