"""Mix several datasets into one stream, with a weight for each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from avdata.errors import UsageError
from avdata.streaming.collate import BatchAssembler
from avdata.streaming.dataset import AVDataset
from avdata.streaming.epochs import EpochStream
from avdata.streaming.loader import AVLoader
from avdata.streaming.sampling import first_uses, mixture_order


def mix(datasets: Sequence[AVDataset], weights: Sequence[float] | None = None) -> MixedDataset:
    """Return one stream of several datasets, whose batches mix their samples.

        mixed = avdata.mix([avdata.open("a", shuffle=True), avdata.open("b", shuffle=True, seed=7)], [3, 1])
        for batch in mixed.loader(32): ...

    Args:
        datasets: Datasets with their own seeds and filters, opened with the same rank and world size. The
            shuffle settings of the first one order the mixture.
        weights: Share of each dataset. By default, an epoch holds each sample of each dataset once. With
            weights, an epoch has the same length, and the next one continues each dataset where it stopped.

    Raises:
        UsageError: The samples differ in shape or storage, or the weights are invalid.
    """
    if not datasets:
        msg = "Cannot mix 0 datasets."
        raise UsageError(msg)
    first = datasets[0]
    for other in datasets[1:]:
        if (replace(other.shape, waveform=first.shape.waveform), other.is_strip) != (
            first.shape,
            first.is_strip,
        ):
            msg = f"Shape mismatch: {other!r} and {first!r}."
            hint = "prepare both datasets with the same audio and video settings"
            if (other.shape.waveform is None) != (first.shape.waveform is None):
                hint = "open all datasets of a mixture with the same `waveform` option"
            raise UsageError(msg, hint=hint)
        if other.explicit_rank != first.explicit_rank:
            ranks = (other.explicit_rank[0], first.explicit_rank[0])
            msg = f"Rank mismatch: datasets are opened for ranks {ranks[0]} and {ranks[1]}."
            raise UsageError(msg, hint="open all datasets of a mixture with the same rank and world_size")
    lengths = [dataset.num_samples for dataset in datasets]
    if weights is None:
        return MixedDataset(datasets, lengths)
    share = np.asarray(weights, np.float64)
    if share.shape != (len(datasets),) or (share < 0).any() or not share.any() or not all(lengths):
        msg = f"Invalid weights {list(weights)}: expected {len(datasets)} non-negative numbers, not all 0."
        raise UsageError(msg)
    due = share * (sum(lengths) / share.sum())
    counts = np.floor(due).astype(np.int64)
    # Distribute what rounding down removed by largest remainders.
    counts[np.argsort(counts - due, kind="stable")[: sum(lengths) - int(counts.sum())]] += 1
    return MixedDataset(datasets, counts.tolist())


class MixedDataset(EpochStream):
    """Mixture of datasets, read through its loader; `mix` creates it.

    Attributes:
        datasets: The datasets.
        counts: Samples of each dataset per epoch.
        labels: Names of the labels of all datasets; the labels of a batch are indices into them. Step labels
            use the same indices, with the background after all labels. If only some datasets label their
            steps, a sample of another one has its label at every step.
    """

    def __init__(self, datasets: Sequence[AVDataset], counts: Sequence[int]) -> None:
        first = datasets[0]
        super().__init__(*first.explicit_rank)
        self.datasets, self.counts = list(datasets), list(counts)
        self.order = first.order
        # The longest waveform: shorter ones are followed by zeros.
        waveform = max(dataset.shape.waveform or () for dataset in datasets) or None
        self.shape = replace(first.shape, waveform=waveform)
        self.is_strip, self.on_error, self.as_dict = first.is_strip, first.on_error, first.as_dict
        self.labels = list(dict.fromkeys(label for dataset in datasets for label in dataset.labels))
        self._label = [
            np.array([self.labels.index(name) for name in dataset.labels], np.int64) for dataset in datasets
        ]
        has_step_labels = any(dataset.info["background"] for dataset in datasets)
        self._steps = first.shape.mel[0] if has_step_labels else 0
        self._starts = np.array([0, *accumulate(dataset.num_samples for dataset in datasets)])

    @property
    def num_samples(self) -> int:
        """Number of samples of an epoch, over all ranks."""
        return sum(self.counts)

    def __len__(self) -> int:
        """Return the number of samples of this rank in an epoch."""
        return math.ceil(self.num_samples / self.world_size)

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{count:,} of {dataset.name}/{dataset.split}"
            for count, dataset in zip(self.counts, self.datasets, strict=True)
        )
        return f"MixedDataset({parts}, {self.shape.sample})"

    def epoch_order(self) -> np.ndarray:
        """Return `order_of` the current epoch."""
        return self.order_of(self.epoch)

    def order_of(self, epoch: int) -> np.ndarray:
        """Return the sample numbers in the order of an epoch, over all ranks.

        The numbers of a dataset follow those of the datasets before it.
        """
        order = mixture_order([dataset.order_of for dataset in self.datasets], self.counts, self.order, epoch)
        return np.asarray(self._starts[order[:, 0]] + order[:, 1])

    def identity(self) -> dict[str, Any]:
        """Return the properties that a state and the stream that loads it must share."""
        return {"counts": self.counts, "sets": [dataset.identity() for dataset in self.datasets]}

    def _locate(self, number: int) -> tuple[int, int]:
        """Return (dataset number, sample number in that dataset)."""
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        return which, number - int(self._starts[which])

    def _by_dataset(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (dataset number, positions in `numbers`, sample numbers in the dataset)."""
        datasets = np.searchsorted(self._starts, numbers, side="right") - 1
        for which in np.unique(datasets).tolist():
            positions = np.flatnonzero(datasets == which)
            yield which, positions, numbers[positions] - self._starts[which]

    def key(self, number: int) -> str:
        """Return the key of one sample."""
        which, own = self._locate(number)
        return self.datasets[which].key(own)

    def keys_of(self, numbers: np.ndarray) -> list[str]:
        """Return the keys of samples."""
        keys = [""] * len(numbers)
        for which, positions, own in self._by_dataset(numbers):
            for position, key in zip(positions.tolist(), self.datasets[which].keys_of(own), strict=True):
                keys[position] = key
        return keys

    def label_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the labels of samples as indices into `labels`, int64 [B]."""
        labels = np.empty(len(numbers), np.int64)
        for which, positions, own in self._by_dataset(numbers):
            labels[positions] = self._label[which][self.datasets[which].label_of(own)]
        return labels

    def present_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return whether samples have non-silent audio and non-black frames, bool [B, 2]."""
        present = np.empty((len(numbers), 2), bool)
        for which, positions, own in self._by_dataset(numbers):
            present[positions] = self.datasets[which].present_of(own)
        return present

    def fill(
        self,
        number: int,
        mel: torch.Tensor,
        frames: torch.Tensor | None,
        assembler: BatchAssembler,
        *,
        waveform: torch.Tensor | None = None,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Read a sample, with its mel normalized by its own dataset; see `AVDataset.fill`."""
        which, own = self._locate(number)
        dataset = self.datasets[which]
        metadata = dataset.fill(own, mel, frames, assembler, waveform=waveform, key=key)
        if self._steps:
            steps = metadata.get("step_labels") or [int(dataset.label_of(np.array([own]))[0])] * self._steps
            metadata["step_labels"] = np.append(self._label[which], len(self.labels))[steps].tolist()
        return metadata

    def prefetch(self, number: int) -> None:
        """Fetch the shard of a sample, if it is remote."""
        which, own = self._locate(number)
        self.datasets[which].prefetch(own)

    def first_uses(self, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (position, sample) for the first sample of each shard, in the order of `numbers`."""
        shards, before = [], 0
        for dataset in self.datasets:
            shards.append(dataset.shard_of + before)
            before += int(dataset.shard_of.max(initial=-1)) + 1
        return first_uses(np.concatenate(shards), numbers)

    def loader(
        self, batch_size: int, *, num_workers: int = 2, drop_last: bool = False, pin_memory: bool = False
    ) -> AVLoader:
        """Return a loader of this rank's batches; see `AVDataset.loader`."""
        return AVLoader(self, batch_size, num_workers=num_workers, drop_last=drop_last, pin_memory=pin_memory)
