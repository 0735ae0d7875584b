"""Which sample is read by which rank, in which order, from which point: pure functions of a few integers.

A plan is computed, never stored. The split's samples are shared out to `canonical_nodes` spans, each a run
of pieces of shards; an epoch shuffles every span by itself, and the global order takes one sample of each
span in turn:

    place  0    1    2    3    4    5   …        (three spans)
    span   0    1    2    0    1    2   …

Rank `r` of `w` has the places `p` with `p % w == r`, so the order knows nothing of ranks or workers, and
where `w` divides the spans (or the spans divide `w`), a rank reads only spans that are congruent to it. What
follows from "the first `seen` places are done" is the rest of the epoch, for any number of ranks and any
batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

# Eight pieces a span, so that no span is made of one end of the set alone.
CHUNKS_PER_SPAN = 8

_STRETCH = 1 << 16  # samples looked through at a time, so that an epoch of any length begins at once


@dataclass(frozen=True)
class ShuffleConfig:
    """How the samples of a split are ordered.

    Attributes:
        seed: of the order.
        shuffle: a new order each epoch; without, it is the index's own where there is one span.
        canonical_nodes: spans read side by side; each node reads only some of them.
        block: samples of a span shuffled together, so that few shards are in use at a time.
    """

    seed: int = 0
    shuffle: bool = True
    canonical_nodes: int = 8
    block: int = 16_384


def assign_spans(shard_sizes: np.ndarray, order: ShuffleConfig) -> list[np.ndarray]:
    """The pieces of shards that each canonical node owns, in every epoch: int64 [pieces, 2] of (first, end).

    With shuffling, the shards (or equal pieces of the set, where they are few) are dealt out in rounds, in an
    order drawn from the seed alone, so that each span holds something of every part of the set and all have
    the same length, give or take one sample.

    >>> [s.tolist() for s in assign_spans(np.array([4, 3]), ShuffleConfig(shuffle=False, canonical_nodes=2))]
    [[[0, 4]], [[4, 7]]]

    Args:
        shard_sizes: samples of each shard, in the order of the index.
        order: seed and number of spans count; the epoch does not.
    """
    nodes, total = order.canonical_nodes, int(np.sum(shard_sizes))
    if total == 0:
        return [np.zeros((0, 2), np.int64) for _ in range(nodes)]
    ends = np.cumsum(shard_sizes, dtype=np.int64)
    edges = np.concatenate([[0], ends])
    wanted = CHUNKS_PER_SPAN * nodes
    if order.shuffle and nodes > 1 and len(edges) <= wanted:
        edges = np.arange(wanted + 1) * total // wanted
    edges = np.unique(edges)
    pieces = np.stack([edges[:-1], edges[1:]], 1)
    if order.shuffle:
        pieces = pieces[_deal_to_nodes(len(pieces), nodes, order.seed)]
    # Node c owns the places c, c + nodes, …: the first `total % nodes` of them have one more.
    lengths = np.full(nodes, total // nodes, np.int64)
    lengths[: total % nodes] += 1
    return _cut_into_spans(pieces, lengths)


def _deal_to_nodes(count: int, nodes: int, seed: int) -> np.ndarray:
    """Pieces in the order of their nodes: every `nodes` neighbors are dealt to different ones."""
    rounds = -(-count // nodes)
    drawn = np.random.default_rng([seed, 0]).permuted(np.tile(np.arange(nodes), (rounds, 1)), axis=1)
    return np.argsort(drawn.ravel()[:count], kind="stable")


def _cut_into_spans(pieces: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The row of pieces cut into runs of the given lengths; a piece on a border is parted."""
    sizes = pieces[:, 1] - pieces[:, 0]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    borders = np.concatenate([[0], np.cumsum(lengths)])
    made = []
    for first, end in pairwise(borders):
        low = int(np.searchsorted(starts, first, side="right")) - 1
        high = int(np.searchsorted(starts, end, side="left"))
        run = pieces[low:high].copy()
        if len(run) and end > first:
            run[-1, 1] = run[-1, 0] + end - starts[high - 1]
            run[0, 0] += first - starts[low]
        made.append(run if end > first else run[:0])
    return made


def epoch_order(shard_sizes: np.ndarray, order: ShuffleConfig, epoch: int) -> np.ndarray:
    """The global order of an epoch: each sample of the split once, int32 (int64 from 2³¹ samples on).

    >>> epoch_order(np.array([2, 2]), ShuffleConfig(shuffle=False, canonical_nodes=1), epoch=0).tolist()
    [0, 1, 2, 3]
    >>> sorted(epoch_order(np.array([2, 2]), ShuffleConfig(seed=3), epoch=1).tolist())
    [0, 1, 2, 3]

    Args:
        shard_sizes: samples of each shard, in the order of the index.
        order: seed, spans and block.
        epoch: which epoch.
    """
    total = int(np.sum(shard_sizes))
    made = np.empty(total, np.int32 if total < 2**31 else np.int64)
    nodes = order.canonical_nodes
    for node, pieces in enumerate(assign_spans(shard_sizes, order)):
        generator = np.random.default_rng([order.seed, 1, epoch, node])
        run = pieces[generator.permutation(len(pieces))] if order.shuffle else pieces
        samples = _sample_numbers(run, made.dtype)
        if order.shuffle:
            _shuffle_blocks(samples, order.block, generator)
        made[node::nodes] = samples
    return made


def _sample_numbers(pieces: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The sample numbers of pieces, one after the other."""
    if len(pieces) == 0:
        return np.zeros(0, dtype)
    sizes = pieces[:, 1] - pieces[:, 0]
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    numbers = np.repeat((pieces[:, 0] - before).astype(dtype), sizes)
    numbers += np.arange(len(numbers), dtype=dtype)
    return numbers


def _shuffle_blocks(samples: np.ndarray, block: int, generator: np.random.Generator) -> None:
    """Shuffle each run of `block` samples in place; where the first of several ends is drawn."""
    first = len(samples) if len(samples) <= block else int(generator.integers(block // 2, block)) + 1
    generator.shuffle(samples[:first])
    for start in range(first, len(samples), block):
        generator.shuffle(samples[start : start + block])


@lru_cache(maxsize=2)  # of 100 million samples each holds 400 MB
def cached_order(shard_sizes: tuple[int, ...], order: ShuffleConfig, epoch: int) -> np.ndarray:
    """`epoch_order`, kept for the loaders of one process that ask for the same again; read-only."""
    made = epoch_order(np.array(shard_sizes, np.int64), order, epoch)
    made.flags.writeable = False
    return made


def weighted_counts(weights: np.ndarray, order: ShuffleConfig, epoch: int) -> np.ndarray:
    """How often an epoch of weighted samples has each of them: int64 [samples], as many as there are samples.

    A sample that is due 2.3 times comes twice or three times, never more or less; which of them come once
    more is drawn anew each epoch.

    >>> weighted_counts(np.array([3.0, 1, 0, 0]), ShuffleConfig(), epoch=0).tolist()
    [3, 1, 0, 0]

    Args:
        weights: of each sample, not negative, float64 [samples].
        order: its seed counts.
        epoch: which epoch.
    """
    due = weights * (len(weights) / weights.sum())
    counts = np.floor(due).astype(np.int64)
    missing = len(weights) - int(counts.sum())
    if missing:
        generator = np.random.default_rng([order.seed, 2, epoch])
        drawn = generator.permutation(len(weights))
        rest = np.cumsum((due - counts)[drawn])
        marks = np.floor(rest * (missing / rest[-1]) + generator.random())
        marks[-1] = missing
        counts[drawn] += np.diff(marks, prepend=0).astype(np.int64)
    return counts


def mixture_order(
    orders: Sequence[Callable[[int], np.ndarray]], counts: Sequence[int], order: ShuffleConfig, epoch: int
) -> np.ndarray:
    """The global order of an epoch of several sets: int64 [places, 2] of (set, sample of that set).

    An epoch takes `counts[k]` samples of set k and the next epoch goes on there, so that each set is used
    up in epochs of its own. Samples stay in the column of places that their set's canonical node has, but
    for the last few of an epoch.

    >>> mixture_order([lambda _: np.arange(2), lambda _: np.arange(3)], [2, 1], ShuffleConfig(0, False, 1),
    ... 1).tolist()
    [[0, 0], [1, 1], [0, 1]]

    Args:
        orders: the global order of each set in an epoch of its own.
        counts: samples of each set in an epoch of the mixture.
        order: seed, shuffling and canonical nodes.
        epoch: which epoch.
    """
    found = []
    for number, (ordered, count) in enumerate(zip(orders, counts, strict=True)):
        place = np.arange(epoch * count, (epoch + 1) * count)
        length = len(ordered(0))
        own = [ordered(turn) for turn in np.unique(place // length)] if count else []
        samples = np.concatenate(own)[place - place[0] // length * length] if count else place
        column = place % length % order.canonical_nodes
        found.append(np.stack([np.full(count, number), samples, column], 1))
    made = np.concatenate(found)
    row = np.empty(len(made), np.float64)
    for node in range(order.canonical_nodes):
        mine = np.flatnonzero(made[:, 2] == node)
        row[mine] = _interleave(made[mine, 0], np.random.default_rng([order.seed, 3, epoch, node]), order)
    return made[np.lexsort([made[:, 2], row])][:, :2]


def _interleave(sets: np.ndarray, generator: np.random.Generator, order: ShuffleConfig) -> np.ndarray:
    """The row of each sample of a column: sets are mixed, and the samples of one keep their order."""
    if order.shuffle:
        turns = np.argsort(generator.permutation(sets), kind="stable")
        rows = np.empty(len(sets), np.int64)
        rows[np.argsort(sets, kind="stable")] = turns
        return rows
    sizes = np.bincount(sets)
    within = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes if size] or [np.zeros(0)])
    return np.argsort(np.argsort(within, kind="stable"), kind="stable")


def first_uses(parts: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """(place, sample) where a part is needed for the first time, of samples in this order.

    >>> list(first_uses(np.array([0, 0, 1]), np.array([1, 0, 2])))
    [(0, 1), (2, 2)]

    Args:
        parts: which part, such as a shard, each sample is in.
        numbers: samples in the order of their use.
    """
    met = np.zeros(int(parts.max()) + 1 if len(parts) else 0, bool)
    for start in range(0, len(numbers), _STRETCH):
        found, at = np.unique(parts[numbers[start : start + _STRETCH]], return_index=True)
        fresh = np.sort(at[~met[found]])
        met[found] = True
        for place in (start + fresh).tolist():
            yield place, int(numbers[place])


def remaining_batches(samples: int, *, seen: int, batch_size: int, world: int, drop_last: bool) -> int:
    """Batches that each of `world` ranks gets of the places from `seen` on.

    >>> remaining_batches(100, seen=0, batch_size=8, world=4, drop_last=False)
    4
    >>> remaining_batches(100, seen=64, batch_size=8, world=2, drop_last=True)
    2
    """
    whole, left = divmod(max(samples - seen, 0), batch_size * world)
    return whole + (left > 0 and not drop_last)


def batch_indices(
    samples: int, number: int, *, seen: int, batch_size: int, rank: int, world: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places in the global order of one rank's batch, and their weights: int64 and float32 [batch_size].

    Where the order ends, places that the rank had earlier stand in with weight 0; they cost no other shards.

    >>> [part.tolist() for part in batch_indices(5, 0, seen=0, batch_size=3, rank=1, world=2)]
    [[1, 3, 1], [1.0, 1.0, 0.0]]

    Args:
        samples: of the split.
        number: which batch, counted from `seen`.
        seen: places that all ranks together had before.
        batch_size: samples a batch of one rank.
        rank: which rank, 0 … world - 1; see `plan_rank`.
        world: how many.
    """
    start = seen + number * batch_size * world
    first = start + (rank - start) % world
    places = first + world * np.arange(batch_size, dtype=np.int64)
    weight = (places < samples).astype(np.float32)
    own = -(-(samples - rank) // world) if rank < samples else 0
    missing = places >= samples
    if missing.any():
        turn = np.arange(int(missing.sum()))
        places[missing] = rank + world * (turn % own) if own else turn % samples
    return places, weight


def plan_rank(rank: int, world: int, ranks_a_node: int) -> int:
    """A rank's number in the plan, such that the ranks of one node share spans.

    Ranks are numbered node by node; the plan deals places out round, and places that are congruent by the
    number of nodes have spans in common.

    >>> [plan_rank(rank, 4, 2) for rank in range(4)]
    [0, 2, 1, 3]
    """
    if world % ranks_a_node:
        return rank
    node, local = divmod(rank, ranks_a_node)
    return local * (world // ranks_a_node) + node
