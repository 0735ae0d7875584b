"""Which sample is read by which rank, in which order, from which point: pure functions of a few integers.

A plan is computed, never stored. Every sample appears exactly once an epoch over all ranks; all ranks get the
same number of batches, the last ones filled up with padding that is marked.
"""

from __future__ import annotations

import numpy as np


def epoch_order(samples: int, *, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """The global order of an epoch: int64 [samples], each sample once.

    >>> epoch_order(4, seed=0, epoch=0, shuffle=False).tolist()
    [0, 1, 2, 3]
    """
    if not shuffle:
        return np.arange(samples, dtype=np.int64)
    return np.random.default_rng([seed, epoch]).permutation(samples).astype(np.int64)


def batches_of(samples: int, *, batch_size: int, world: int, drop_last: bool) -> int:
    """Batches that each of `world` ranks gets in an epoch.

    >>> batches_of(100, batch_size=8, world=4, drop_last=False)
    4
    """
    whole, left = divmod(samples, batch_size * world)
    return whole + (left > 0 and not drop_last)


def rank_batches(
    order: np.ndarray, *, batch_size: int, rank: int, world: int, drop_last: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The batches of one rank: sample numbers and weights, [batches, batch_size].

    The global order is dealt out round: place `p` of a global batch goes to rank `p % world`, so that a
    global batch holds the same samples however many ranks share it. Where samples run out, the first ones of
    the order stand in with weight 0.

    >>> picked, weight = rank_batches(np.arange(5), batch_size=2, rank=1, world=2, drop_last=False)
    >>> picked.tolist(), weight.tolist()
    ([[1, 3], [0, 1]], [[1.0, 1.0], [0.0, 0.0]])

    Args:
        order: int64 [samples], what `epoch_order` returns.
        batch_size: samples a batch of one rank.
        rank: which rank, 0 … world - 1.
        world: how many.
        drop_last: leave out the samples that do not fill a global batch, instead of padding.
    """
    count = batches_of(len(order), batch_size=batch_size, world=world, drop_last=drop_last)
    wanted = count * batch_size * world
    if len(order) == 0 or wanted == 0:
        return np.zeros((0, batch_size), np.int64), np.zeros((0, batch_size), np.float32)
    places = np.arange(wanted)
    weight = (places < len(order)).astype(np.float32)
    dealt = np.resize(order, wanted).reshape(count, batch_size, world)
    # Padding repeats the order from its beginning, which np.resize does.
    return dealt[:, :, rank], weight.reshape(count, batch_size, world)[:, :, rank]
