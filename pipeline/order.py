"""Which sample comes when: a pure function of (seed, fingerprint, position).

Position p counts samples the optimiser has consumed. Sample p of the run is sample
`epoch_order(...)[p % N]` of epoch `p // N`, whatever the number of workers, nodes, micro-batches
or loader processes, so the whole state of the data stream is one integer. Global batches may
straddle epochs: every batch is full and every epoch shows every sample exactly once.
"""

import hashlib
from functools import lru_cache

import numpy as np

ORDER_VERSION = 1
WINDOW = 16  # shards shuffled together, so at most 2 * WINDOW are live at any moment


def keyed_generator(*parts: object) -> np.random.Generator:
    """A generator that depends on `parts` alone, never on rank, worker or time."""
    return np.random.Generator(np.random.Philox(key=keyed_seed(*parts)))


def keyed_seed(*parts: object) -> int:
    """63 bits of the hash of `parts`."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _permutation(count: int, *parts: object) -> np.ndarray:
    """A uniform permutation from raw generator words: numpy promises that these never change."""
    words = np.random.Philox(key=keyed_seed(*parts)).random_raw(count)
    return np.argsort(words, kind="stable")


@lru_cache(maxsize=4)
def epoch_order(
    shard_sizes: tuple[int, ...], seed: int, fingerprint: str, epoch: int, window: int = WINDOW
) -> np.ndarray:
    """Sample indices of one epoch, int64 [N]; samples are numbered shard by shard.

    Shards are permuted, then the samples of every `window` consecutive shards are shuffled
    together.
    """
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = _permutation(len(shard_sizes), ORDER_VERSION, fingerprint, seed, epoch, "shards")
    parts = []
    for first in range(0, len(shards), window):
        live = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + window]]
        samples = np.concatenate(live)
        parts.append(samples[_permutation(
            len(samples), ORDER_VERSION, fingerprint, seed, epoch, "samples", first
        )])  # fmt: skip
    return np.concatenate(parts)


def micro_batch_positions(
    position: int, *, global_batch: int, micro_batch: int, world_size: int, rank: int
):
    """Positions of this rank's micro-batches, from the step that starts at `position`, for ever.

    Step t covers positions [t·B, (t+1)·B); micro-step a of rank r takes the slice of length m
    at t·B + (a·W + r)·m. Raises ValueError if m·W does not divide B.
    """
    per_micro_step = micro_batch * world_size
    if global_batch % per_micro_step:
        raise ValueError(
            f"batch.global={global_batch} is not a multiple of "
            f"batch.micro={micro_batch} x {world_size} workers"
        )
    while True:
        for micro_step in range(global_batch // per_micro_step):
            first = position + (micro_step * world_size + rank) * micro_batch
            yield range(first, first + micro_batch)
        position += global_batch
