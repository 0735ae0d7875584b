"""Order of the samples in an epoch and their division among ranks: pure functions of a few integers.

A plan is computed, never stored. The samples of a split are divided into `canonical_nodes` spans, each a
sequence of shard chunks. An epoch shuffles each span separately, and the global order interleaves the spans:

    position  0    1    2    3    4    5   …        (three spans)
    span      0    1    2    0    1    2   …

Rank `r` of `w` reads the positions `p` with `p % w == r`, so the order does not depend on ranks or workers.
If `w` divides the number of spans (or vice versa), a rank reads only spans congruent to it. The rest of an
epoch follows from `seen`, the number of positions read so far, for any number of ranks and any batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from avdata.errors import UsageError, did_you_mean
from avdata.shards.format import index_schema

BLOCK_SAMPLES = 131_072  # shuffled together, over all spans: 512 KB of numbers fit in L2 cache

CHUNKS_PER_SPAN = 8  # so that each span covers several regions of the dataset

_SCAN_SAMPLES = 1 << 16  # samples scanned at a time, so that an epoch of any length starts immediately


@dataclass(frozen=True)
class ShuffleConfig:
    """Settings that determine the order of the samples of a split.

    Attributes:
        seed: Seed of the order.
        shuffle: Use a new order each epoch. Without it, a single span has the order of the index.
        canonical_nodes: Number of spans read in parallel; each node reads only some of them. The samples of
            a span never share a batch of at most as many samples as there are spans.
        block: Number of samples of a span shuffled together; it limits the shards in use at a time.
    """

    seed: int = 0
    shuffle: bool = True
    canonical_nodes: int = 8
    block: int = 16_384


def default_block(canonical_nodes: int) -> int:
    """Return the block size that shuffles 131,072 samples of all spans together, or more.

    >>> default_block(1), default_block(8), default_block(64)
    (131072, 16384, 16384)
    """
    return max(ShuffleConfig.block, BLOCK_SAMPLES // canonical_nodes)


def assign_spans(shard_sizes: np.ndarray, order: ShuffleConfig) -> list[np.ndarray]:
    """Return the shard chunks of each span, in every epoch: int64 [chunks, 2] of (first, end).

    With shuffling, the shards (or equal chunks of the dataset, if there are few shards) are assigned in
    rounds, in an order that depends only on the seed. Each span then covers all regions of the dataset, and
    the lengths of the spans differ by at most one sample.

    >>> [s.tolist() for s in assign_spans(np.array([4, 3]), ShuffleConfig(shuffle=False, canonical_nodes=2))]
    [[[0, 4]], [[4, 7]]]

    Args:
        shard_sizes: Number of samples of each shard, in the order of the index.
        order: Seed, shuffling and number of spans are used.
    """
    nodes, total = order.canonical_nodes, int(np.sum(shard_sizes))
    if total == 0:
        return [np.zeros((0, 2), np.int64) for _ in range(nodes)]
    ends = np.cumsum(shard_sizes, dtype=np.int64)
    edges = np.concatenate([[0], ends])
    num_chunks = CHUNKS_PER_SPAN * nodes
    if order.shuffle and nodes > 1 and len(edges) <= num_chunks:
        edges = np.arange(num_chunks + 1) * total // num_chunks
    edges = np.unique(edges)
    chunks = np.stack([edges[:-1], edges[1:]], 1)
    if order.shuffle:
        chunks = chunks[_deal_to_nodes(len(chunks), nodes, order.seed)]
    # Node c owns the positions c, c + nodes, …: the first `total % nodes` of them have one more.
    lengths = np.full(nodes, total // nodes, np.int64)
    lengths[: total % nodes] += 1
    return _cut_into_spans(chunks, lengths)


def _deal_to_nodes(count: int, nodes: int, seed: int) -> np.ndarray:
    """Sort chunk numbers by their nodes: each `nodes` consecutive chunks go to different nodes."""
    rounds = -(-count // nodes)
    drawn = np.random.default_rng([seed, 0]).permuted(np.tile(np.arange(nodes), (rounds, 1)), axis=1)
    return np.argsort(drawn.ravel()[:count], kind="stable")


def _cut_into_spans(chunks: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Cut a sequence of chunks into spans of the given lengths, also inside chunks."""
    sizes = chunks[:, 1] - chunks[:, 0]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    borders = np.concatenate([[0], np.cumsum(lengths)])
    spans = []
    for first, end in pairwise(borders):
        low = int(np.searchsorted(starts, first, side="right")) - 1
        high = int(np.searchsorted(starts, end, side="left"))
        span = chunks[low:high].copy()
        if len(span) and end > first:
            span[-1, 1] = span[-1, 0] + end - starts[high - 1]
            span[0, 0] += first - starts[low]
        spans.append(span if end > first else span[:0])
    return spans


def epoch_order(shard_sizes: np.ndarray, order: ShuffleConfig, epoch: int) -> np.ndarray:
    """Return the global order of an epoch: each sample of the split once.

    >>> epoch_order(np.array([2, 2]), ShuffleConfig(shuffle=False, canonical_nodes=1), epoch=0).tolist()
    [0, 1, 2, 3]
    >>> sorted(epoch_order(np.array([2, 2]), ShuffleConfig(seed=3), epoch=1).tolist())
    [0, 1, 2, 3]

    Args:
        shard_sizes: Number of samples of each shard, in the order of the index.
        order: Seed, spans and block.
        epoch: Number of the epoch.

    Returns:
        Sample numbers, int32 [samples] (int64 from 2³¹ samples on).
    """
    total = int(np.sum(shard_sizes))
    numbers = np.empty(total, np.int32 if total < 2**31 else np.int64)
    nodes = order.canonical_nodes
    for node, chunks in enumerate(assign_spans(shard_sizes, order)):
        generator = np.random.default_rng([order.seed, 1, epoch, node])
        span = chunks[generator.permutation(len(chunks))] if order.shuffle else chunks
        samples = _sample_numbers(span, numbers.dtype)
        if order.shuffle:
            _shuffle_blocks(samples, order.block, generator)
        if nodes == 1:
            return samples
        numbers[node::nodes] = samples
    return numbers


def _sample_numbers(chunks: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Concatenate the sample numbers of chunks."""
    if len(chunks) == 0:
        return np.zeros(0, dtype)
    sizes = chunks[:, 1] - chunks[:, 0]
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    numbers = np.repeat((chunks[:, 0] - before).astype(dtype), sizes)
    for start in range(0, len(numbers), _SCAN_SAMPLES):  # the complete range would double the memory
        part = numbers[start : start + _SCAN_SAMPLES]
        part += np.arange(start, start + len(part), dtype=dtype)
    return numbers


def _shuffle_blocks(samples: np.ndarray, block: int, generator: np.random.Generator) -> None:
    """Shuffle each block of samples in place; the length of the first of several is random."""
    first = len(samples) if len(samples) <= block else int(generator.integers(block // 2, block)) + 1
    generator.shuffle(samples[:first])
    for start in range(first, len(samples), block):
        generator.shuffle(samples[start : start + block])


@lru_cache(maxsize=2)  # 400 MB each for 100 million samples
def cached_order(shard_sizes: tuple[int, ...], order: ShuffleConfig, epoch: int) -> np.ndarray:
    """Return `epoch_order`, read-only and cached for other loaders of this process."""
    numbers = epoch_order(np.array(shard_sizes, np.int64), order, epoch)
    numbers.flags.writeable = False
    return numbers


def sample_weights(
    weights: str | Sequence[float] | np.ndarray, samples: int, column: Callable[[str], np.ndarray]
) -> np.ndarray:
    """Return one weight per row of the index, float64 [samples].

    Args:
        weights: One number per sample, or a column whose values get equal total weights.
        samples: Number of samples.
        column: Returns the values of a column of the index.

    Raises:
        UsageError: Unknown column, or not one finite, non-negative number per sample with a positive sum.
    """
    if isinstance(weights, str):
        names = [name for name in index_schema().names if name != "flags"]  # flags are lists
        if weights not in names:
            msg = f"Unknown weights column {weights!r} in the index."
            raise UsageError(msg, hint=did_you_mean(weights, names))
        _, values, counts = np.unique(column(weights), return_inverse=True, return_counts=True)
        return np.asarray(1 / counts[values], np.float64)
    numbers = np.asarray(weights, np.float64)
    is_valid = numbers.shape == (samples,) and np.isfinite(numbers).all() and (numbers >= 0).all()
    if not is_valid or not numbers.any():
        msg = f"Invalid weights: expected {samples} non-negative numbers, not all 0."
        raise UsageError(msg, hint="Pass one per sample, in the order of the index after the filter")
    return numbers


def weighted_counts(weights: np.ndarray, order: ShuffleConfig, epoch: int) -> np.ndarray:
    """Return how often an epoch contains each sample: int64 [samples], with the number of samples as sum.

    A sample with an expected count of 2.3 occurs two or three times. Each epoch draws anew which counts are
    rounded up.

    >>> weighted_counts(np.array([3.0, 1, 0, 0]), ShuffleConfig(), epoch=0).tolist()
    [3, 1, 0, 0]

    Args:
        weights: Non-negative weights, float64 [samples].
        order: The seed is used.
        epoch: Number of the epoch.
    """
    expected = weights * (len(weights) / weights.sum())
    counts = np.floor(expected).astype(np.int64)
    missing = len(weights) - int(counts.sum())
    if missing:
        generator = np.random.default_rng([order.seed, 2, epoch])
        drawn = generator.permutation(len(weights))
        rest = np.cumsum((expected - counts)[drawn])
        marks = np.floor(rest * (missing / rest[-1]) + generator.random())
        marks[-1] = missing
        counts[drawn] += np.diff(marks, prepend=0).astype(np.int64)
    return counts


def mixture_order(
    orders: Sequence[Callable[[int], np.ndarray]], counts: Sequence[int], order: ShuffleConfig, epoch: int
) -> np.ndarray:
    """Return the global order of an epoch of several datasets: int64 [positions, 2] of (dataset, sample).

    An epoch takes `counts[k]` samples of dataset k, and the next epoch continues there, so that each dataset
    completes epochs of its own. Samples keep their canonical node (their position modulo the number of
    nodes), except for the last few of an epoch.

    >>> mixture_order([lambda _: np.arange(2), lambda _: np.arange(3)], [2, 1], ShuffleConfig(0, False, 1),
    ... 1).tolist()
    [[0, 0], [1, 1], [0, 1]]

    Args:
        orders: For each dataset, a function from its own epoch to its global order.
        counts: Samples of each dataset in an epoch of the mixture.
        order: Seed, shuffling and canonical nodes.
        epoch: Number of the epoch.
    """
    parts = []
    for number, (dataset_order, count) in enumerate(zip(orders, counts, strict=True)):
        position = np.arange(epoch * count, (epoch + 1) * count)
        length = len(dataset_order(0))
        passes = [dataset_order(own_epoch) for own_epoch in np.unique(position // length)] if count else []
        samples = np.concatenate(passes)[position - position[0] // length * length] if count else position
        nodes = position % length % order.canonical_nodes
        parts.append(np.stack([np.full(count, number), samples, nodes], 1))
    table = np.concatenate(parts)
    row = np.empty(len(table), np.float64)
    for node in range(order.canonical_nodes):
        own = np.flatnonzero(table[:, 2] == node)
        row[own] = _interleave(table[own, 0], np.random.default_rng([order.seed, 3, epoch, node]), order)
    return table[np.lexsort([table[:, 2], row])][:, :2]


def _interleave(datasets: np.ndarray, generator: np.random.Generator, order: ShuffleConfig) -> np.ndarray:
    """Return the row of each sample of a node: datasets are mixed, samples of one keep their order."""
    if order.shuffle:
        ranking = np.argsort(generator.permutation(datasets), kind="stable")
        rows = np.empty(len(datasets), np.int64)
        rows[np.argsort(datasets, kind="stable")] = ranking
        return rows
    sizes = np.bincount(datasets)
    within = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes if size] or [np.zeros(0)])
    return np.argsort(np.argsort(within, kind="stable"), kind="stable")


def first_uses(shard_of: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (position, sample) for the first sample of each shard.

    >>> list(first_uses(np.array([0, 0, 1]), np.array([1, 0, 2])))
    [(0, 1), (2, 2)]

    Args:
        shard_of: Shard number of each sample.
        numbers: Sample numbers in the order of their use.
    """
    is_used = np.zeros(int(shard_of.max()) + 1 if len(shard_of) else 0, bool)
    for start in range(0, len(numbers), _SCAN_SAMPLES):
        shards, offsets = np.unique(shard_of[numbers[start : start + _SCAN_SAMPLES]], return_index=True)
        first = np.sort(offsets[~is_used[shards]])
        is_used[shards] = True
        for position in (start + first).tolist():
            yield position, int(numbers[position])


def remaining_batches(samples: int, *, seen: int, batch_size: int, world: int, drop_last: bool) -> int:
    """Return the number of batches that each of `world` ranks gets from position `seen` on.

    >>> remaining_batches(100, seen=0, batch_size=8, world=4, drop_last=False)
    4
    >>> remaining_batches(100, seen=64, batch_size=8, world=2, drop_last=True)
    2
    """
    complete, rest = divmod(max(samples - seen, 0), batch_size * world)
    return complete + (rest > 0 and not drop_last)


def batch_indices(
    samples: int, number: int, *, seen: int, batch_size: int, rank: int, world: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of one rank's batch and their weights: int64 and float32 [batch_size].

    Beyond the end of the order, earlier positions of the rank are repeated with weight 0. They need no
    further shards.

    >>> [part.tolist() for part in batch_indices(5, 0, seen=0, batch_size=3, rank=1, world=2)]
    [[1, 3, 1], [1.0, 1.0, 0.0]]

    Args:
        samples: Number of samples of the split.
        number: Number of the batch, counted from `seen`.
        seen: Number of positions that all ranks together have read.
        batch_size: Samples per batch and rank.
        rank: Plan rank, 0 … world - 1; see `plan_rank`.
        world: Number of ranks.
    """
    start = seen + number * batch_size * world
    first = start + (rank - start) % world
    positions = first + world * np.arange(batch_size, dtype=np.int64)
    weight = (positions < samples).astype(np.float32)
    own = -(-(samples - rank) // world) if rank < samples else 0
    missing = positions >= samples
    if missing.any():
        repeated = np.arange(int(missing.sum()))
        positions[missing] = rank + world * (repeated % own) if own else repeated % samples
    return positions, weight


def plan_rank(rank: int, world: int, ranks_per_node: int) -> int:
    """Return the number of a rank in the plan, so that the ranks of one node share spans.

    Launchers number ranks node by node. The plan assigns positions cyclically, and positions congruent modulo
    the number of nodes share spans.

    >>> [plan_rank(rank, 4, 2) for rank in range(4)]
    [0, 2, 1, 3]
    """
    if world % ranks_per_node:
        return rank
    node, local = divmod(rank, ranks_per_node)
    return local * (world // ranks_per_node) + node
