"""Random numbers that are a pure function of a key.

A key consists of the seed, the epoch, the sample and the purpose, never of a rank, a worker or the
time. A sample therefore gets the same numbers wherever and whenever it is processed.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def keyed_seed(*key: object) -> int:
    """Return 63 bits of a hash of `key`, whose parts are compared by their text."""
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def keyed_generator(*key: object) -> np.random.Generator:
    """Return a numpy generator that is seeded by `key`."""
    return np.random.Generator(np.random.Philox(key=keyed_seed(*key)))


def keyed_permutation(count: int, *key: object) -> np.ndarray:
    """Return a uniform permutation, int64 [count].

    It sorts raw words of the bit generator, because numpy guarantees that these stay the same
    between versions. It gives no such guarantee for `Generator.permutation`.
    """
    words = np.random.Philox(key=keyed_seed(*key)).random_raw(count)
    return np.argsort(words, kind="stable")


def keyed_uniform(
    shape: tuple[int, ...],
    *key: object,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return uniform numbers in [0, 1) on `device`. CPU and GPU give different numbers."""
    generator = torch.Generator(device).manual_seed(keyed_seed(*key))
    return torch.rand(shape, generator=generator, device=device, dtype=dtype)
