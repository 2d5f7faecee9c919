"""Which sample comes when: exact epochs, one order for every way of dividing the work."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import WINDOW, epoch_order, keyed_generator, micro_batch_positions

SHARDS = st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(sum).map(tuple)
SEEDS = st.integers(0, 2**40)
DIVISIONS = [  # world size, micro-batch
    (1, 1), (1, 4), (1, 48), (2, 1), (2, 4), (2, 24), (3, 2), (4, 3), (6, 8), (16, 3), (48, 1),
]  # fmt: skip
GLOBAL = 48


def samples(shard_sizes, seed, position, count, window=WINDOW):
    """Sample numbers at `count` positions from `position` on, straight from the definition."""
    total = sum(shard_sizes)
    return [
        int(epoch_order(shard_sizes, seed, "f", p // total, window)[p % total])
        for p in range(position, position + count)
    ]


def global_batch_positions(world, micro, start, steps):
    """Positions of `steps` global batches, each put together from the slices of all ranks."""
    accumulation = GLOBAL // (world * micro)
    ranks = [
        micro_batch_positions(
            start, global_batch=GLOBAL, micro_batch=micro, world_size=world, rank=rank
        )
        for rank in range(world)
    ]
    return [
        [p for _ in range(accumulation) for rank in ranks for p in next(rank)]
        for _ in range(steps)
    ]  # fmt: skip


@given(SHARDS, SEEDS, st.integers(0, 5), st.integers(1, 20))
def test_every_epoch_shows_every_sample_once(shard_sizes, seed, epoch, window):
    order = epoch_order(shard_sizes, seed, "f", epoch, window)
    assert sorted(order) == list(range(sum(shard_sizes)))


@pytest.mark.parametrize(("world", "micro"), DIVISIONS)
@pytest.mark.parametrize("start", [0, GLOBAL, 7 * GLOBAL])
def test_every_division_makes_the_same_global_batches(world, micro, start):
    batches = global_batch_positions(world, micro, start, steps=5)
    first = range(start, start + 5 * GLOBAL, GLOBAL)
    assert batches == [list(range(p, p + GLOBAL)) for p in first]


@pytest.mark.parametrize(("world", "micro"), DIVISIONS)
def test_a_rank_gets_whole_micro_batches(world, micro):
    for rank in range(world):
        stream = micro_batch_positions(
            0, global_batch=GLOBAL, micro_batch=micro, world_size=world, rank=rank
        )
        assert {len(part) for part in islice(stream, 9)} == {micro}


@given(SHARDS, SEEDS, st.integers(1, 30), st.integers(0, 200))
@settings(max_examples=50)
def test_batches_that_straddle_epochs_lose_and_repeat_nothing(shard_sizes, seed, batch, steps):
    total = sum(shard_sizes)
    seen = np.bincount(samples(shard_sizes, seed, 0, batch * steps), minlength=total)
    epochs, rest = divmod(batch * steps, total)
    assert seen.min() >= epochs
    assert seen.max() <= epochs + 1
    assert (seen == epochs + 1).sum() == rest


@given(st.sampled_from(DIVISIONS), st.sampled_from(DIVISIONS), st.integers(0, 12))
def test_resuming_at_any_step_and_division_is_the_tail(before, after, step):
    whole = global_batch_positions(*before, 0, steps=15)
    assert global_batch_positions(*after, step * GLOBAL, steps=15 - step) == whole[step:]


@given(SHARDS, SEEDS, st.integers(1, 6))
def test_no_more_shards_are_live_than_the_window(shard_sizes, seed, window):
    """A shard is live from the first to the last of its samples in an epoch."""
    shard_of = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    for epoch in range(2):
        sequence = shard_of[epoch_order(shard_sizes, seed, "f", epoch, window)]
        places = [np.flatnonzero(sequence == shard) for shard in np.unique(sequence)]
        live = [sum(p[0] <= now <= p[-1] for p in places) for now in range(len(sequence))]
        assert max(live) <= window


def test_the_window_is_used_to_the_full():
    """Without mixing inside the window the bound above would hold all the same."""
    sequence = np.repeat(np.arange(64), 50)[epoch_order((50,) * 64, 1, "f", 0)]
    assert WINDOW == 16
    for first in range(0, len(sequence), 50 * WINDOW):
        group = sequence[first : first + 50 * WINDOW]
        assert len(np.unique(group)) == WINDOW
        assert len(np.unique(group[:100])) == WINDOW  # P(a shard is missing) = 16·(15/16)^100
        same = np.mean(group[1:] == group[:-1])  # expected 49/799 = 0.061, sd 0.0085
        assert same < 0.11


def test_first_places_are_uniform():
    """Over 3000 seeds each of 12 samples comes first about 250 times (chi squared, p = 1e-6)."""
    first = [epoch_order((3, 4, 5), seed, "f", 0, 3)[0] for seed in range(3000)]
    counts = np.bincount(first, minlength=12)
    assert ((counts - 250) ** 2 / 250).sum() < 49.7


@pytest.mark.parametrize(
    "changed", [{"seed": 8}, {"fingerprint": "g"}, {"epoch": 1}, {"window": 3}]
)
def test_the_order_depends_on(changed):
    plain = {"shard_sizes": (30, 50, 20, 40), "seed": 7, "fingerprint": "f", "epoch": 0}
    one = epoch_order(**plain)
    other = epoch_order(**(plain | changed))
    assert (one == other).mean() < 0.1


def test_golden_order():
    """These values may never change: a run that goes on after an update relies on them."""
    two = [epoch_order((3, 5, 2, 4), 7, "f", epoch, 2).tolist() for epoch in (0, 1)]
    assert two == [
        [5, 6, 7, 11, 3, 12, 10, 13, 4, 9, 1, 2, 8, 0],
        [7, 3, 5, 8, 6, 9, 4, 10, 12, 1, 2, 0, 11, 13],
    ]
    large = epoch_order((200,) * 600, 42, "fingerprint", 3)
    assert large[:6].tolist() == [9863, 9885, 40145, 94236, 32280, 107333]
    assert int((large * np.arange(1, len(large) + 1) % 1_000_003).sum()) == 59960933696


def test_golden_augmentation_draws():
    random = keyed_generator(42, 3, "000000000139", "augment")
    assert [random.random(), random.uniform(0.1, 2.0), random.random()] == [
        0.004659666766618553,
        1.2898890111951111,
        0.3657565244416485,
    ]


@pytest.mark.parametrize(
    ("batch", "micro", "world"), [(16, 3, 1), (16, 2, 3), (16, 16, 2), (8, 2, 8)]
)
def test_a_batch_that_does_not_divide_is_refused(batch, micro, world):
    stream = micro_batch_positions(
        0, global_batch=batch, micro_batch=micro, world_size=world, rank=0
    )
    with pytest.raises(
        ValueError, match=rf"batch\.global={batch} .*batch\.micro={micro} x {world}"
    ):
        next(stream)
