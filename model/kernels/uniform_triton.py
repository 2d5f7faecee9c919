# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# Triton is untyped.
"""Uniform numbers of many keys on a GPU, in one launch of a Triton kernel.

Number j of a key is a function of the key and j alone (Philox 4x32-10, Salmon et al. 2011), so it
is the same on every GPU. torch's generators divide their numbers by the size of the GPU.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # numbers of one program


def uniform_rows(
    seeds: Sequence[int], counts: Sequence[int], size: int, device: torch.device
) -> Tensor:
    """Return `counts[i]` rows of `size` numbers for every seed: float32 [Σ counts, size].

    Args:
        seeds: Keys of 63 bits.
        counts: Number of rows of each seed.
        size: Numbers of a row.
        device: A GPU.
    """
    firsts = [
        (seed, row * size)
        for seed, count in zip(seeds, counts, strict=True)
        for row in range(count)
    ]
    output = torch.empty(len(firsts), size, device=device)
    if not firsts:
        return output
    on_host = torch.tensor(firsts)
    if device.type == "cuda":  # from pinned memory, so that the host does not wait
        on_host = on_host.pin_memory().to(device, non_blocking=True)
    with torch.cuda.device_of(output):
        _uniform[len(firsts), triton.cdiv(size, BLOCK)](on_host, output, size, BLOCK=BLOCK)
    return output


@triton.jit
def _uniform(rows, output, size, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    seed, first = tl.load(rows + 2 * row), tl.load(rows + 2 * row + 1)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    number = tl.rand(seed, (first + index).to(tl.uint32))
    tl.store(output + row.to(tl.int64) * size + index, number, index < size)
