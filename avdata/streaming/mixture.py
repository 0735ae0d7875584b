"""Mix several datasets into one stream, with a weight for each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset

from avdata.errors import UsageError
from avdata.streaming.batch import AVSample
from avdata.streaming.collate import BatchAssembler
from avdata.streaming.dataset import AVDataset
from avdata.streaming.epochs import EpochStream, is_integer
from avdata.streaming.iterator import SampleIterator
from avdata.streaming.loader import AVLoader
from avdata.streaming.sampling import first_uses, mixture_order
from avdata.streaming.transforms import BatchTransform

BATCHING_METHODS = ("mixed", "per_stream")

STOPPING_STRATEGIES = ("first_exhausted", "all_exhausted")

_ROUNDING = 1e-6  # of float64 shares, in samples


def mix(
    datasets: Sequence[AVDataset],
    weights: Sequence[float] | None = None,
    *,
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] | None = None,
    epoch_size: int | None = None,
    batching_method: Literal["mixed", "per_stream"] = "mixed",
) -> MixedDataset:
    """Return one stream of several datasets.

        mixed = avdata.mix([avdata.open("a", shuffle=True), avdata.open("b", shuffle=True, seed=7)], [3, 1])
        for batch in mixed.loader(32): ...

    Args:
        datasets: Datasets with their own seeds, filters and transforms, opened with the same rank and world
            size. The shuffle settings of the first one order the mixture.
        weights: Share of each dataset. By default, an epoch holds each sample of each dataset once. With
            weights, an epoch has the same length, and the next one continues each dataset where it stopped.
        stopping_strategy: Where an epoch with weights ends: `first_exhausted` after the first dataset is
            complete, so that no sample is repeated; `all_exhausted` after all are complete, so that samples
            of the others are repeated.
        epoch_size: Number of samples of an epoch over all ranks, instead of `stopping_strategy`.
        batching_method: `mixed`: batches mix the datasets. `per_stream`: each batch is of one dataset, the
            same on all ranks. The samples of each dataset per epoch are then rounded to complete batches of
            all ranks, at least one; the next epoch continues after them.

    Raises:
        UsageError: The samples differ in shape or storage, or an option is invalid.
    """
    if not datasets:
        msg = "Cannot mix 0 datasets."
        raise UsageError(msg)
    for other in datasets[1:]:
        _check_alike(other, datasets[0])
    if batching_method not in BATCHING_METHODS:
        msg = f"Invalid batching_method={batching_method!r}: must be 'mixed' or 'per_stream'."
        raise UsageError(msg)
    counts = _counts([dataset.num_samples for dataset in datasets], weights, stopping_strategy, epoch_size)
    return MixedDataset(datasets, counts, batching_method)


def _check_alike(other: AVDataset, first: AVDataset) -> None:
    """Raise an error if the samples of two datasets cannot be in one batch."""
    shapes = [
        (replace(data.shape, waveform=None), data.shape.waveform is None, data.is_strip, data.frames_format)
        for data in (other, first)
    ]
    if shapes[0] != shapes[1]:
        msg = f"Shape mismatch: {other!r} and {first!r}."
        hint = "Prepare both datasets with the same audio and video settings"
        if other.info["shape"] == first.info["shape"] and other.is_strip == first.is_strip:
            hint = "Open all datasets of a mixture with the same `waveform`, `modalities` and frames options"
        raise UsageError(msg, hint=hint)
    if other.explicit_rank != first.explicit_rank:
        ranks = (other.explicit_rank[0], first.explicit_rank[0])
        msg = f"Rank mismatch: datasets are opened for ranks {ranks[0]} and {ranks[1]}."
        raise UsageError(msg, hint="Open all datasets of a mixture with the same rank and world_size")


def _counts(
    lengths: Sequence[int],
    weights: Sequence[float] | None,
    stopping_strategy: str | None,
    epoch_size: int | None,
) -> list[int]:
    """Return the number of samples of each dataset in an epoch.

    >>> _counts([10, 40], [1, 1], "first_exhausted", None), _counts([10, 40], [1, 1], "all_exhausted", None)
    ([10, 10], [40, 40])
    """
    if stopping_strategy is not None and (
        stopping_strategy not in STOPPING_STRATEGIES or weights is None or epoch_size is not None
    ):
        msg = f"Invalid stopping_strategy={stopping_strategy!r}: requires weights, no epoch_size, and one of "
        msg += " and ".join(STOPPING_STRATEGIES) + "."
        raise UsageError(msg, hint=f"weights={[1] * len(lengths)} gives all datasets equal shares")
    if epoch_size is not None and (not is_integer(epoch_size) or epoch_size < 1):
        msg = f"Invalid epoch_size={epoch_size!r}: must be an integer of at least 1."
        raise UsageError(msg)
    if weights is None and epoch_size is None:
        return list(lengths)
    share = np.asarray(lengths if weights is None else weights, np.float64)
    is_valid = share.shape == (len(lengths),) and np.isfinite(share).all() and (share >= 0).all()
    if not is_valid or not share.any() or not all(lengths):
        msg = f"Invalid weights {weights}: expected {len(lengths)} non-negative numbers, not all 0."
        raise UsageError(msg)
    share /= share.sum()
    if stopping_strategy is not None:
        own = np.asarray(lengths)[share > 0] / share[share > 0]
        if stopping_strategy == "first_exhausted":
            return np.floor(share * own.min() + _ROUNDING).astype(int).tolist()
        return np.ceil(share * own.max() - _ROUNDING).astype(int).tolist()
    total = sum(lengths) if epoch_size is None else int(epoch_size)
    due = share * total
    counts = np.floor(due).astype(np.int64)
    # Distribute what rounding down removed by largest remainders.
    counts[np.argsort(counts - due, kind="stable")[: total - int(counts.sum())]] += 1
    return counts.tolist()


class MixedDataset(EpochStream, IterableDataset[AVSample]):
    """Mixture of datasets: iterable, with a loader; `mix` creates it.

    Attributes:
        datasets: The datasets.
        batching_method: `mixed` or `per_stream`.
        labels: Names of the labels of all datasets; the labels of a batch are indices into them. Step labels
            use the same indices, with the background after all labels. If only some datasets label their
            steps, a sample of another one has its label at every step.
    """

    def __init__(self, datasets: Sequence[AVDataset], counts: Sequence[int], batching_method: str) -> None:
        first = datasets[0]
        super().__init__(*first.explicit_rank)
        self.datasets, self._counts, self.batching_method = list(datasets), list(counts), batching_method
        self._batch_size: int | None = None  # of the loader that reads batches per stream
        self.order, self.frames_format = first.order, first.frames_format
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
        self._starts = np.array([0, *accumulate(dataset.num_rows for dataset in datasets)])

    @property
    def counts(self) -> list[int]:
        """Samples of each dataset per epoch, over all ranks."""
        if self._batch_size is None:
            return self._counts
        size = self._batch_size * self.world_size
        return [max(round(count / size), 1) * size if count else 0 for count in self._counts]

    @property
    def num_rows(self) -> int:
        """Number of distinct samples; those of a dataset follow those of the datasets before it."""
        return int(self._starts[-1])

    @property
    def has_transform(self) -> bool:
        """Whether `transformed` changes samples."""
        return any(dataset.has_transform for dataset in self.datasets)

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
        if self.batching_method == "per_stream":
            return self._order_per_stream(epoch)
        order = mixture_order([dataset.order_of for dataset in self.datasets], self.counts, self.order, epoch)
        return np.asarray(self._starts[order[:, 0]] + order[:, 1])

    def _order_per_stream(self, epoch: int) -> np.ndarray:
        """Return an order in which each batch of all ranks is of one dataset."""
        if self._batch_size is None:
            msg = "Batches per stream require the loader of the mixture."
            raise UsageError(msg, hint="Use mixed.loader(batch_size), or batching_method='mixed'")
        size = self._batch_size * self.world_size
        batches = [
            (self._starts[which] + mixture_order([dataset.order_of], [count], self.order, epoch)[:, 1])
            for which, (dataset, count) in enumerate(zip(self.datasets, self.counts, strict=True))
            if count
        ]
        numbers = [len(own) // size for own in batches]
        # The batches are mixed as samples are. They have no canonical nodes.
        turns = mixture_order(
            [partial(_batch_numbers, number) for number in numbers], numbers,
            replace(self.order, canonical_nodes=1), epoch,
        )  # fmt: skip
        starts = np.array([0, *accumulate(numbers)])
        order = np.concatenate(batches).reshape(-1, size)[starts[turns[:, 0]] + turns[:, 1]]
        return np.asarray(order.ravel())

    def identity(self) -> dict[str, Any]:
        """Return the properties that a state and the stream that loads it must share."""
        size = None if self._batch_size is None else self._batch_size * self.world_size
        sets = [dataset.identity() for dataset in self.datasets]
        return {"counts": self.counts, "sets": sets, "batches_per_stream_of": size}

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
        mel: torch.Tensor | None,
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
        return self._with_step_labels(metadata, which, own)

    def _with_step_labels(self, metadata: Mapping[str, Any], which: int, own: int) -> dict[str, Any]:
        """Return a sample's JSON with step labels as indices into `labels`, if a dataset labels its steps."""
        if not self._steps:
            return dict(metadata)
        label = int(self.datasets[which].label_of(np.array([own]))[0])
        steps = metadata.get("step_labels") or [label] * self._steps
        mapped = np.append(self._label[which], len(self.labels))[steps].tolist()
        return {**metadata, "step_labels": mapped}

    def sample(self, number: int) -> AVSample:
        """Return one sample, before the transform; its labels are indices into `labels`."""
        which, own = self._locate(number)
        sample = self.datasets[which].sample(own)
        waveform = sample.waveform
        if waveform is not None and self.shape.waveform is not None:
            waveform = torch.nn.functional.pad(waveform, (0, self.shape.waveform[0] - len(waveform)))
        return replace(
            sample, label=int(self._label[which][sample.label]), waveform=waveform,
            metadata=self._with_step_labels(sample.metadata, which, own),
        )  # fmt: skip

    def transformed(self, number: int, sample: AVSample, *, epoch: int, occurrence: int = 0) -> Any:
        """Return what the transform of its dataset returns for a sample; see `AVDataset.transformed`."""
        which, own = self._locate(number)
        return self.datasets[which].transformed(own, sample, epoch=epoch, occurrence=occurrence)

    def __iter__(self) -> SampleIterator:
        return SampleIterator(self)

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
        self,
        batch_size: int,
        *,
        num_workers: int = 2,
        drop_last: bool = False,
        pin_memory: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        batch_transform: BatchTransform | None = None,
    ) -> AVLoader:
        """Return a loader of this rank's batches; see `AVDataset.loader`."""
        source = self
        if self.batching_method == "per_stream":
            source = copy.copy(self)
            source._batch_size = batch_size
        return AVLoader(
            source, batch_size, num_workers=num_workers, drop_last=drop_last, pin_memory=pin_memory,
            collate_fn=collate_fn, batch_transform=batch_transform,
        )  # fmt: skip


def _batch_numbers(count: int, epoch: int) -> np.ndarray:
    return np.arange(count)
