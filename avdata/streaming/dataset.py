"""Prepared sets as a stream: an iterable dataset that follows a plan, and its samples near or far.

Shards are mapped into memory and read through the index, by threads of this process: ready-made arrays need
no worker processes, which would only copy them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from avdata.errors import AvdataError, SampleFlag, UnavailableError, UsageError, did_you_mean, error_message
from avdata.shards.format import index_schema
from avdata.shards.reader import read_index, read_info, read_members
from avdata.streaming.batch import AVBatch, AVSample
from avdata.streaming.collate import BatchAssembler, SampleShape, mel_normalization
from avdata.streaming.filter import parse_filter
from avdata.streaming.iterator import SampleIterator, SharedEpoch
from avdata.streaming.loader import AVLoader
from avdata.streaming.sampling import (
    ShuffleConfig,
    cached_order,
    epoch_order,
    first_uses,
    plan_rank,
    weighted_counts,
)
from avdata.streaming.shard_cache import DEFAULT_LIMIT_BYTES, ShardCache
from avdata.streaming.shard_reader import ShardReader
from avdata.visualization.html import SAMPLES_SHOWN, render_dataset

_COLUMNS = ("key", "split", "shard", "offset", "nbytes", "label", "flags")  # what a stream always needs

__all__ = ["AVBatch", "AVDataset", "AVLoader", "AVSample", "open_dataset"]


def open_dataset(
    dataset: str | Path,
    split: str = "train",
    *,
    shuffle: bool = False,
    seed: int = 0,
    normalize: bool = True,
    filter: str | None = None,
    weights: str | Sequence[float] | np.ndarray | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    canonical_nodes: int | None = None,
    block: int = ShuffleConfig.block,
    rank: int | None = None,
    world_size: int | None = None,
    cache: str | Path | None = None,
    cache_bytes: int = DEFAULT_LIMIT_BYTES,
) -> AVDataset:
    """Open one split of a prepared set.

    Args:
        dataset: the set's folder, or a URL of one (`https://`, `s3://`, `gs://`, `hf://datasets/user/name`,
        …).
        split: train, val or test.
        shuffle: a new order each epoch; see `AVDataset.set_epoch`.
        seed: of the order.
        normalize: subtract the train split's mean from each mel band and divide by its deviation.
        filter: only the samples whose row of the index meets a condition, such as `group != '1001'`.
        weights: how often samples come, relative to one another: a number each, in the order of the index
            after the filter; or a column of the index, such as `label`, whose values are to come equally
            often. An epoch stays as long as the set: some samples come several times, others not in each.
        on_error: what becomes of a sample that cannot be read: `raise`, or `skip`, which gives its place
            weight 0 and counts it in `AVLoader.skipped`; iterated, or through torch's `DataLoader`, another
            sample stands in, with weight 0 and the reason in `facts["skipped"]`. A place that cannot be
            reached is no sample's fault, and raises.
        canonical_nodes: spans that are read side by side; choose a multiple of the number of machines, so
            that each reads only its part. By default 8 with shuffling, and without 1, the order of the index.
        block: samples of a span that are shuffled together.
        rank: which part of the work this process has; None asks torch.distributed, then the environment.
        world_size: how many processes share the work; likewise.
        cache: folder for the shards of a remote set; by default below `AVDATA_CACHE`.
        cache_bytes: how much it may hold.

    Raises:
        AvdataError: this is not a prepared set, or it cannot be reached.
        UsageError: the set has no such split, or the filter or URL is not one.
    """
    if on_error not in {"raise", "skip"}:
        msg = f"on_error={on_error!r}: it is 'raise' or 'skip'"
        raise UsageError(msg)
    reader = ShardReader(dataset, ShardCache(cache, cache_bytes))
    info = read_info(reader.root)
    if split not in info["splits"]:
        msg = f"{reader.name} has no split {split!r}"
        raise UsageError(msg, hint=did_you_mean(split, list(info["splits"])))
    reader.set_expected(info, split)
    nodes = canonical_nodes or (ShuffleConfig.canonical_nodes if shuffle else 1)
    for name, number, least in (("seed", seed, 0), ("canonical_nodes", nodes, 1), ("block", block, 1)):
        if not isinstance(number, (int, np.integer)) or number < least:
            msg = f"{name}={number!r}: it is a whole number, at least {least}"
            raise UsageError(msg)
    order = ShuffleConfig(seed=seed, shuffle=shuffle, canonical_nodes=nodes, block=block)
    place = _world() if rank is None or world_size is None else (0, 1, 1)
    return AVDataset(
        reader, split, info, order=order, normalize=normalize, chosen=filter, weights=weights,
        on_error=on_error,
        rank=place[0] if rank is None else rank, world_size=place[1] if world_size is None else world_size,
        ranks_a_node=place[2] if rank is None and world_size is None else 1,
    )  # fmt: skip


def _world() -> tuple[int, int, int]:
    """Rank, world size, and ranks of a node, as torchrun or torch.distributed have them."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        rank, world = distributed.get_rank(), distributed.get_world_size()
    else:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    # Of what all ranks are told alike: LOCAL_WORLD_SIZE differs where nodes have unequally many, and then two
    # ranks would take the same seat.
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", world))
    return rank, world, max(world // nodes, 1) if world % nodes == 0 else 1


class AVDataset(IterableDataset[AVSample]):
    """One split of a prepared set: iterate it, index it, find a sample by key, or take its loader."""

    def __init__(
        self,
        reader: ShardReader,
        split: str,
        info: Mapping[str, Any],
        *,
        order: ShuffleConfig,
        normalize: bool,
        chosen: str | None,
        weights: str | Sequence[float] | np.ndarray | None,
        on_error: str,
        rank: int,
        world_size: int,
        ranks_a_node: int,
    ) -> None:
        if not 0 <= rank < world_size:
            msg = f"rank {rank} of {world_size} processes: ranks are 0 to {world_size - 1}"
            raise UsageError(msg)
        import pyarrow.compute as pc  # noqa: PLC0415

        named = f"{chosen} {weights if isinstance(weights, str) else ''}"
        index = read_index(
            reader.root, [name for name in index_schema().names if name in _COLUMNS or name in named]
        )
        index = index.filter(pc.equal(index["split"], split))
        if chosen is not None:
            index = index.filter(parse_filter(chosen, index_schema()))
        self.split, self.info, self.order, self.on_error = split, info, order, on_error
        self.filter = chosen
        self.epoch, self._shared_epoch = 0, SharedEpoch()
        self.rank, self.world_size = rank, world_size
        self.plan_rank = plan_rank(rank, world_size, ranks_a_node)
        self.labels: list[str] = list(info["labels"])
        self.shape = SampleShape(tuple(info["shape"]["mel"]), tuple(info["shape"]["frames"]))
        # Whether frames are stored as JPEG strips.
        self.is_strip = info["config"].get("video", {}).get("storage", "npy") in {"jpeg", "png"}
        self._reader = reader
        self._sha256: dict[tuple[str, int], str] | None = None
        self._index = index.combine_chunks()
        self._label = index["label"].to_numpy().astype(np.int64)
        self._offset, self._nbytes = index["offset"].to_numpy(), index["nbytes"].to_numpy()
        # The shard of each sample, by its place among the split's shards.
        shards = index["shard"].combine_chunks().dictionary_encode()
        self._shard: list[str] = shards.dictionary.to_pylist()
        self.shard_of = shards.indices.to_numpy()
        self._sizes = tuple(np.bincount(self.shard_of, minlength=len(self._shard)).tolist())
        self.weights = None if weights is None else _weights(weights, self._index)
        silent = pc.list_flatten(self._index["flags"])
        owner = pc.list_parent_indices(self._index["flags"])
        self._present = np.ones((len(self._label), 2), bool)
        for modality, flag in enumerate((SampleFlag.SILENT_AUDIO, SampleFlag.BLACK_FRAMES)):
            self._present[owner.filter(pc.equal(silent, str(flag))).to_numpy(), modality] = False
        stats = info["mel_stats"] if normalize else None
        self._normalization = None if stats is None else mel_normalization(stats, self.shape)

    def __len__(self) -> int:
        return len(self._label)

    def _repr_html_(self) -> str:
        # Of a remote set nothing is fetched just to be looked at.
        shown = 0 if self._reader.remote else min(SAMPLES_SHOWN, len(self))
        return render_dataset(
            self.info, self.split, len(self), {"mel": self.shape.mel, "frames": self.shape.frames},
            [self[number]._repr_html_() for number in range(shown)], self.filter,
        )  # fmt: skip

    @property
    def root(self) -> Path:
        """The folder of dataset.json and index.parquet; of a remote set, that of their copies."""
        return self._reader.root

    @cached_property
    def keys(self) -> list[str]:
        """The key of each sample, in the order of the index."""
        return list(self._index["key"].to_pylist())

    @cached_property
    def _number(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys)}

    def key(self, number: int) -> str:
        """The key of one sample."""
        return str(self._index["key"][number].as_py())

    def _sha256_of(self, number: int) -> str:
        if self._sha256 is None:
            # Half of the index, and wanted only for single samples from afar. Another process may have opened
            # the set since, after it was published anew, and have its index here.
            self._reader.set_expected(self.info, self.split)
            index = read_index(self._reader.root, ["shard", "offset", "sha256"])
            known = zip(*(index[name].to_pylist() for name in index.column_names), strict=True)
            self._sha256 = {(shard, offset): sha256 for shard, offset, sha256 in known}
        return self._sha256[self._shard[self.shard_of[number]], int(self._offset[number])]

    def keys_of(self, numbers: np.ndarray) -> list[str]:
        """The keys of samples."""
        return list(self._index["key"].take(numbers).to_pylist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides the order together with the seed; `DataLoader`s hear of it."""
        self.epoch = epoch
        if get_worker_info() is None:
            self._shared_epoch.set(epoch)

    def shared_epoch(self) -> int:
        """The epoch that this process is to give; one that a `DataLoader` keeps has an old dataset."""
        return self.epoch if get_worker_info() is None else self._shared_epoch.get()

    def epoch_order(self) -> np.ndarray:
        """The numbers of the split's samples in the order of the epoch, over all ranks."""
        return self.order_of(self.epoch)

    def order_of(self, epoch: int) -> np.ndarray:
        """The order of any epoch."""
        if self.weights is None:
            return cached_order(self._sizes, self.order, epoch)
        counts = weighted_counts(self.weights, self.order, epoch)
        # A sample that comes twice stands twice in its shard.
        sizes = np.bincount(self.shard_of, counts, minlength=len(self._shard)).astype(np.int64)
        return np.repeat(np.arange(len(self)), counts)[epoch_order(sizes, self.order, epoch)]

    def find(self, key: str) -> AVSample:
        """The sample of a key.

        Raises:
            UsageError: the split has no such key.
        """
        if key not in self._number:
            msg = f"split {self.split} of {self._reader.name} has no sample {key!r}"
            raise UsageError(msg, hint=did_you_mean(key, self.keys) if len(self) < 100_000 else None)
        return self[self._number[key]]

    def __getitem__(self, number: int) -> AVSample:
        if not -len(self) <= number < len(self):
            msg = f"sample {number} of {len(self)}"
            raise IndexError(msg)
        return self.sample(number % len(self), whole=False)

    def sample(self, number: int, *, whole: bool = True) -> AVSample:
        """One sample; `whole` fetches its whole shard of a remote set, for those that follow."""
        mel = torch.empty(self.shape.mel)
        frames = torch.empty((1, *self.shape.layout(strip=self.is_strip)), dtype=torch.uint8)
        copies = BatchAssembler()
        facts = self.fill(number, mel, frames[0], copies, whole=whole, shared_epoch=True)
        copies.flush()
        return AVSample(
            mel=mel.unsqueeze(1),
            frames=self.shape.tensor(frames, strip=self.is_strip)[0],
            label=int(self._label[number]), key=self.key(number), metadata=facts,
        )  # fmt: skip

    def fill(
        self,
        number: int,
        mel: torch.Tensor,
        frames: torch.Tensor,
        copies: BatchAssembler,
        *,
        key: str | None = None,
        whole: bool = True,
        shared_epoch: bool = False,
    ) -> dict[str, Any]:
        """Read sample `number` into mel, float32 [T, F, L], and frames, uint8 in the layout of their storage.

        Args:
            number: the sample's number in the index.
            mel: filled.
            frames: filled; see `SampleShape.layout`.
            copies: takes on what need not be done at once.
            key: its key, where the caller knows it.
            whole: fetch the whole shard of a remote set, as a stream wants it, not this sample alone.
            shared_epoch: the sample's JSON is wanted whatever it holds.

        Returns:
            The sample's JSON where it is wanted or labels steps; parsing it takes time.

        Raises:
            AvdataError: it cannot be read; the message names shard and key.
        """
        shard, key = self._shard[self.shard_of[number]], key or self.key(number)
        offset, nbytes = int(self._offset[number]), int(self._nbytes[number])
        try:
            if whole:
                data = self._reader.read_shard(shard)[offset : offset + nbytes]
            else:
                data = self._reader.read_sample(shard, offset, nbytes, lambda: self._sha256_of(number))
            members = read_members(data, key)
            copies.mel(members, self.shape, self._normalization, mel)
            copies.frames(members, self.shape, frames, strip=self.is_strip)
            facts = bytes(members["json"])
            return dict(json.loads(facts)) if shared_epoch or b'"step_labels"' in facts else {}
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            reason = f"member {error} is missing" if isinstance(error, KeyError) else error_message(error)
            msg = f"sample {key} in {shard} cannot be read: {reason}"
            hint = (
                f"avdata verify {self._reader.name} lists all that is wrong; on_error='skip' goes on without"
            )
            kind = UnavailableError if isinstance(error, UnavailableError) else AvdataError
            raise kind(msg, hint=getattr(error, "hint", None) or hint) from error

    def present_of(self, numbers: np.ndarray) -> np.ndarray:
        """Whether samples have sound that is not silent and frames that are not black, bool [B, 2]."""
        return self._present[numbers]

    def label_of(self, numbers: np.ndarray) -> np.ndarray:
        """Labels of samples, int64."""
        return self._label[numbers]

    def prefetch(self, number: int) -> None:
        """Bring the shard of a sample here."""
        self._reader.prefetch(self._shard[self.shard_of[number]])

    def first_uses(self, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
        """(place, sample) where a remote shard is needed for the first time, of samples in this order."""
        return first_uses(self.shard_of, numbers if self._reader.remote else numbers[:0])

    def identity(self) -> dict[str, Any]:
        """What a state must have in common with the stream that goes on from it."""
        order = self.order
        return {
            "of": len(self), "seed": order.seed, "shuffle": order.shuffle, "block": order.block,
            "canonical_nodes": order.canonical_nodes, "split": self.split, "filter": self.filter,
            "weights": None if self.weights is None else hashlib.sha256(self.weights.tobytes()).hexdigest(),
            # The same settings over other clips make another index.
            "config_hash": self.info["config_hash"], "index": self.info.get("index", {}).get("sha256"),
        }  # fmt: skip

    def __iter__(self) -> SampleIterator:
        return SampleIterator(self)

    def loader(
        self, batch_size: int, *, num_workers: int = 2, drop_last: bool = False, pin_memory: bool = False
    ) -> AVLoader:
        """Batches of this rank, made ahead by `num_workers` threads; 0 makes each when it is asked for."""
        return AVLoader(self, batch_size, num_workers=num_workers, drop_last=drop_last, pin_memory=pin_memory)


def _weights(weights: str | Sequence[float] | np.ndarray, index: Any) -> np.ndarray:
    """The weight of each sample, float64 [samples]."""
    if isinstance(weights, str):
        if weights not in index.column_names or weights == "flags":  # it holds lists
            msg = f"the index has no column {weights!r} to weigh samples by"
            raise UsageError(msg, hint=did_you_mean(weights, index.column_names))
        _, which, counts = np.unique(
            index[weights].to_numpy(zero_copy_only=False), return_inverse=True, return_counts=True
        )
        return np.asarray(1 / counts[which], np.float64)
    made = np.asarray(weights, np.float64)
    if made.shape != (len(index),) or not np.isfinite(made).all() or (made < 0).any() or not made.any():
        msg = f"weights must be {len(index)} numbers that are not negative, and not all 0"
        raise UsageError(msg, hint="there is one a sample, in the order of the index after the filter")
    return made
