from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avdata.streaming.sampling import (
    ShuffleConfig,
    assign_spans,
    batch_indices,
    default_block,
    epoch_order,
    plan_rank,
    remaining_batches,
)

shards = st.lists(st.integers(1, 40), min_size=0, max_size=12).map(lambda sizes: np.array(sizes, np.int64))
orders = st.builds(
    ShuffleConfig,
    seed=st.integers(0, 2**31),
    shuffle=st.booleans(),
    canonical_nodes=st.integers(1, 16),
    block=st.integers(1, 64),
)
epochs = st.integers(0, 1000)
worlds = st.integers(1, 9)
batch_sizes = st.integers(1, 17)


def delivered(samples: int, *, seen: int, batch_size: int, world: int, drop_last: bool = False) -> list:
    """Places and weights of every rank, [world][batches] of (places, weights)."""
    count = remaining_batches(samples, seen=seen, batch_size=batch_size, world=world, drop_last=drop_last)
    return [
        [
            batch_indices(samples, n, seen=seen, batch_size=batch_size, rank=r, world=world)
            for n in range(count)
        ]
        for r in range(world)
    ]


def real_places(ranks: list) -> list[int]:
    return sorted(int(p) for batches in ranks for places, weight in batches for p in places[weight > 0])


@given(shards, orders, epochs)
def test_epoch_order_contains_every_sample_once(sizes: np.ndarray, order: ShuffleConfig, epoch: int) -> None:
    assert sorted(epoch_order(sizes, order, epoch).tolist()) == list(range(int(sizes.sum())))


@given(shards, orders, epochs, worlds, batch_sizes)
def test_batches_cover_every_sample_once_with_equal_counts_per_rank(
    sizes: np.ndarray, order: ShuffleConfig, epoch: int, world: int, batch_size: int
) -> None:
    ranks = delivered(int(sizes.sum()), seen=0, batch_size=batch_size, world=world)
    assert len({len(batches) for batches in ranks}) == 1
    assert real_places(ranks) == list(range(int(sizes.sum())))
    padding = sum(int((weight == 0).sum()) for batches in ranks for _, weight in batches)
    assert padding == len(ranks[0]) * batch_size * world - sizes.sum()


@given(st.integers(1, 300), worlds, batch_sizes)
def test_padding_repeats_samples_of_the_same_rank(samples: int, world: int, batch_size: int) -> None:
    for rank, batches in enumerate(delivered(samples, seen=0, batch_size=batch_size, world=world)):
        for places, _ in batches:
            assert ((places >= 0) & (places < samples)).all()
            assert rank >= samples or (places % world == rank).all()


@given(st.integers(0, 300), worlds, batch_sizes)
def test_drop_last_has_no_padding_and_drops_less_than_a_global_batch(
    samples: int, world: int, batch_size: int
) -> None:
    ranks = delivered(samples, seen=0, batch_size=batch_size, world=world, drop_last=True)
    assert all((weight == 1).all() for batches in ranks for _, weight in batches)
    assert samples - len(real_places(ranks)) < batch_size * world


@given(st.integers(1, 300), worlds, batch_sizes, worlds, batch_sizes, st.data())
def test_epoch_resumes_anywhere_on_any_number_of_ranks(
    samples: int, world: int, batch_size: int, other_world: int, other_size: int, data: st.DataObject
) -> None:
    before = delivered(samples, seen=0, batch_size=batch_size, world=world)
    stop = data.draw(st.integers(0, len(before[0])))
    seen = stop * batch_size * world
    after = delivered(samples, seen=seen, batch_size=other_size, world=other_world)
    head = real_places([batches[:stop] for batches in before])
    assert sorted(head + real_places(after)) == list(range(samples))
    if (other_world, other_size) == (world, batch_size):
        tail = [places.tolist() for batches in before for places, _ in batches[stop:]]
        assert [places.tolist() for batches in after for places, _ in batches] == tail


@given(st.integers(1, 300), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]))
def test_global_batch_is_independent_of_the_number_of_ranks(samples: int, world: int, other: int) -> None:
    def global_batches(ranks: list) -> list[list[int]]:
        return [real_places([[batches[n]] for batches in ranks]) for n in range(len(ranks[0]))]

    one = delivered(samples, seen=0, batch_size=8 // world, world=world)
    two = delivered(samples, seen=0, batch_size=8 // other, world=other)
    assert global_batches(one) == global_batches(two)


@given(shards, orders, epochs, st.integers(1, 4), st.integers(1, 3))
def test_node_reads_only_its_spans(
    sizes: np.ndarray, order: ShuffleConfig, epoch: int, nodes: int, local: int
) -> None:
    order = replace(order, canonical_nodes=nodes * 2)
    numbers, owned = epoch_order(sizes, order, epoch), assign_spans(sizes, order)
    world, total = nodes * local, int(sizes.sum())
    for node in range(nodes):
        mine = {
            sample
            for span in owned[node::nodes]
            for first, end in span.tolist()
            for sample in range(first, end)
        }
        for rank in range(node * local, (node + 1) * local):
            place = plan_rank(rank, world, local)
            read = {int(numbers[p]) for p in range(place, total, world)}
            assert read <= mine


@given(shards, orders)
def test_spans_divide_the_dataset_evenly(sizes: np.ndarray, order: ShuffleConfig) -> None:
    owned = [sum(end - first for first, end in span.tolist()) for span in assign_spans(sizes, order)]
    assert sum(owned) == sizes.sum()
    assert max(owned) - min(owned) <= 1


@given(st.integers(1, 6), st.integers(1, 6))
def test_plan_rank_is_a_permutation(nodes: int, local: int) -> None:
    world = nodes * local
    assert sorted(plan_rank(rank, world, local) for rank in range(world)) == list(range(world))


def test_one_span_without_shuffling_has_the_order_of_the_index() -> None:
    sizes = np.array([5, 1, 7])
    assert epoch_order(sizes, ShuffleConfig(shuffle=False, canonical_nodes=1), 4).tolist() == list(range(13))


@given(st.integers(0, 2**31), epochs)
@settings(max_examples=20)
def test_epoch_order_depends_on_seed_and_epoch(seed: int, epoch: int) -> None:
    sizes, order = np.full(8, 64), ShuffleConfig(seed=seed)
    once = epoch_order(sizes, order, epoch)
    assert (once == epoch_order(sizes, order, epoch)).all()
    assert (once != epoch_order(sizes, order, epoch + 1)).any()
    assert (once != epoch_order(sizes, replace(order, seed=seed + 1), epoch)).any()


@pytest.mark.parametrize("shard_count", [3, 7, 64, 200])
@given(st.integers(0, 2**31))
@settings(max_examples=10)
def test_neighbors_in_the_order_are_as_unrelated_as_in_a_permutation(shard_count: int, seed: int) -> None:
    sizes = np.full(shard_count, 51_200 // shard_count)
    order = epoch_order(sizes, ShuffleConfig(seed=seed), 0)
    true = np.random.default_rng(seed).permutation(len(order))
    for apart in (1, 8):
        ours = np.corrcoef(order[:-apart], order[apart:])[0, 1]
        theirs = np.corrcoef(true[:-apart], true[apart:])[0, 1]
        assert ours <= theirs + 0.05


def test_epoch_order_of_a_million_samples_is_vectorized() -> None:
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        order = epoch_order(np.full(1000, 1000), ShuffleConfig(), 0)
        batch_indices(len(order), 5, seen=0, batch_size=32, rank=3, world=8)
    finally:
        sys.setprofile(None)
    assert len(order) == 1_000_000
    assert calls < 100_000


def pairs_met(orders: list[np.ndarray], batch_size: int) -> np.ndarray:
    """Return how often each pair of samples is in one batch, int64 [pairs]."""
    total = len(orders[0])
    met = np.zeros((total, total), np.int64)
    for order in orders:
        batch_of = np.empty(total, np.int64)
        batch_of[order] = np.arange(total) // batch_size
        met += batch_of[:, None] == batch_of
    return met[np.triu_indices(total, 1)]


@pytest.mark.parametrize("epochs", [20, 200])
def test_default_order_of_a_local_set_meets_pairs_as_a_uniform_shuffle(epochs: int) -> None:
    sizes = np.full(12, 13)
    generator = np.random.default_rng(1)
    uniform = pairs_met([generator.permutation(156) for _ in range(epochs)], 4)
    config = ShuffleConfig(canonical_nodes=1, block=default_block(1))
    met = pairs_met([epoch_order(sizes, config, epoch) for epoch in range(epochs)], 4)
    # Those that never meet, and the spread of the counts.
    assert (met == 0).sum() == pytest.approx((uniform == 0).sum(), rel=0.1)
    assert met.std() == pytest.approx(uniform.std(), rel=0.1)
    spans = ShuffleConfig(canonical_nodes=8)
    divided = pairs_met([epoch_order(sizes, spans, epoch) for epoch in range(epochs)], 4)
    assert (divided == 0).mean() > 0.6
