"""Uniform numbers by key on a GPU: interpreted, compiled, and on a GPU if there is one."""

import numpy as np
import pytest
import torch

from tests.model.triton_process import run

SEEDS, COUNTS, SIZE = (3, 2**62 + 5, 7), (2, 0, 3), 1500
# Triton reads TRITON_INTERPRET when a kernel is defined, so each test starts a process.
INTERPRETED = """
import torch
from model.kernels.uniform_triton import uniform_rows
from tests.model.test_uniform_triton import COUNTS, SEEDS, SIZE, check
check(uniform_rows(SEEDS, COUNTS, SIZE, torch.device("cpu")))
"""
COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from model.kernels.uniform_triton import BLOCK, _uniform
types = {"rows": "*i64", "output": "*fp32", "size": "i32", "BLOCK": "constexpr"}
assert compile(ASTSource(_uniform, types, {"BLOCK": BLOCK}), GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def philox(seed: int, index: np.ndarray) -> np.ndarray:
    """Return the first word of Philox 4x32-10 at counters (index, 0, 0, 0), by the paper."""
    low, mask = 0xFFFFFFFF, np.uint64(0xFFFFFFFF)
    a, b, c, d = index.astype(np.uint64), *(np.zeros(len(index), np.uint64) for _ in range(3))
    key_0, key_1 = seed & low, seed >> 32
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        a, b, c, d = (
            (second >> shift) ^ b ^ np.uint64(key_0),
            second & mask,
            (first >> shift) ^ d ^ np.uint64(key_1),
            first & mask,
        )
        key_0, key_1 = (key_0 + 0x9E3779B9) & low, (key_1 + 0xBB67AE85) & low
    return a.astype(np.uint32)


def check(found: torch.Tensor) -> None:
    """Check rows of SEEDS and COUNTS against the paper's formula."""
    expected = []
    for seed, count in zip(SEEDS, COUNTS, strict=True):
        words = philox(seed, np.arange(count * SIZE)).view(np.int32).astype(np.int64)
        words = np.where(words < 0, -words - 1, words)  # 31 bits
        expected.append(words.reshape(count, SIZE) * 2.0**-31)
    wanted = torch.from_numpy(np.concatenate(expected))
    assert found.shape == wanted.shape
    assert ((found >= 0) & (found < 1)).all()
    torch.testing.assert_close(found.double().cpu(), wanted, rtol=0, atol=2e-7)


def test_the_kernel_follows_the_formula() -> None:
    run(INTERPRETED, TRITON_INTERPRET="1")


def test_the_kernel_compiles_for_a_gpu(tmp_path) -> None:
    run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.gpu
def test_a_gpu_follows_the_formula() -> None:
    from model.kernels.uniform_triton import uniform_rows

    check(uniform_rows(SEEDS, COUNTS, SIZE, torch.device("cuda")))
