"""Which sample comes when: a pure function of (seed, fingerprints, window, shares, position).

Position p counts samples the optimizer has consumed. Which sample stands there does not depend on
the number of workers, nodes, micro-batches or loader processes, so the whole state of the data
stream is one integer. Global batches may straddle epochs: every batch is full and every epoch of a
shard set shows each of its samples exactly once. Nothing is drawn for positions that are not asked
for, so a run of 20 million samples goes on at any position as fast as it began.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from shards.errors import UsageError

ORDER_VERSION = 1
WINDOW = 16  # shards shuffled together
BLOCK = 1000  # positions in which every set of a mixture has its exact share


class Place(NamedTuple):
    """One sample: number of its shard set, that set's epoch, and the sample's row in its index."""

    set: int
    epoch: int
    sample: int


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


class SetOrder:
    """The order of one shard set, epoch after epoch.

    In every epoch the shards are permuted, then the samples of every `window` consecutive shards
    are shuffled together. So at most `window` shards are in use at any place, twice as many where
    a batch straddles two windows; a window of all shards is the uniform shuffle. Samples are
    numbered shard by shard; `shard_sizes` counts them.
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

    def at(self, place: int) -> tuple[int, int]:
        """Epoch and sample at the place-th sample of this set, counted over all epochs."""
        epoch, index = divmod(place, self.count)
        ends = self._shards(epoch)[1]
        number = bisect_right(ends, index)
        return epoch, int(self._samples(epoch, number)[index - ends[number - 1]])

    def epoch(self, epoch: int) -> np.ndarray:
        """All samples of an epoch, int64 [count]."""
        windows = range(1, len(self._shards(epoch)[1]))
        return np.concatenate([self._draw_samples(epoch, number) for number in windows])

    def live(self, place: int) -> tuple[list[int], list[int]]:
        """The shards of the window that holds `place`, and those of the next window."""
        epoch, index = divmod(place, self.count)
        shards, ends = self._shards(epoch)
        end = bisect_right(ends, index) * self.window
        now, ahead = shards[end - self.window : end], shards[end : end + self.window]
        if not len(ahead):
            ahead = self._shards(epoch + 1)[0][: self.window]
        return now.tolist(), ahead.tolist()

    def substitute(self, position: int, attempt: int) -> int:
        """The sample to take, at the attempt-th try, for a damaged one at `position`."""
        key = (ORDER_VERSION, self.fingerprint, self.seed, "substitute", position, attempt)
        return keyed_seed(*key) % self.count

    def _draw_shards(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """The epoch's order of shards, and the places where its windows end, from 0 on."""
        shards = _permutation(len(self.sizes), *self._key(epoch), "shards")
        ends = np.cumsum(self.sizes[shards])
        last = np.arange(self.window, len(shards) + self.window, self.window) - 1
        return shards, [0, *ends[last.clip(max=len(shards) - 1)].tolist()]

    def _draw_samples(self, epoch: int, number: int) -> np.ndarray:
        """The samples of the number-th window of an epoch (from 1), shuffled."""
        first = (number - 1) * self.window
        live = self._shards(epoch)[0][first : first + self.window]
        samples = np.concatenate([np.arange(n) + s for n, s in zip(
            self.sizes[live], self.starts[live], strict=True
        )])  # fmt: skip
        return samples[_permutation(len(samples), *self._key(epoch), "samples", first)]

    def _key(self, epoch: int) -> tuple[object, ...]:
        return ORDER_VERSION, self.fingerprint, self.seed, epoch


class Order:
    """The order of a run: one shard set, or several that take turns by weight.

    In every BLOCK positions, set n stands at `shares[n]` of them, drawn anew each block; an epoch
    is a set's own. Without weights every sample is as likely as any other. Raises UsageError for
    weights that give a set no position in a block.
    """

    def __init__(self, sets: Sequence[SetOrder], weights: Sequence[float] = ()):
        if weights and len(weights) != len(sets):
            raise UsageError(f"data.weights={list(weights)}: give one to each of {len(sets)} sets")
        self.sets = list(sets)
        self.shares = _shares(weights or [part.count for part in sets])
        self._deal = lru_cache(2)(self._draw_block)

    def at(self, position: int) -> Place:
        """The sample at `position`."""
        if len(self.sets) == 1:
            return Place(0, *self.sets[0].at(position))
        block, index = divmod(position, BLOCK)
        which, before = self._deal(block)
        turn = int(which[index])
        return Place(turn, *self.sets[turn].at(block * self.shares[turn] + int(before[index])))

    def substitute(self, position: int, attempt: int) -> Place:
        """What takes the place of a damaged sample: one of the same set and epoch."""
        turn, epoch, _ = self.at(position)
        return Place(turn, epoch, self.sets[turn].substitute(position, attempt))

    def live(self, position: int) -> list[tuple[int, int]]:
        """(set, shard) of the windows that hold `position`, then of the next window of each set."""
        block, index = divmod(position, BLOCK)
        places = [position]
        if len(self.sets) > 1:
            gone = np.bincount(self._deal(block)[0][:index], minlength=len(self.sets))
            places = [block * s + int(n) for s, n in zip(self.shares, gone, strict=True)]
        windows = [part.live(place) for part, place in zip(self.sets, places, strict=True)]
        pairs = ((turn, s) for when in (0, 1) for turn, w in enumerate(windows) for s in w[when])
        return list(dict.fromkeys(pairs))

    def identity(self) -> dict[str, Any]:
        """What the order is a function of, beside the position; plain JSON values."""
        fingerprints = [part.fingerprint for part in self.sets]
        counts = [part.count for part in self.sets]
        one = {
            "version": ORDER_VERSION,
            "window": self.sets[0].window,
            "seed": self.sets[0].seed,
            "fingerprint": fingerprints[0],
            "samples": counts[0],
        }
        if len(self.sets) == 1:
            return one
        return one | {"fingerprint": fingerprints, "samples": counts, "shares": self.shares}

    def _draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For a block's positions: whose turn it is, and how often it was so before in it."""
        which = np.repeat(np.arange(len(self.sets)), self.shares)
        before = np.concatenate([np.arange(share) for share in self.shares])
        fingerprints = (part.fingerprint for part in self.sets)
        seed = self.sets[0].seed
        which = which[_permutation(BLOCK, ORDER_VERSION, *fingerprints, seed, block, "mixture")]
        before[np.argsort(which, kind="stable")] = before.copy()
        return which, before


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key: before -> now` for all in which two identities of an order differ."""
    keys = dict.fromkeys((*before, *now))
    return [f"{k}: {before.get(k)} -> {now.get(k)}" for k in keys if before.get(k) != now.get(k)]


def _shares(weights: Sequence[float]) -> list[int]:
    """BLOCK divided as the weights are, by largest remainders."""
    if not all(0 < weight < np.inf for weight in weights):
        raise UsageError(f"data.weights={list(weights)}: every weight must be a number above 0")
    exact = np.array(weights, float) * BLOCK / sum(weights)
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: BLOCK - shares.sum()]] += 1
    if min(shares) == 0:
        raise UsageError(
            f"data.weights={list(weights)}: the least of them is under 1/{BLOCK} of their sum; "
            "raise it, or leave that set out"
        )
    return shares.tolist()


def micro_batch_positions(
    position: int, *, global_batch: int, micro_batch: int, world_size: int, rank: int
) -> Iterator[range]:
    """Positions of this rank's micro-batches, from the step that starts at `position`, for ever.

    Step t covers positions [t·B, (t+1)·B); micro-step a of rank r takes the slice of length m
    at t·B + (a·W + r)·m. Raises ValueError if m·W does not divide B.
    """
    per_micro_step = micro_batch * world_size
    if global_batch % per_micro_step:
        raise ValueError(
            f"batch.size={global_batch} is not a multiple of "
            f"batch.micro={micro_batch} x {world_size} workers"
        )
    while True:
        for micro_step in range(global_batch // per_micro_step):
            first = position + (micro_step * world_size + rank) * micro_batch
            yield range(first, first + micro_batch)
        position += global_batch


def dealt(batches: Iterator[range], turn: int, turns: int) -> Iterator[range]:
    """The part of loader process `turn` of `turns`: torch's loader takes from them in turn."""
    return islice(batches, turn, None, turns)
