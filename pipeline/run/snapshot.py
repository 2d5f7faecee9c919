"""A copy of the state of training in memory that another process can write to a file."""

import json
import math
import mmap
import os
import weakref
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Snapshot:
    """The bytes of a safetensors file in anonymous memory, which is used for every checkpoint.

    Args:
        layout: Tensors by name, whose shapes and types count.

    Attributes:
        memory: File descriptor of the memory.
        size: Size of the file in bytes.
    """

    def __init__(self, layout: Mapping[str, Tensor]):
        # The widest types come first, as in the files of the library, so that all are aligned.
        names = sorted(layout, key=lambda name: (-layout[name].itemsize, name))
        header, end = {}, 0
        for name in names:
            tensor, start = layout[name], end
            end = start + tensor.numel() * tensor.itemsize
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text = text.ljust(math.ceil(len(text) / 8) * 8)
        first = 8 + len(text)
        self.size = first + end
        self.memory = os.memfd_create("checkpoint")
        weakref.finalize(self, os.close, self.memory)
        os.ftruncate(self.memory, self.size)
        self.mapped = mmap.mmap(self.memory, self.size)
        self.mapped[:first] = len(text).to_bytes(8, "little") + text
        self._tensors = {
            name: _tensor(self.mapped, first + header[name]["data_offsets"][0], layout[name])
            for name in names
        }

    def fill(self, tensors: Iterable[tuple[str, Tensor]]) -> str | None:
        """Copy the tensors of a state, which have the layout.

        Returns:
            The name of the first tensor with a NaN or an infinity; None if all are finite. A sum
            is not finite if any of its terms is not. Its computation takes a quarter of the copy,
            and `isfinite` twice as long as the copy.
        """
        sums = {}
        for name, tensor in tensors:
            copy = self._tensors[name]
            assert (copy.shape, copy.dtype) == (tensor.shape, tensor.dtype), name
            copy.copy_(tensor, non_blocking=True)
            if tensor.is_floating_point():
                sums[name] = tensor.sum().double()
        assert sums.keys() <= self._tensors.keys()
        finite = torch.stack(list(sums.values())).isfinite().tolist() if sums else []
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        suspects = [name for name, is_finite in zip(sums, finite, strict=True) if not is_finite]
        return next((name for name in suspects if not self._tensors[name].isfinite().all()), None)


def _tensor(mapped: mmap.mmap, start: int, like: Tensor) -> Tensor:
    """Return a tensor in mapped memory with the shape and the type of another."""
    if not like.numel():
        return torch.empty(like.shape, dtype=like.dtype)
    flat = torch.frombuffer(mapped, dtype=like.dtype, count=like.numel(), offset=start)
    return flat.view(like.shape)
