"""The order of the samples of a run.

It is a pure function of (seed, fingerprints, sizes, window, shares, position). A position counts
the samples that the optimizer has consumed. The sample at a position does not depend on the number
of workers, nodes, micro-batches or loader processes, so one integer is the whole state of the data
stream. Global batches may straddle epochs: every batch is full, and every
epoch of a shard set contains each of its samples exactly once. Only the windows that are used are
shuffled, so a run on 20 million samples resumes at any position as fast as it started.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.keyed import keyed_permutation, keyed_seed
from pipeline.data.settings import WINDOW
from shards.errors import UsageError

ORDER_VERSION = 1
BLOCK = 1000  # positions in which every set of a mixture has its exact share


class SampleRef(NamedTuple):
    """One sample of one epoch.

    Attributes:
        set: Index of the shard set.
        epoch: Epoch of that set, from 0.
        sample: Row of the sample in the index of that set.
    """

    set: int
    epoch: int
    sample: int


class SetOrder:
    """The order of the samples of one shard set, epoch after epoch.

    Every epoch permutes the shards, then shuffles together the samples of every `window`
    consecutive shards. At most `window` shards are therefore in use at any position, and at most
    twice as many if a batch straddles two windows. If the window holds all shards, the shuffle is
    uniform.

    Args:
        shard_sizes: Number of samples in each shard. Samples are numbered shard by shard.
        seed: Seed of the run.
        fingerprint: Identifier of the content of the shard set.
        window: Number of shards that are shuffled together.
    """

    def __init__(
        self, shard_sizes: Sequence[int], seed: int, fingerprint: str, window: int = WINDOW
    ):
        self.sizes = np.asarray(shard_sizes, np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.count = int(self.sizes.sum())
        self.fingerprint, self.seed, self.window = fingerprint, seed, window
        self._shards = lru_cache(2)(self._draw_shards)
        self._samples = lru_cache(2)(self._draw_samples)

    def at(self, index: int) -> tuple[int, int]:
        """Return the epoch and the sample at `index`, which counts samples over all epochs."""
        epoch, offset = divmod(index, self.count)
        ends = self._shards(epoch)[1]
        number = bisect_right(ends, offset)
        return epoch, int(self._samples(epoch, number)[offset - ends[number - 1]])

    def epoch(self, epoch: int) -> np.ndarray:
        """Return all samples of an epoch in order, int64 [count]."""
        windows = range(1, len(self._shards(epoch)[1]))
        return np.concatenate([self._draw_samples(epoch, number) for number in windows])

    def windows(self, index: int) -> tuple[list[int], list[int]]:
        """Return the shards of the window that contains `index`, and those of the next window."""
        epoch, offset = divmod(index, self.count)
        shards, ends = self._shards(epoch)
        end = bisect_right(ends, offset) * self.window
        current, following = shards[end - self.window : end], shards[end : end + self.window]
        if not len(following):
            following = self._shards(epoch + 1)[0][: self.window]
        return current.tolist(), following.tolist()

    def substitute(self, position: int, attempt: int) -> int:
        """Return the sample to try at the given attempt if the one at `position` is damaged."""
        key = (ORDER_VERSION, self.fingerprint, self.seed, "substitute", position, attempt)
        return keyed_seed(*key) % self.count

    def _draw_shards(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """Return the shards of an epoch in order, and the sample counts at the window borders.

        Entry n of the second is the number of samples before window n + 1, so it starts with 0.
        """
        shards = keyed_permutation(len(self.sizes), *self._key(epoch), "shards")
        ends = np.cumsum(self.sizes[shards])
        last = np.arange(self.window, len(shards) + self.window, self.window) - 1
        return shards, [0, *ends[last.clip(max=len(shards) - 1)].tolist()]

    def _draw_samples(self, epoch: int, number: int) -> np.ndarray:
        """Return the samples of a window of an epoch, shuffled. Windows are numbered from 1."""
        first = (number - 1) * self.window
        shards = self._shards(epoch)[0][first : first + self.window]
        samples = np.concatenate([np.arange(n) + s for n, s in zip(
            self.sizes[shards], self.starts[shards], strict=True
        )])  # fmt: skip
        return samples[keyed_permutation(len(samples), *self._key(epoch), "samples", first)]

    def _key(self, epoch: int) -> tuple[object, ...]:
        return ORDER_VERSION, self.fingerprint, self.seed, epoch


class Order:
    """The order of a run on one shard set, or on several that are mixed by weight.

    In every block of `BLOCK` positions, exactly `shares[n]` samples come from set n, and the turns
    of the sets are shuffled in each block. Each set keeps its own epochs: the samples that are
    drawn from it are those of its `SetOrder`, without a gap.

    Args:
        sets: The orders of the shard sets.
        weights: The weight of each set. If empty, a set weighs as much as it has samples, so that
            every sample is equally likely.

    Raises:
        UsageError: The number of weights is wrong, a weight is not positive and finite, or a
            weight is so small that its set would get no position in a block.
    """

    def __init__(self, sets: Sequence[SetOrder], weights: Sequence[float] = ()):
        if weights and len(weights) != len(sets):
            raise UsageError(
                f"{list(weights)} has {len(weights)} entries for {len(sets)} shard sets",
                where="data.weights",
                fix="give one weight to each set of data.train",
            )
        self.sets = list(sets)
        self.shares = _shares(weights or [order.count for order in sets])
        self._turns = lru_cache(2)(self._draw_turns)

    def at(self, position: int) -> SampleRef:
        """Return the sample at `position`."""
        if len(self.sets) == 1:
            return SampleRef(0, *self.sets[0].at(position))
        block, offset = divmod(position, BLOCK)
        turns, earlier = self._turns(block)
        chosen = int(turns[offset])
        index = block * self.shares[chosen] + int(earlier[offset])
        return SampleRef(chosen, *self.sets[chosen].at(index))

    def substitute(self, position: int, attempt: int) -> SampleRef:
        """Return a sample of the same set and epoch to use instead of a damaged one."""
        chosen, epoch, _ = self.at(position)
        return SampleRef(chosen, epoch, self.sets[chosen].substitute(position, attempt))

    def upcoming_shards(self, position: int) -> list[tuple[int, int]]:
        """Return the shards to prefetch at `position` as pairs (set, shard), most urgent first.

        First come the shards of the current window of every set, then those of the next window of
        every set.
        """
        block, offset = divmod(position, BLOCK)
        indices = [position]
        if len(self.sets) > 1:
            # index in each set: the set's positions in earlier blocks and those so far in this one
            turns = np.bincount(self._turns(block)[0][:offset], minlength=len(self.sets))
            indices = [block * s + int(n) for s, n in zip(self.shares, turns, strict=True)]
        windows = [order.windows(index) for order, index in zip(self.sets, indices, strict=True)]
        pairs = (
            (number, shard)
            for which in (0, 1)
            for number, window in enumerate(windows)
            for shard in window[which]
        )
        return list(dict.fromkeys(pairs))

    def identity(self) -> dict[str, Any]:
        """Return everything that the order depends on except the position, as JSON values."""
        return {
            "version": ORDER_VERSION,
            "window": self.sets[0].window,
            "seed": self.sets[0].seed,
            "fingerprint": [order.fingerprint for order in self.sets],
            "samples": [order.count for order in self.sets],
            "shares": self.shares,
        }

    def _draw_turns(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw which set each position of a block takes its sample from.

        Returns:
            The index of the set, int64 [BLOCK], and the number of earlier positions of the block
            that draw from the same set, int64 [BLOCK].
        """
        ordered = np.repeat(np.arange(len(self.sets)), self.shares)
        fingerprints = (order.fingerprint for order in self.sets)
        key = (ORDER_VERSION, *fingerprints, self.sets[0].seed, block, "mixture")
        turns = ordered[keyed_permutation(BLOCK, *key)]
        # A stable argsort of the turns lists the positions of set 0 in ascending order, then those
        # of set 1, and so on. Writing 0, 1, 2, ... for each set through it gives every position
        # the number of earlier turns of its set. Shares [3, 2] with turns [1 0 0 1 0]: the argsort
        # is [1 2 4 0 3], the values are [0 1 2 0 1], and the result is [0 0 1 1 2].
        earlier = np.empty(BLOCK, np.int64)
        counts = np.concatenate([np.arange(share) for share in self.shares])
        earlier[np.argsort(turns, kind="stable")] = counts
        return turns, earlier


def differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Return `key: stored -> current` for every key in which two identities of an order differ.

    Args:
        stored: The identity in a checkpoint. Older checkpoints describe a single set by a string
            and a number instead of lists of one.
        current: The identity of this run.
    """
    if isinstance(stored.get("fingerprint"), str):
        lists = {key: [stored[key]] for key in ("fingerprint", "samples")}
        stored = stored | lists | {"shares": [BLOCK]}
    keys = dict.fromkeys((*stored, *current))
    return [
        f"{key}: {stored.get(key)} -> {current.get(key)}"
        for key in keys
        if stored.get(key) != current.get(key)
    ]


def _shares(weights: Sequence[float]) -> list[int]:
    """Divide BLOCK in proportion to the weights, by largest remainders."""
    if not all(0 < weight < np.inf for weight in weights):
        raise UsageError(
            f"{list(weights)} has a weight that is not a positive finite number",
            where="data.weights",
            fix="give every set a weight above 0",
        )
    exact = np.array(weights, float) * BLOCK / sum(weights)
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: BLOCK - shares.sum()]] += 1
    if min(shares) == 0:
        raise UsageError(
            f"the smallest weight of {list(weights)} is less than 1/{BLOCK} of their sum",
            where="data.weights",
            fix="raise it, or remove its set from data.train",
        )
    return shares.tolist()
