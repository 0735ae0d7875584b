"""Several prepared sets as one stream, each as often as its weight says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from avdata.errors import UsageError
from avdata.streaming.collate import BatchAssembler
from avdata.streaming.dataset import AVDataset
from avdata.streaming.loader import AVLoader
from avdata.streaming.sampling import first_uses, mixture_order


def mix(datasets: Sequence[AVDataset], weights: Sequence[float] | None = None) -> MixedDataset:
    """One stream of several sets, whose batches hold samples of all of them.

    >>> # both = avdata.mix([avdata.open("a", shuffle=True), avdata.open("b", shuffle=True, seed=7)], [3, 1])
    >>> # for batch in both.loader(32): ...

    Args:
        datasets: opened with seeds and filters of their own, and with the same rank; the first one's order
        mixes.
        weights: the share of each; by default an epoch holds each sample of each set once. With weights it is
            as long as the sets together, and the next goes on in each set where it stopped.

    Raises:
        UsageError: the sets' samples differ in shape or storage, or the weights are not one a set.
    """
    if not datasets:
        msg = "a mixture needs at least one set"
        raise UsageError(msg)
    first = datasets[0]
    for other in datasets[1:]:
        if (other.shape, other.is_strip) != (first.shape, first.is_strip):
            msg = f"{other.root} and {first.root} differ: {other.shape} and {first.shape}"
            raise UsageError(msg, hint="prepare both with the same audio and video settings")
        if (other.rank, other.world_size) != (first.rank, first.world_size):
            msg = f"the sets are opened for ranks {other.rank} and {first.rank}"
            raise UsageError(msg, hint="open all sets of a mixture with the same rank and world_size")
    lengths = [len(one) for one in datasets]
    if weights is None:
        return MixedDataset(datasets, lengths)
    share = np.asarray(weights, np.float64)
    if share.shape != (len(datasets),) or (share < 0).any() or not share.any() or not all(lengths):
        msg = f"weights {list(weights)} are not one a set, not negative and not all 0"
        raise UsageError(msg)
    due = share * (sum(lengths) / share.sum())
    counts = np.floor(due).astype(np.int64)
    # The largest remainders make up what rounding down took.
    counts[np.argsort(counts - due, kind="stable")[: sum(lengths) - int(counts.sum())]] += 1
    return MixedDataset(datasets, counts.tolist())


class MixedDataset:
    """What `mix` made: it is read through its loader.

    Attributes:
        labels: the names of the labels of all sets; a batch's labels are numbers of these. So are its labels
            of steps, with the background after them, where a set has such; a clip of another set has its
            label in every step.
    """

    def __init__(self, sets: Sequence[AVDataset], counts: Sequence[int]) -> None:
        first = sets[0]
        self.datasets, self.counts = list(sets), list(counts)
        self.order, self.epoch = first.order, 0
        self.shape, self.is_strip, self.on_error = first.shape, first.is_strip, first.on_error
        self.rank, self.world_size, self.plan_rank = first.rank, first.world_size, first.plan_rank
        self.labels = list(dict.fromkeys(label for one in sets for label in one.labels))
        self._label = [np.array([self.labels.index(name) for name in one.labels], np.int64) for one in sets]
        # Steps are labeled where a set labels them: the background of all sets comes after all labels.
        self._steps = first.shape.mel[0] if any(one.info["background"] for one in sets) else 0
        self._starts = np.array([0, *accumulate(len(one) for one in sets)])

    def __len__(self) -> int:
        return sum(self.counts)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides the order together with the seeds."""
        self.epoch = epoch

    def epoch_order(self) -> np.ndarray:
        """The numbers of the epoch's samples over all ranks; a set's follow those of the sets before."""
        made = mixture_order([one.order_of for one in self.datasets], self.counts, self.order, self.epoch)
        return np.asarray(self._starts[made[:, 0]] + made[:, 1])

    def identity(self) -> dict[str, Any]:
        """What a state must have in common with the stream that goes on from it."""
        return {"counts": self.counts, "sets": [one.identity() for one in self.datasets]}

    def _place(self, number: int) -> tuple[AVDataset, int]:
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.datasets[which], number - int(self._starts[which])

    def _each(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(set, places in `numbers`, numbers in the set)."""
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        for number in np.unique(which).tolist():
            places = np.flatnonzero(which == number)
            yield number, places, numbers[places] - self._starts[number]

    def key(self, number: int) -> str:
        """The key of one sample."""
        data, own = self._place(number)
        return data.key(own)

    def keys_of(self, numbers: np.ndarray) -> list[str]:
        """The keys of samples."""
        made = [""] * len(numbers)
        for which, places, own in self._each(numbers):
            for place, key in zip(places.tolist(), self.datasets[which].keys_of(own), strict=True):
                made[place] = key
        return made

    def label_of(self, numbers: np.ndarray) -> np.ndarray:
        """Labels of samples, int64, as numbers of `labels`."""
        made = np.empty(len(numbers), np.int64)
        for which, places, own in self._each(numbers):
            made[places] = self._label[which][self.datasets[which].label_of(own)]
        return made

    def present_of(self, numbers: np.ndarray) -> np.ndarray:
        """Which modalities samples have, bool [B, 2]."""
        made = np.empty((len(numbers), 2), bool)
        for which, places, own in self._each(numbers):
            made[places] = self.datasets[which].present_of(own)
        return made

    def fill(
        self,
        number: int,
        mel: torch.Tensor,
        frames: torch.Tensor,
        copies: BatchAssembler,
        *,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Read one sample, its mel in the scale of its own set; see `AVDataset.fill`."""
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        data, own = self._place(number)
        facts = data.fill(own, mel, frames, copies, key=key)
        if self._steps:
            there = facts.get("step_labels") or [int(data.label_of(np.array([own]))[0])] * self._steps
            facts["step_labels"] = np.append(self._label[which], len(self.labels))[there].tolist()
        return facts

    def prefetch(self, number: int) -> None:
        """Bring the shard of a sample here."""
        data, own = self._place(number)
        data.prefetch(own)

    def first_uses(self, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
        """(place, sample) where a shard is needed for the first time."""
        parts, before = [], 0
        for one in self.datasets:
            parts.append(one.shard_of + before)
            before += int(one.shard_of.max(initial=-1)) + 1
        return first_uses(np.concatenate(parts), numbers)

    def loader(
        self, batch_size: int, *, num_workers: int = 2, drop_last: bool = False, pin_memory: bool = False
    ) -> AVLoader:
        """Batches of this rank; see `AVDataset.loader`."""
        return AVLoader(self, batch_size, num_workers=num_workers, drop_last=drop_last, pin_memory=pin_memory)
