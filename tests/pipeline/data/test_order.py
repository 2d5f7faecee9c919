"""Which sample comes when: exact epochs, one order for every way of dividing the work."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import order as order_module
from pipeline.data.order import (
    BLOCK,
    WINDOW,
    Order,
    SetOrder,
    dealt,
    differences,
    keyed_generator,
    micro_batch_positions,
)
from shards.errors import UsageError

SHARDS = st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(sum).map(tuple)
SEEDS = st.integers(0, 2**40)
DIVISIONS = [  # world size, micro-batch
    (1, 1), (1, 4), (1, 48), (2, 1), (2, 4), (2, 24), (3, 2), (4, 3), (6, 8), (16, 3), (48, 1),
]  # fmt: skip
GLOBAL = 48


def samples(shard_sizes, seed, position, count, window=WINDOW):
    """Sample numbers at `count` positions from `position` on."""
    order = SetOrder(shard_sizes, seed, "f", window)
    return [order.at(p)[1] for p in range(position, position + count)]


def global_batch_positions(world, micro, start, steps, processes=1, global_batch=GLOBAL):
    """Positions of `steps` global batches, each put together from the slices of all ranks.

    Every rank's micro-batches come from `processes` loader processes, which are asked in turn.
    """
    accumulation = global_batch // (world * micro)

    def rank_stream(rank):
        parts = [
            dealt(
                micro_batch_positions(
                    start,
                    global_batch=global_batch,
                    micro_batch=micro,
                    world_size=world,
                    rank=rank,
                ),
                turn,
                processes,
            )
            for turn in range(processes)
        ]
        while True:
            for part in parts:
                yield next(part)

    ranks = [rank_stream(rank) for rank in range(world)]
    return [
        [p for _ in range(accumulation) for rank in ranks for p in next(rank)]
        for _ in range(steps)
    ]  # fmt: skip


@given(SHARDS, SEEDS, st.integers(0, 5), st.integers(1, 20))
def test_every_epoch_shows_every_sample_once(shard_sizes, seed, epoch, window):
    order = SetOrder(shard_sizes, seed, "f", window).epoch(epoch)
    assert sorted(order) == list(range(sum(shard_sizes)))


@given(SHARDS, SEEDS, st.integers(1, 20), st.lists(st.integers(0, 10**9), min_size=1, max_size=9))
def test_any_place_can_be_asked_for_in_any_order(shard_sizes, seed, window, places):
    """Window by window, as `at` draws it, is the whole epoch cut in pieces."""
    order, total = SetOrder(shard_sizes, seed, "f", window), sum(shard_sizes)
    for place in places:
        whole = SetOrder(shard_sizes, seed, "f", window).epoch(place // total)
        assert order.at(place) == (place // total, whole[place % total])


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize(("world", "micro"), DIVISIONS)
@pytest.mark.parametrize("start", [0, GLOBAL, 7 * GLOBAL])
def test_every_division_makes_the_same_global_batches(world, micro, start, processes):
    batches = global_batch_positions(world, micro, start, 5, processes)
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


@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=6), st.integers(0, 10**7))
def test_workers_that_come_and_go_lose_and_repeat_nothing(worlds, start):
    """A global batch of 12 on 4, 2, 3 or 1 workers, two steps on each, then on the next."""
    position, seen = start, []
    for world in worlds:
        for batch in global_batch_positions(world, 1, position, 2, global_batch=12):
            seen += batch
        position += 24
    assert seen == list(range(start, position))


@given(SHARDS, SEEDS, st.integers(1, 6))
def test_no_more_shards_are_live_than_the_window(shard_sizes, seed, window):
    """A shard is live from the first to the last of its samples in an epoch."""
    shard_of = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    for epoch in range(2):
        sequence = shard_of[SetOrder(shard_sizes, seed, "f", window).epoch(epoch)]
        places = [np.flatnonzero(sequence == shard) for shard in np.unique(sequence)]
        live = [sum(p[0] <= now <= p[-1] for p in places) for now in range(len(sequence))]
        assert max(live) <= window


def test_the_window_is_used_to_the_full():
    """Without mixing inside the window the bound above would hold all the same."""
    sequence = np.repeat(np.arange(64), 50)[SetOrder((50,) * 64, 1, "f").epoch(0)]
    assert WINDOW == 16
    for first in range(0, len(sequence), 50 * WINDOW):
        group = sequence[first : first + 50 * WINDOW]
        assert len(np.unique(group)) == WINDOW
        assert len(np.unique(group[:100])) == WINDOW  # P(a shard is missing) = 16·(15/16)^100
        same = np.mean(group[1:] == group[:-1])  # expected 49/799 = 0.061, sd 0.0085
        assert same < 0.11


def test_first_places_are_uniform():
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


def test_the_shards_to_come_are_known():
    """At every place: the shard of its sample, and of all samples up to a window further."""
    sizes = (3, 0, 4, 2, 5, 1, 0, 2)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    order = SetOrder(sizes, 3, "f", 3)
    total = sum(sizes)
    for place in range(3 * total):
        now, ahead = order.live(place)
        assert len(now) <= 3
        assert shard_of[order.at(place)[1]] in now
        following = place
        while shard_of[order.at(following)[1]] in now and following < place + total:
            following += 1
        assert shard_of[order.at(following)[1]] in ahead


def test_golden_order():
    """These values may never change: a run that goes on after an update relies on them."""
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
    places = [tuple(order.at(p)) for p in (0, 1, 2, 999, 1000, 10**7)]
    assert places == [
        (1, 0, 6), (0, 0, 6), (1, 0, 3), (1, 47, 6), (1, 47, 4), (1, 475714, 1)
    ]  # fmt: skip
    assert [order.substitute(999, n).sample for n in range(4)] == [6, 6, 3, 3]


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
    """From any position on, each set shows its own order without a gap, as if it were alone."""
    order = mixture(sets, seed=seed, weights=[n + 1 for n in range(len(sets))])
    whole = [order.at(p) for p in range(start + BLOCK)]
    for n, sizes in enumerate(sets):
        shown = [(place.epoch, place.sample) for place in whole if place.set == n]
        alone = SetOrder(sizes, seed, f"set {n}", 2)
        assert shown == [alone.at(p) for p in range(len(shown))]
    resumed = mixture(sets, seed=seed, weights=[n + 1 for n in range(len(sets))])
    assert [resumed.at(p) for p in range(start, start + BLOCK)] == whole[start:]


def test_without_weights_every_sample_is_as_likely():
    assert mixture([(5, 5), (30,)]).shares == [250, 750]
    assert mixture([(1,), (1,), (1,)]).shares == [334, 333, 333]


def test_the_shards_to_come_of_a_mixture_are_known():
    sets = [(3, 4, 2, 5, 1), (2, 2, 2), (9,)]
    order = mixture(sets)
    for position in range(990, 1040):
        place = order.at(position)
        shard = int(np.repeat(np.arange(len(sets[place.set])), sets[place.set])[place.sample])
        assert (place.set, shard) in order.live(position)[: 2 + 2 + 1]


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([1, 0], "above 0"),
        ([1, -1], "above 0"),
        ([1, float("nan")], "above 0"),
        ([1, float("inf")], "above 0"),
        ([1], "one to each of 2 sets"),
        ([1, 1e-9], "1/1000"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights, text):
    with pytest.raises(UsageError, match=rf"data\.weights=.*{text}"):
        mixture([(3,), (4,)], weights)


def test_substitutes_are_of_the_same_set_and_epoch():
    order = mixture([(3, 4), (50, 50)])
    for position in range(0, 3000, 7):
        place, drawn = order.at(position), [order.substitute(position, n) for n in range(1, 9)]
        assert {(other.set, other.epoch) for other in drawn} == {(place.set, place.epoch)}
        assert all(0 <= other.sample < order.sets[place.set].count for other in drawn)
    drawn = [order.substitute(p, 1).sample for p in range(3000) if order.at(p).set == 1]
    assert len(set(drawn)) > 90  # of 100, in 2800 draws


def test_the_identity_of_an_order_names_what_it_is_made_of():
    one = mixture([(3, 4)]).identity()
    assert one == {"version": 1, "window": 2, "seed": 1, "fingerprint": "set 0", "samples": 7}
    two = mixture([(3, 4), (5,)], [3, 1]).identity()
    assert (two["fingerprint"], two["samples"]) == (["set 0", "set 1"], [7, 5])
    assert two["shares"] == [750, 250]
    assert differences(one, one) == []
    assert differences(one, one | {"window": 3, "seed": 5}) == ["window: 2 -> 3", "seed: 1 -> 5"]
    assert differences(two, mixture([(3, 4), (5,)], [1, 1]).identity()) == [
        "shares: [750, 250] -> [500, 500]"
    ]
    assert "shares: None -> [750, 250]" in differences(one, two)


def test_nothing_is_drawn_but_what_is_asked_for(monkeypatch):
    """Of 20 million samples in 25,000 shards, the first batch at any position is two windows."""
    drawn = []
    permutation = order_module._permutation
    monkeypatch.setattr(
        order_module, "_permutation", lambda n, *key: drawn.append(n) or permutation(n, *key)
    )
    order = Order([SetOrder((800,) * 25_000, 1, "f")])
    for position in (0, 10_000_000, 10_000_000_000):
        drawn.clear()
        for p in range(position, position + 16):
            order.at(p)
        assert sum(drawn) <= 2 * 25_000 + 2 * WINDOW * 800
