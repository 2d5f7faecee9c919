"""The order of samples: exact epochs, and one order for every division of the work."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import order as order_module
from pipeline.data.keyed import keyed_generator, keyed_permutation, keyed_uniform
from pipeline.data.order import BLOCK, WINDOW, Order, SetOrder, differences
from pipeline.data.split import (
    BatchSplit,
    batches_of_process,
    micro_batch_positions,
    split_of,
)
from pipeline.settings import BatchSettings, CriterionSettings, ModelSettings, RunSettings
from shards.errors import UsageError

SHARDS = st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(sum).map(tuple)
SEEDS = st.integers(0, 2**40)
GOLDEN_UNIFORM = [0.3101348280906677, 0.6411800384521484, 0.07541763782501221]
EVEN = [  # world size, micro-batch
    (1, 1), (1, 4), (1, 48), (2, 1), (2, 4), (2, 24), (3, 2), (4, 3), (6, 8), (16, 3), (48, 1),
]  # fmt: skip
DIVISIONS = [
    *EVEN,
    *((1, 5), (1, 64), (2, 7), (3, 5), (5, 1), (5, 4), (7, 1), (7, 2), (9, 16), (31, 1), (47, 3)),
]
GLOBAL = 48


def samples(shard_sizes, seed, position, count, window=WINDOW):
    """Return the samples at `count` positions from `position` on."""
    order = SetOrder(shard_sizes, seed, "f", window)
    return [order.at(p)[1] for p in range(position, position + count)]


def global_batch_positions(world, micro, start, steps, processes=1, global_batch=GLOBAL):
    """Return the positions of `steps` global batches, each assembled from the slices of all ranks.

    The micro-batches of a rank come from `processes` loader processes in turn.
    """
    splits = [BatchSplit(global_batch, micro, world, rank) for rank in range(world)]

    def rank_stream(split):
        parts = [
            batches_of_process(micro_batch_positions(start, split), process, processes)
            for process in range(processes)
        ]
        while True:
            for part in parts:
                yield next(part)

    ranks = [rank_stream(split) for split in splits]
    return [
        [p
         for micro_step in range(splits[0].micro_steps)
         for split, rank in zip(splits, ranks, strict=True) if micro_step < len(split.sizes)
         for p in next(rank)]
        for _ in range(steps)
    ]  # fmt: skip


@given(SHARDS, SEEDS, st.integers(0, 5), st.integers(1, 20))
def test_every_epoch_shows_every_sample_once(shard_sizes, seed, epoch, window):
    order = SetOrder(shard_sizes, seed, "f", window).epoch(epoch)
    assert sorted(order) == list(range(sum(shard_sizes)))


@given(SHARDS, SEEDS, st.integers(1, 20), st.lists(st.integers(0, 10**9), min_size=1, max_size=9))
def test_any_index_can_be_looked_up_in_any_order(shard_sizes, seed, window, indices):
    """`at` draws one window at a time; together the windows are the whole epoch."""
    order, total = SetOrder(shard_sizes, seed, "f", window), sum(shard_sizes)
    for index in indices:
        whole = SetOrder(shard_sizes, seed, "f", window).epoch(index // total)
        assert order.at(index) == (index // total, whole[index % total])


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize(("world", "micro"), DIVISIONS)
@pytest.mark.parametrize("start", [0, GLOBAL, 7 * GLOBAL])
def test_every_division_makes_the_same_global_batches(world, micro, start, processes):
    batches = global_batch_positions(world, micro, start, 5, processes)
    first = range(start, start + 5 * GLOBAL, GLOBAL)
    assert batches == [list(range(p, p + GLOBAL)) for p in first]


@pytest.mark.parametrize(("world", "micro"), EVEN)
def test_a_batch_that_divides_is_laid_out_as_ever(world, micro):
    """Runs of earlier versions resume with the same samples on the same rank."""
    steps = GLOBAL // (world * micro)
    for rank in range(world):
        split = BatchSplit(GLOBAL, micro, world, rank)
        firsts = [t * GLOBAL + (a * world + rank) * micro for t in range(3) for a in range(steps)]
        found = list(islice(micro_batch_positions(0, split), 3 * steps))
        assert found == [range(first, first + micro) for first in firsts]
        assert split.is_even
        assert split.micro_steps == len(split.sizes) == steps


@given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 100))
def test_shares_and_micro_batches_differ_by_at_most_one_sample(size, micro, world):
    world = min(world, size)
    splits = [BatchSplit(size, micro, world, rank) for rank in range(world)]
    shares = [sum(split.sizes) for split in splits]
    assert sum(shares) == size
    assert max(shares) - min(shares) <= 1
    for split in splits:
        assert max(split.sizes) <= micro
        assert max(split.sizes) - min(split.sizes) <= 1
        assert split.micro_steps == -(-max(shares) // micro)  # no more passes than necessary
        assert len(split.sizes) == split.micro_steps or (micro == 1 and not split.is_even)
        assert split.is_even == ({*split.sizes} == {micro} and len({*shares}) == 1)


@given(SHARDS, SEEDS, st.integers(1, 30), st.integers(0, 200))
@settings(max_examples=30, deadline=None)
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


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 10**7))
def test_workers_that_come_and_go_lose_and_repeat_nothing(worlds, start):
    """A global batch of 12 on 1 to 12 workers, two steps on each, then on the next."""
    position, seen = start, []
    for world in worlds:
        for batch in global_batch_positions(world, 1, position, 2, global_batch=12):
            seen += batch
        position += 24
    assert seen == list(range(start, position))


@given(SHARDS, SEEDS, st.integers(1, 6))
def test_no_more_shards_are_in_use_than_the_window(shard_sizes, seed, window):
    """A shard is in use from the first to the last of its samples in an epoch."""
    shard_of = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    for epoch in range(2):
        sequence = shard_of[SetOrder(shard_sizes, seed, "f", window).epoch(epoch)]
        found = [np.flatnonzero(sequence == shard) for shard in np.unique(sequence)]
        in_use = [sum(p[0] <= now <= p[-1] for p in found) for now in range(len(sequence))]
        assert max(in_use) <= window


def test_the_window_is_used_to_the_full():
    """The bound of the test above would also hold without any shuffling inside a window."""
    sequence = np.repeat(np.arange(64), 50)[SetOrder((50,) * 64, 1, "f").epoch(0)]
    assert WINDOW == 16
    for first in range(0, len(sequence), 50 * WINDOW):
        group = sequence[first : first + 50 * WINDOW]
        assert len(np.unique(group)) == WINDOW
        assert len(np.unique(group[:100])) == WINDOW  # P(a shard is missing) = 16·(15/16)^100
        same = np.mean(group[1:] == group[:-1])  # expected 49/799 = 0.061, sd 0.0085
        assert same < 0.11


def test_the_first_sample_is_uniform():
    """Over 3000 seeds each of 12 samples comes first about 250 times (chi squared, p = 1e-6)."""
    first = [SetOrder((3, 4, 5), seed, "f", 3).at(0)[1] for seed in range(3000)]
    counts = np.bincount(first, minlength=12)
    assert ((counts - 250) ** 2 / 250).sum() < 49.7


@pytest.mark.parametrize(
    ("changed", "epoch"),
    [({"seed": 8}, 0), ({"fingerprint": "g"}, 0), ({}, 1), ({"window": 3}, 0)],
)
def test_the_order_depends_on(changed, epoch):
    plain = {"shard_sizes": (30, 50, 20, 40), "seed": 7, "fingerprint": "f"}
    one = SetOrder(**plain).epoch(0)
    other = SetOrder(**(plain | changed)).epoch(epoch)
    assert (one == other).mean() < 0.1


def test_the_upcoming_shards_are_known():
    """The current window holds the sample at every index, the next window the first one after."""
    sizes = (3, 0, 4, 2, 5, 1, 0, 2)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    order = SetOrder(sizes, 3, "f", 3)
    total = sum(sizes)
    for index in range(3 * total):
        current, following = order.windows(index)
        assert len(current) <= 3
        assert shard_of[order.at(index)[1]] in current
        later = index
        while shard_of[order.at(later)[1]] in current and later < index + total:
            later += 1
        assert shard_of[order.at(later)[1]] in following


def test_golden_order():
    """These values must never change: a run that is resumed after an update relies on them."""
    two = [SetOrder((3, 5, 2, 4), 7, "f", 2).epoch(epoch).tolist() for epoch in (0, 1)]
    assert two == [
        [5, 6, 7, 11, 3, 12, 10, 13, 4, 9, 1, 2, 8, 0],
        [7, 3, 5, 8, 6, 9, 4, 10, 12, 1, 2, 0, 11, 13],
    ]
    large = SetOrder((200,) * 600, 42, "fingerprint").epoch(3)
    assert large[:6].tolist() == [9863, 9885, 40145, 94236, 32280, 107333]
    assert int((large * np.arange(1, len(large) + 1) % 1_000_003).sum()) == 59960933696


def test_golden_mixture():
    order = mixture([(3, 5, 2, 4), (6, 1)], [2, 1], seed=7)
    assert order.shares == [667, 333]
    found = [tuple(order.at(p)) for p in (0, 1, 2, 999, 1000, 10**7)]
    assert found == [
        (1, 0, 6), (0, 0, 6), (1, 0, 3), (1, 47, 6), (1, 47, 4), (1, 475714, 1)
    ]  # fmt: skip
    assert [order.substitute(999, n).sample for n in range(4)] == [6, 6, 3, 3]


def test_golden_tensor_draws():
    """Resumed runs rely on these values, as on the ones above."""
    numbers = keyed_uniform((3,), 42, 3, "000000000139", "match/0")
    assert numbers.tolist() == GOLDEN_UNIFORM


def test_golden_augmentation_draws():
    random = keyed_generator(42, 3, "000000000139", "augment")
    assert [random.random(), random.uniform(0.1, 2.0), random.random()] == [
        0.004659666766618553,
        1.2898890111951111,
        0.3657565244416485,
    ]


def test_more_workers_than_images_are_refused():
    BatchSplit(4, 1, 4)
    with pytest.raises(
        UsageError,
        match=r"batch\.size: 4 images are too few for scaling\.workers=5, .*; "
        r"write scaling\.workers=4 or less, or raise batch\.size",
    ):
        BatchSplit(4, 1, 5)


@pytest.mark.parametrize(
    ("batch", "micro", "world"), [(16, 3, 1), (16, 2, 3), (16, 16, 2), (8, 2, 8)]
)
@pytest.mark.parametrize(
    "dependent",
    [
        {"model": ModelSettings(norm="batch")},
        {"model": ModelSettings(norm="sync_batch")},
        {"criterion": CriterionSettings(class_normalizer="local")},
    ],
)
def test_micro_batches_are_equal_if_results_depend_on_their_size(batch, micro, world, dependent):
    sizes = BatchSettings(batch, micro)
    assert split_of(RunSettings(batch=sizes), world) == BatchSplit(batch, micro, world)
    with pytest.raises(
        UsageError,
        match=rf"batch\.size: {batch} is not a multiple of batch\.micro={micro} x "
        rf"scaling\.workers={world}; .* model\.norm=batch .*; write batch\.size=\d+",
    ):
        split_of(RunSettings(batch=sizes, **dependent), world)


def mixture(sets, weights=(), seed=1, window=2) -> Order:
    parts = [SetOrder(sizes, seed, f"set {n}", window) for n, sizes in enumerate(sets)]
    return Order(parts, weights)


WEIGHTS = st.lists(st.floats(0.5, 100), min_size=1, max_size=4)


@given(WEIGHTS, SEEDS, st.integers(0, 10**4))
@settings(max_examples=30, deadline=None)
def test_every_block_of_a_mixture_has_the_shares(weights, seed, block):
    sets = [(3, n + 1) for n in range(len(weights))]
    order = mixture(sets, weights, seed)
    turns = [order.at(p).set for p in range(block * BLOCK, (block + 1) * BLOCK)]
    assert np.bincount(turns).tolist() == order.shares
    assert (
        np.abs(np.array(order.shares) / BLOCK - np.array(weights) / sum(weights)).max() < 1 / BLOCK
    )


@given(st.lists(SHARDS, min_size=2, max_size=3), SEEDS, st.integers(0, 3 * BLOCK))
@settings(max_examples=30, deadline=None)
def test_every_set_of_a_mixture_keeps_its_own_exact_epochs(sets, seed, start):
    """The samples that are drawn from each set are its own order without a gap."""
    order = mixture(sets, seed=seed, weights=[n + 1 for n in range(len(sets))])
    whole = [order.at(p) for p in range(start + BLOCK)]
    for n, sizes in enumerate(sets):
        shown = [(ref.epoch, ref.sample) for ref in whole if ref.set == n]
        alone = SetOrder(sizes, seed, f"set {n}", 2)
        assert shown == [alone.at(p) for p in range(len(shown))]
    resumed = mixture(sets, seed=seed, weights=[n + 1 for n in range(len(sets))])
    assert [resumed.at(p) for p in range(start, start + BLOCK)] == whole[start:]


def test_without_weights_every_sample_is_as_likely():
    assert mixture([(5, 5), (30,)]).shares == [250, 750]
    assert mixture([(1,), (1,), (1,)]).shares == [334, 333, 333]


def test_the_upcoming_shards_of_a_mixture_are_known():
    sets = [(3, 4, 2, 5, 1), (2, 2, 2), (9,)]
    order = mixture(sets)
    for position in range(990, 1040):
        ref = order.at(position)
        shard = int(np.repeat(np.arange(len(sets[ref.set])), sets[ref.set])[ref.sample])
        assert (ref.set, shard) in order.upcoming_shards(position)[: 2 + 2 + 1]


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([1, 0], "not a positive finite number; give every set a weight above 0"),
        ([1, -1], "above 0"),
        ([1, float("nan")], "above 0"),
        ([1, float("inf")], "above 0"),
        ([1], "1 entries for 2 shard sets; give one weight to each"),
        ([1, 1e-9], "1/1000"),
    ],
)
def test_unusable_weights_are_refused(weights, text):
    with pytest.raises(UsageError, match=rf"data\.weights: .*{text}"):
        mixture([(3,), (4,)], weights)


def test_substitutes_are_of_the_same_set_and_epoch():
    order = mixture([(3, 4), (50, 50)])
    for position in range(0, 3000, 7):
        ref, drawn = order.at(position), [order.substitute(position, n) for n in range(1, 9)]
        assert {(other.set, other.epoch) for other in drawn} == {(ref.set, ref.epoch)}
        assert all(0 <= other.sample < order.sets[ref.set].count for other in drawn)
    drawn = [order.substitute(p, 1).sample for p in range(3000) if order.at(p).set == 1]
    assert len(set(drawn)) > 90  # of 100, in 2800 draws


def test_the_identity_of_an_order_names_everything_it_depends_on():
    one = mixture([(3, 4)]).identity()
    assert one == {
        "version": 1,
        "window": 2,
        "seed": 1,
        "fingerprint": ["set 0"],
        "samples": [7],
        "shares": [1000],
    }
    two = mixture([(3, 4), (5,)], [3, 1]).identity()
    assert (two["fingerprint"], two["samples"]) == (["set 0", "set 1"], [7, 5])
    assert two["shares"] == [750, 250]
    assert differences(one, one) == []
    assert differences(one, one | {"window": 3, "seed": 5}) == ["window: 2 -> 3", "seed: 1 -> 5"]
    assert differences(two, mixture([(3, 4), (5,)], [1, 1]).identity()) == [
        "shares: [750, 250] -> [500, 500]"
    ]
    assert "shares: [1000] -> [750, 250]" in differences(one, two)


def test_an_older_identity_of_one_set_holds_a_string_and_a_number():
    one = mixture([(3, 4)]).identity()
    older = {"version": 1, "window": 2, "seed": 1, "fingerprint": "set 0", "samples": 7}
    assert differences(older, one) == []
    assert differences(older | {"samples": 8}, one) == ["samples: [8] -> [7]"]
    two = mixture([(3, 4), (5,)], [3, 1]).identity()
    assert "fingerprint: ['set 0'] -> ['set 0', 'set 1']" in differences(older, two)


def test_only_the_windows_in_use_are_drawn(monkeypatch):
    """The first batch at any position of 20 million samples in 25,000 shards draws two windows."""
    drawn = []

    def recorded(count, *key):
        drawn.append(count)
        return keyed_permutation(count, *key)

    monkeypatch.setattr(order_module, "keyed_permutation", recorded)
    order = Order([SetOrder((800,) * 25_000, 1, "f")])
    for position in (0, 10_000_000, 10_000_000_000):
        drawn.clear()
        for p in range(position, position + 16):
            order.at(p)
        assert sum(drawn) <= 2 * 25_000 + 2 * WINDOW * 800
