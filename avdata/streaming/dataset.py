"""Iterable dataset over the samples of a prepared dataset, local or remote.

Shards are memory-mapped and read through the index by threads of this process. Samples are stored ready to
use, so worker processes would only add a copy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from avdata.errors import UsageError, did_you_mean
from avdata.streaming.batch import AVSample, as_dict
from avdata.streaming.collate import BatchAssembler
from avdata.streaming.epochs import EpochCounter, EpochStream, is_integer
from avdata.streaming.iterator import SampleIterator
from avdata.streaming.loader import AVLoader
from avdata.streaming.map_view import AVMapDataset
from avdata.streaming.sample_reader import SampleReader
from avdata.streaming.sampling import (
    ShuffleConfig,
    cached_order,
    epoch_order,
    first_uses,
    mixture_order,
    sample_weights,
    weighted_counts,
)
from avdata.streaming.split_index import Condition, Weights, read_presence
from avdata.streaming.transforms import (
    BatchTransform,
    SampleTransform,
    apply_transform,
    keyed_generator,
)
from avdata.visualization.html import SAMPLES_SHOWN, render_dataset


class AVDataset(EpochStream, IterableDataset[AVSample]):
    """Samples of a prepared dataset: iterable, indexable, with lookup by key and a loader.

    Attributes:
        split: What was opened, such as `train` or `train[:10%]+val`.
        labels: Label names; `AVSample.label` is an index into them.
        info: Content of dataset.json.
        condition: The filter conditions as text, joined by `and`; None without any.
        epoch_size: Number of samples of an epoch over all ranks, if it was set.
        weights: Relative frequency of each sample, float64 [num_rows]; None if each sample has the same.
    """

    def __init__(
        self,
        samples: SampleReader,
        split: str,
        *,
        order: ShuffleConfig,
        transform: SampleTransform | None,
        filter: Condition | None,
        weights: Weights | None,
        epoch_size: int | None,
        on_error: str,
        as_dict: bool,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        super().__init__(rank, world_size)
        self.split, self.info, self.order, self.on_error = split, samples.info, order, on_error
        self.as_dict, self.epoch_size, self.transform = as_dict, epoch_size, transform
        self.labels: list[str] = list(self.info["labels"])
        self.shape, self.is_strip = samples.shape, samples.is_strip
        self.frames_format = samples.frames_format
        self.condition = filter if isinstance(filter, str) else None
        # Whether the row numbers, not only the condition, identify the samples.
        self._is_selected = filter is not None and not isinstance(filter, str)
        self._repeats, self._weights = 1, weights
        self._set_samples(samples, None if weights is None else _weights_of(samples, weights))

    def _set_samples(self, samples: SampleReader, weights: np.ndarray | None) -> None:
        self._samples, self._index, self.weights = samples, samples.index, weights
        self._present = read_presence(samples.index, samples.shape)

    def __len__(self) -> int:
        """Return the number of samples that this rank iterates, the same on all ranks."""
        return math.ceil(self.num_samples / self.world_size)

    @property
    def num_samples(self) -> int:
        """Number of samples of an epoch, over all ranks; `len` is the number of this rank."""
        return (self.epoch_size or self.num_rows * self._repeats) if self.num_rows else 0

    @property
    def num_rows(self) -> int:
        """Number of distinct samples; they are numbered from 0 in the order of the index."""
        return len(self._index)

    def __repr__(self) -> str:
        options = f", filter={self.condition!r}" if self.condition else ""
        if self.num_samples != self.num_rows:
            options += f", {self.num_samples:,} per epoch"
        rank, world_size = self.explicit_rank
        if (world_size or 1) > 1:
            options += f", rank={rank} of {world_size}"
        return (
            f"AVDataset({self.name!r}, split={self.split!r}, {self.num_rows:,} samples, "
            f"{self.shape.sample}{options})"
        )

    def _repr_html_(self) -> str:
        # No samples of a remote dataset: showing it must not download any.
        is_shown = self.shape.has_mel and not self._samples.shards.remote
        count = min(SAMPLES_SHOWN, self.num_rows) if is_shown else 0
        facts = self._index.facts(self.labels, self._samples.shards)
        return render_dataset(
            {"title": self.info["title"], "splits": {self.split: facts}}, self.split, self.num_rows,
            {"mel": self.shape.mel, "frames": self.shape.frames},
            [str(self.sample(number)._repr_html_()) for number in range(count)], self.condition,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The folder or URL of the dataset, with credentials redacted."""
        return self._samples.shards.name

    @property
    def root(self) -> Path:
        """The folder of dataset.json and index.parquet (of a remote dataset: of their copies)."""
        return self._samples.shards.root

    @property
    def keys(self) -> list[str]:
        """The keys of all samples, in the order of the index."""
        return self._index.keys

    @property
    def shard_of(self) -> np.ndarray:
        """For each sample, the number of its shard among those of the dataset."""
        return self._index.shard_of

    def key(self, number: int) -> str:
        """Return the key of one sample."""
        return self._index.key(number)

    def keys_of(self, numbers: np.ndarray) -> list[str]:
        """Return the keys of samples."""
        return self._index.keys_of(numbers)

    def take(self, count: int) -> AVDataset:
        """Return a dataset of the first samples in the order of the index, the same in every epoch.

            small = avdata.open("out/cremad", shuffle=True).take(100)

        Args:
            count: Number of samples; all if there are fewer.

        Raises:
            UsageError: `count` is not a positive integer, or the dataset is repeated.
        """
        _check_count("take", count)
        if self._repeats > 1:
            msg = "Cannot take samples of a repeated dataset."
            raise UsageError(msg, hint="Call take before repeat")
        return self._select(np.arange(min(count, self.num_rows)), self.condition)

    def filter(self, condition: Condition) -> AVDataset:
        """Return a dataset of the samples that meet a condition.

            dogs = avdata.open("out/ave").filter("label_name == 'dog' and 'silent_audio' not in flags")
            long = avdata.open("out/ave").filter(lambda row: row["window_end"] - row["window_start"] > 2)

        Args:
            condition: Text, which compares columns of the index with values; or a function from a row of the
                index, as a dict, to a bool. The function is called immediately and decodes nothing.

        Raises:
            UsageError: Invalid condition.
        """
        # Another process may have replaced the copy of the index by that of a newer publication.
        self._samples.verify_index()
        numbers = self._index.numbers_where(condition, self._samples.shards)
        if not isinstance(condition, str):
            return self._select(numbers, self.condition)
        text = f"({self.condition}) and ({condition})" if self.condition else condition
        return self._select(numbers, text, is_selected=self._is_selected)

    def repeat(self, count: int) -> AVDataset:
        """Return a dataset whose epochs hold each sample `count` times, each time in another order.

        Args:
            count: Number of repetitions.

        Raises:
            UsageError: `count` is not a positive integer.
        """
        _check_count("repeat", count)
        repeated = self._copy()
        if self.epoch_size is None:
            repeated._repeats *= int(count)
        else:
            repeated.epoch_size = self.epoch_size * int(count)
        return repeated

    def as_map(self) -> AVMapDataset:
        """Return a map-style view of the samples, for torch's samplers, `Subset` and `ConcatDataset`."""
        return AVMapDataset(self)

    def _select(self, numbers: np.ndarray, condition: str | None, *, is_selected: bool = True) -> AVDataset:
        selected = self._copy()
        selected.condition, selected._is_selected = condition, is_selected
        samples = replace(self._samples, index=self._index.take(numbers))
        weights = None if self.weights is None else self.weights[numbers]
        if isinstance(self._weights, str):
            weights = _weights_of(samples, self._weights)
        selected._set_samples(samples, weights)
        return selected

    def _copy(self) -> AVDataset:
        duplicate = copy.copy(self)
        duplicate._epochs = EpochCounter()
        return duplicate

    def epoch_order(self) -> np.ndarray:
        """Return the sample numbers in the order of the current epoch, over all ranks."""
        return self.order_of(self.epoch)

    def order_of(self, epoch: int) -> np.ndarray:
        """Return the sample numbers in the order of an epoch, over all ranks."""
        if self.num_samples == self.num_rows:
            return self._complete_order(epoch)
        return mixture_order([self._complete_order], [self.num_samples], self.order, epoch)[:, 1]

    def _complete_order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch of `num_rows` samples."""
        if self.weights is None:
            return cached_order(self._index.shard_sizes, self.order, epoch)
        counts = weighted_counts(self.weights, self.order, epoch)
        # A sample that occurs twice counts twice in its shard.
        shards = len(self._index.shards)
        sizes = np.bincount(self.shard_of, counts, minlength=shards).astype(np.int64)
        return np.repeat(np.arange(self.num_rows), counts)[epoch_order(sizes, self.order, epoch)]

    def find(self, key: str) -> AVSample:
        """Return the sample with a key.

        Raises:
            UsageError: The split has no such key.
        """
        return self[self.number_of(key)]

    def number_of(self, key: str) -> int:
        """Return the number of the sample with a key.

        Raises:
            UsageError: The split has no such key.
        """
        if key not in self._index.numbers:
            msg = f"Unknown sample {key!r} in split {self.split} of {self.name}."
            raise UsageError(msg, hint=did_you_mean(key, self.keys) if self.num_rows < 100_000 else None)
        return self._index.numbers[key]

    def __getitem__(self, number: int) -> AVSample:
        if not is_integer(number):
            msg = f"Invalid sample number {number!r}: must be an integer."
            raise UsageError(
                msg, hint="dataset.as_map() accepts slices, lists and keys; find(key) looks up one"
            )
        if not -self.num_rows <= number < self.num_rows:
            msg = f"Sample {number} is out of range: {self.num_rows} samples."
            raise IndexError(msg)
        number = int(number) % self.num_rows
        sample = self._samples.sample(number, fetch_shard=False)
        item = self.transformed(number, sample, epoch=self.epoch)
        return as_dict(item) if self.as_dict else item

    def sample(self, number: int) -> AVSample:
        """Return one sample, before the transform; of a remote dataset, fetch the complete shard."""
        return self._samples.sample(number)

    @property
    def has_transform(self) -> bool:
        """Whether `transformed` changes samples."""
        return self.transform is not None

    def transformed(self, number: int, sample: AVSample, *, epoch: int, occurrence: int = 0) -> Any:
        """Return what the transform returns for a sample, or the sample if there is none.

        Args:
            number: Number of the sample.
            sample: The sample.
            epoch: Number of the epoch, which seeds the generator together with seed and key.
            occurrence: How often the epoch contained the sample before.
        """
        if self.transform is None:
            return sample
        generator = keyed_generator(self.order.seed, epoch, [sample.key], occurrence)
        return apply_transform(self.transform, sample, generator, f"sample {sample.key} of {self.name}")

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
        """Read a sample into the memory of a batch; see `SampleReader.fill`."""
        return self._samples.fill(number, mel, frames, assembler, waveform=waveform, key=key)

    def present_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return whether samples have non-silent audio and non-black frames, bool [B, 2]."""
        return self._present[numbers]

    def label_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the labels of samples, int64 [B]."""
        return self._index.label[numbers].astype(np.int64)

    def prefetch(self, number: int) -> None:
        """Fetch the shard of a sample, if it is remote."""
        self._samples.shards.prefetch(self._index.shards[self.shard_of[number]])

    def first_uses(self, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (position, sample) for the first sample of each remote shard, in the order of `numbers`."""
        return first_uses(self.shard_of, numbers if self._samples.shards.remote else numbers[:0])

    def identity(self) -> dict[str, Any]:
        """Return the properties that a state and the stream that loads it must share."""
        order = self.order
        return {
            "of": self.num_samples, "seed": order.seed, "shuffle": order.shuffle, "block": order.block,
            "canonical_nodes": order.canonical_nodes, "split": self.split, "filter": self.condition,
            "weights": None if self.weights is None else sha256(self.weights.tobytes()).hexdigest(),
            "rows": self._index.digest if self._is_selected else None,
            # The config hash alone does not tell apart datasets of different clips.
            "config_hash": self.info["config_hash"], "index": self.info.get("index", {}).get("sha256"),
        }  # fmt: skip

    def __iter__(self) -> SampleIterator:
        return SampleIterator(self)

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
        """Return a loader of this rank's batches.

        Args:
            batch_size: Samples per batch.
            num_workers: Number of threads that assemble batches in advance; 0 assembles each on request.
            drop_last: Drop the last incomplete batch instead of padding it.
            pin_memory: Copy batches to page-locked memory if CUDA is available.
            collate_fn: Function from the list of samples to a batch (default: `avdata.collate`, or torch's
                for what a transform returns). Padding has `AVSample.weight` 0.
            batch_transform: Function `(batch, generator) -> batch`, called last. `generator` is a
                `torch.Generator` seeded by seed, epoch and the keys of the batch.
        """
        return AVLoader(
            self, batch_size, num_workers=num_workers, drop_last=drop_last, pin_memory=pin_memory,
            collate_fn=collate_fn, batch_transform=batch_transform,
        )  # fmt: skip


def _check_count(name: str, count: object) -> None:
    if not is_integer(count) or count < 1:  # type: ignore[operator]
        msg = f"Invalid {name}({count!r}): must be an integer of at least 1."
        raise UsageError(msg)


def _weights_of(samples: SampleReader, weights: Weights) -> np.ndarray:
    index, shards = samples.index, samples.shards
    return sample_weights(weights, len(index), lambda name: index.column(name, shards).to_numpy())
