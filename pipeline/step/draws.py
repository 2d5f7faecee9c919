"""Random numbers of a training step, keyed by sample and purpose."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.kernels import REFERENCE, implementation
from pipeline.data.batch import Batch
from pipeline.data.keyed import keyed_seed, keyed_uniform


class Draws:
    """A source of uniform numbers that is keyed by (seed, epoch, sample key, purpose).

    A sample gets the same numbers on any rank and in any micro-batch.

    Args:
        seed: The seed of the run.
        batch: The samples; the numbers are made on the device of its images.
    """

    def __init__(self, seed: int, batch: Batch):
        self._samples = [(seed, *sample) for sample in zip(batch.epochs, batch.keys, strict=True)]
        self._device = batch.images.device

    def __call__(self, image: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Return numbers of one image, as `model.targets.Draw` describes."""
        return _uniform_rows([(*self._samples[image], purpose)], [1], shape, self._device)[0]

    def rows(self, purpose: str, counts: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Return numbers of all images, as `model.targets.draw_rows` describes."""
        keys = [(*sample, purpose) for sample in self._samples]
        return _uniform_rows(keys, counts, shape, self._device)


def _uniform_rows(
    keys: Sequence[tuple[object, ...]],
    counts: Sequence[int],
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Return `counts[i]` rows of uniform numbers for every key: float32 [Σ counts, *shape].

    A GPU with Triton makes all of them in one launch; otherwise those of key i are
    `keyed_uniform((counts[i], *shape), *keys[i])`.
    """
    if implementation("uniform", device) == REFERENCE:
        drawn = [
            keyed_uniform((count, *shape), *key, device=device)
            for key, count in zip(keys, counts, strict=True)
            if count
        ]
        return torch.cat(drawn)
    from model.kernels.uniform_triton import uniform_rows

    seeds = [keyed_seed(*key) for key in keys]
    return uniform_rows(seeds, counts, math.prod(shape), device).unflatten(1, shape)
