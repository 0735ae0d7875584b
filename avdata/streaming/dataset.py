"""Iterable dataset over one split of a prepared dataset, local or remote.

Shards are memory-mapped and read through the index by threads of this process. Samples are stored ready to
use, so worker processes would only add a copy.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset

from avdata.errors import AvdataError, UsageError, did_you_mean
from avdata.shards.reader import read_index, read_members
from avdata.streaming.batch import AVBatch, AVSample
from avdata.streaming.collate import BatchAssembler, mel_normalization, stores_strips
from avdata.streaming.epochs import EpochStream, is_integer
from avdata.streaming.iterator import SampleIterator
from avdata.streaming.loader import AVLoader
from avdata.streaming.sampling import (
    ShuffleConfig,
    cached_order,
    epoch_order,
    first_uses,
    sample_weights,
    weighted_counts,
)
from avdata.streaming.shard_cache import DEFAULT_LIMIT_BYTES, ShardCache
from avdata.streaming.shard_reader import ShardReader, open_reader, sample_error
from avdata.streaming.split_index import read_presence, read_shape, read_split_index
from avdata.visualization.html import SAMPLES_SHOWN, render_dataset

__all__ = ["AVBatch", "AVDataset", "AVLoader", "AVSample", "open_dataset"]


def open_dataset(
    dataset: str | Path,
    split: str = "train",
    *,
    shuffle: bool = False,
    seed: int = 0,
    normalize: bool = True,
    waveform: bool = False,
    filter: str | None = None,
    weights: str | Sequence[float] | np.ndarray | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    as_dict: bool = False,
    canonical_nodes: int | None = None,
    block: int = ShuffleConfig.block,
    rank: int | None = None,
    world_size: int | None = None,
    cache: str | Path | None = None,
    cache_bytes: int = DEFAULT_LIMIT_BYTES,
) -> AVDataset:
    """Open one split of a prepared dataset.

    Args:
        dataset: Folder or URL of the dataset (`https://`, `s3://`, `gs://`, `hf://datasets/user/name`, ...).
        split: Name of the split: train, val or test.
        shuffle: Use a new order each epoch; see `AVDataset.set_epoch`.
        seed: Seed of the order.
        normalize: Normalize each mel band by the mean and standard deviation of the train split.
        waveform: Decode the stored waveforms as `AVSample.waveform` and `AVBatch.waveform`, for datasets
            prepared with `--set audio.flac=true`.
        filter: Condition on the columns of the index that selects samples, such as `group != '1001'`.
        weights: Relative frequency of the samples: one number per sample, in the order of the index after the
            filter; or a column of the index, such as `label`, whose values are sampled equally often. The
            epoch length does not change: some samples are repeated, others are left out.
        on_error: Handling of unreadable samples. `raise` raises the error. `skip` gives the position in the
            batch weight 0 and appends the error to `AVLoader.skipped`; iteration by sample, also in torch's
            `DataLoader`, substitutes another sample with weight 0 and the error in `metadata["skipped"]`.
            An unreachable storage always raises.
        as_dict: Return samples and batches as dicts; see `AVSample.as_dict` and `AVBatch.as_dict`. Trainers
            that collate dicts, such as that of transformers, then need no `collate_fn`.
        canonical_nodes: Number of spans that are read in parallel. Choose a multiple of the number of
            machines, so that each machine reads only some of the shards (default: 8 with shuffling, else 1,
            the order of the index).
        block: Number of samples of a span that are shuffled together.
        rank: Rank of this process. By default, looked up when an iteration starts: from torch.distributed,
            else from the variables of torchrun, Lightning, MPI or Slurm.
        world_size: Number of processes (default: as for `rank`).
        cache: Folder for the shards of a remote dataset (default: below `AVDATA_CACHE`).
        cache_bytes: Size limit of that folder in bytes.

    Returns:
        The split as an iterable dataset with random access and a loader.

    Raises:
        AvdataError: `dataset` is not a prepared dataset, or is not reachable.
        UsageError: Unknown split, invalid filter, weights, URL or option, or no stored waveforms.
    """
    if on_error not in {"raise", "skip"}:
        msg = f"Invalid on_error={on_error!r}: must be 'raise' or 'skip'."
        raise UsageError(msg)
    reader, info = open_reader(dataset, split, ShardCache(cache, cache_bytes))
    nodes = canonical_nodes or (ShuffleConfig.canonical_nodes if shuffle else 1)
    for name, number, least in (("seed", seed, 0), ("canonical_nodes", nodes, 1), ("block", block, 1)):
        if not is_integer(number) or number < least:
            msg = f"Invalid {name}={number!r}: must be an integer of at least {least}."
            raise UsageError(msg)
    order = ShuffleConfig(seed=seed, shuffle=shuffle, canonical_nodes=nodes, block=block)
    return AVDataset(
        reader, split, info, order=order, normalize=normalize, waveform=waveform, filter=filter,
        weights=weights, on_error=on_error, as_dict=as_dict, rank=rank, world_size=world_size,
    )  # fmt: skip


class AVDataset(EpochStream, IterableDataset[AVSample]):
    """One split of a prepared dataset: iterable, indexable, with lookup by key and a loader.

    Attributes:
        split: Name of the split.
        labels: Label names; `AVSample.label` is an index into them.
        info: Content of dataset.json.
        num_samples: Number of samples of the split, over all ranks; `len` is the number of this rank.
    """

    def __init__(
        self,
        reader: ShardReader,
        split: str,
        info: Mapping[str, Any],
        *,
        order: ShuffleConfig,
        normalize: bool,
        waveform: bool,
        filter: str | None,
        weights: str | Sequence[float] | np.ndarray | None,
        on_error: str,
        as_dict: bool,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        super().__init__(rank, world_size)
        self.split, self.info, self.order, self.on_error = split, info, order, on_error
        self.filter, self.as_dict = filter, as_dict
        self.labels: list[str] = list(info["labels"])
        self.shape, self.is_strip = read_shape(reader, info, waveform=waveform), stores_strips(info)
        self._reader = reader
        self._sha256: dict[tuple[str, int], str] | None = None
        self._index = read_split_index(reader.root, split, filter, weights)
        self.num_samples = len(self._index)
        self._label = self._index["label"].to_numpy().astype(np.int64)
        self._offset, self._nbytes = self._index["offset"].to_numpy(), self._index["nbytes"].to_numpy()
        shards = self._index["shard"].combine_chunks().dictionary_encode()
        self._shard: list[str] = shards.dictionary.to_pylist()
        # For each sample, the number of its shard among those of the split.
        self.shard_of = shards.indices.to_numpy()
        self._sizes = tuple(np.bincount(self.shard_of, minlength=len(self._shard)).tolist())
        self.weights = None if weights is None else sample_weights(weights, self._index)
        self._present = read_presence(self._index, self.shape)
        stats = info["mel_stats"] if normalize else None
        self._normalization = None if stats is None else mel_normalization(stats, self.shape)

    def __len__(self) -> int:
        """Return the number of samples that this rank iterates, the same on all ranks."""
        return math.ceil(self.num_samples / self.world_size)

    def __repr__(self) -> str:
        options = f", filter={self.filter!r}" if self.filter else ""
        rank, world_size = self.explicit_rank
        if (world_size or 1) > 1:
            options += f", rank={rank} of {world_size}"
        return (
            f"AVDataset({self.name!r}, split={self.split!r}, {self.num_samples:,} samples, "
            f"{self.shape.sample}{options})"
        )

    def _repr_html_(self) -> str:
        # No samples of a remote dataset: showing it must not download any.
        count = 0 if self._reader.remote else min(SAMPLES_SHOWN, self.num_samples)
        return render_dataset(
            self.info, self.split, self.num_samples, {"mel": self.shape.mel, "frames": self.shape.frames},
            [self.sample(number)._repr_html_() for number in range(count)], self.filter,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The folder or URL of the dataset, with credentials redacted."""
        return self._reader.name

    @property
    def root(self) -> Path:
        """The folder of dataset.json and index.parquet (of a remote dataset: of their copies)."""
        return self._reader.root

    @cached_property
    def keys(self) -> list[str]:
        """The keys of all samples, in the order of the index."""
        return list(self._index["key"].to_pylist())

    @cached_property
    def _number(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys)}

    def key(self, number: int) -> str:
        """Return the key of one sample."""
        return str(self._index["key"][number].as_py())

    def _sha256_of(self, number: int) -> str:
        if self._sha256 is None:
            # Read on demand: the checksums are half of the index and only needed for single remote samples.
            # Another process may have replaced the copy of the index by that of a newer publication.
            self._reader.set_expected(self.info, self.split)
            index = read_index(self._reader.root, ["shard", "offset", "sha256"])
            rows = zip(*(index[name].to_pylist() for name in index.column_names), strict=True)
            self._sha256 = {(shard, offset): sha256 for shard, offset, sha256 in rows}
        return self._sha256[self._shard[self.shard_of[number]], int(self._offset[number])]

    def keys_of(self, numbers: np.ndarray) -> list[str]:
        """Return the keys of samples."""
        return list(self._index["key"].take(numbers).to_pylist())

    def epoch_order(self) -> np.ndarray:
        """Return the sample numbers in the order of the current epoch, over all ranks."""
        return self.order_of(self.epoch)

    def order_of(self, epoch: int) -> np.ndarray:
        """Return the sample numbers in the order of an epoch, over all ranks."""
        if self.weights is None:
            return cached_order(self._sizes, self.order, epoch)
        counts = weighted_counts(self.weights, self.order, epoch)
        # A sample that occurs twice counts twice in its shard.
        sizes = np.bincount(self.shard_of, counts, minlength=len(self._shard)).astype(np.int64)
        return np.repeat(np.arange(self.num_samples), counts)[epoch_order(sizes, self.order, epoch)]

    def find(self, key: str) -> AVSample:
        """Return the sample with a key.

        Raises:
            UsageError: The split has no such key.
        """
        if key not in self._number:
            msg = f"Unknown sample {key!r} in split {self.split} of {self.name}."
            raise UsageError(msg, hint=did_you_mean(key, self.keys) if self.num_samples < 100_000 else None)
        return self[self._number[key]]

    def __getitem__(self, number: int) -> AVSample:
        if not is_integer(number):
            msg = f"Invalid sample number {number!r}: must be an integer."
            raise UsageError(
                msg, hint="[dataset[number] for number in ...] reads several; find(key) looks up one"
            )
        if not -self.num_samples <= number < self.num_samples:
            msg = f"Sample {number} is out of range: {self.num_samples} samples."
            raise IndexError(msg)
        sample = self.sample(int(number) % self.num_samples, fetch_shard=False)
        return sample.as_dict() if self.as_dict else sample  # type: ignore[return-value]

    def sample(self, number: int, *, fetch_shard: bool = True) -> AVSample:
        """Return one sample.

        Args:
            number: Number of the sample in the index.
            fetch_shard: Fetch the complete shard of a remote dataset, for the samples that follow.
        """
        mel = torch.empty(self.shape.mel)
        frames = self.shape.empty_frames(strip=self.is_strip)
        waveform = None if self.shape.waveform is None else torch.empty(self.shape.waveform)
        assembler = BatchAssembler()
        metadata = self.fill(
            number,
            mel,
            frames,
            assembler,
            waveform=waveform,
            fetch_shard=fetch_shard,
            always_metadata=True,
        )
        assembler.flush()
        return AVSample(
            mel=mel.unsqueeze(1),
            frames=self.shape.sample_tensor(frames, strip=self.is_strip),
            label=int(self._label[number]), key=self.key(number), metadata=metadata,
            waveform=waveform, sample_rate=self.shape.sample_rate,
        )  # fmt: skip

    def fill(
        self,
        number: int,
        mel: torch.Tensor,
        frames: torch.Tensor | None,
        assembler: BatchAssembler,
        *,
        waveform: torch.Tensor | None = None,
        key: str | None = None,
        fetch_shard: bool = True,
        always_metadata: bool = False,
    ) -> dict[str, Any]:
        """Read a sample into `mel`, float32 [T, F, L], and `frames`, uint8 in storage layout.

        Args:
            number: Number of the sample in the index.
            mel: Destination of the mel.
            frames: Destination of the frames; see `SampleShape.layout`. None without frames.
            assembler: Performs the copies; the destinations are complete after its `flush`.
            waveform: Destination of the waveform, float32 [n], if it is read.
            key: Key of the sample, if the caller has it.
            fetch_shard: Fetch the complete shard of a remote dataset, not only this sample.
            always_metadata: Parse the sample's JSON also if it holds no step labels.

        Returns:
            The sample's JSON if requested or if it labels steps, else an empty dict: parsing takes time.

        Raises:
            AvdataError: The sample is unreadable; the message names its shard and key.
        """
        shard, key = self._shard[self.shard_of[number]], key or self.key(number)
        offset, nbytes = int(self._offset[number]), int(self._nbytes[number])
        try:
            if fetch_shard:
                data = self._reader.read_shard(shard)[offset : offset + nbytes]
            else:
                data = self._reader.read_sample(shard, offset, nbytes, lambda: self._sha256_of(number))
            members = read_members(data, key)
            assembler.mel(members, self.shape, self._normalization, mel)
            assembler.frames(members, self.shape, frames, strip=self.is_strip)
            if waveform is not None:
                assembler.waveform(members, self.shape, waveform)
            text = bytes(members["json"])
            return dict(json.loads(text)) if always_metadata or b'"step_labels"' in text else {}
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            raise sample_error(error, key, shard, self.name) from error

    def present_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return whether samples have non-silent audio and non-black frames, bool [B, 2]."""
        return self._present[numbers]

    def label_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the labels of samples, int64 [B]."""
        return self._label[numbers]

    def prefetch(self, number: int) -> None:
        """Fetch the shard of a sample, if it is remote."""
        self._reader.prefetch(self._shard[self.shard_of[number]])

    def first_uses(self, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (position, sample) for the first sample of each remote shard, in the order of `numbers`."""
        return first_uses(self.shard_of, numbers if self._reader.remote else numbers[:0])

    def identity(self) -> dict[str, Any]:
        """Return the properties that a state and the stream that loads it must share."""
        order = self.order
        return {
            "of": self.num_samples, "seed": order.seed, "shuffle": order.shuffle, "block": order.block,
            "canonical_nodes": order.canonical_nodes, "split": self.split, "filter": self.filter,
            "weights": None if self.weights is None else hashlib.sha256(self.weights.tobytes()).hexdigest(),
            # The config hash alone does not tell apart datasets of different clips.
            "config_hash": self.info["config_hash"], "index": self.info.get("index", {}).get("sha256"),
        }  # fmt: skip

    def __iter__(self) -> SampleIterator:
        return SampleIterator(self)

    def loader(
        self, batch_size: int, *, num_workers: int = 2, drop_last: bool = False, pin_memory: bool = False
    ) -> AVLoader:
        """Return a loader of this rank's batches.

        Args:
            batch_size: Samples per batch.
            num_workers: Number of threads that assemble batches in advance; 0 assembles each on request.
            drop_last: Drop the last incomplete batch instead of padding it.
            pin_memory: Copy batches to page-locked memory if CUDA is available.
        """
        return AVLoader(self, batch_size, num_workers=num_workers, drop_last=drop_last, pin_memory=pin_memory)
