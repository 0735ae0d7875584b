"""Map-style view of a dataset: samples by number, for torch's samplers and wrappers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from avdata.errors import UsageError
from avdata.streaming.batch import AVSample, as_dict
from avdata.streaming.epochs import MAX_EPOCH, EpochCounter, is_integer
from avdata.streaming.protocols import StreamSource
from avdata.streaming.transforms import log_skipped, read_or_substitute


class MapSource(StreamSource, Protocol):
    """Samples that a view reads: `AVDataset`."""

    labels: list[str]

    @property
    def keys(self) -> list[str]:
        """The keys of all samples, in the order of the index."""
        ...

    def number_of(self, key: str) -> int:
        """Return the number of the sample with a key."""
        ...


class AVMapDataset(Dataset[AVSample]):
    """Map-style view of a dataset; `AVDataset.as_map` creates it.

        dataset = avdata.open("out/cremad").as_map()
        loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True, num_workers=4)

    `view[7]`, `view[-1]` and `view["key"]` return a sample; `view[:10]`, `view[[3, 1]]` and lists of keys
    return a list of samples. Numbers follow the order of the index. torch's samplers, `Subset`,
    `random_split` and `ConcatDataset` accept the view.

    The sampler determines order and ranks: `shuffle`, `weights`, `repeat`, `epoch_size`, `rank` and
    `world_size` of the dataset have no effect. Reading a sample of a remote dataset fetches its shard. With
    `on_error="skip"`, an unreadable sample is replaced by the next readable one with weight 0.

    Attributes:
        dataset: The dataset.
    """

    def __init__(self, dataset: MapSource) -> None:
        self.dataset = dataset
        self._epochs = EpochCounter()

    def __len__(self) -> int:
        return self.dataset.num_rows

    def __repr__(self) -> str:
        return f"AVMapDataset({self.dataset!r})"

    @property
    def labels(self) -> list[str]:
        """Label names; `AVSample.label` is an index into them."""
        return self.dataset.labels

    @property
    def keys(self) -> list[str]:
        """Keys of the samples."""
        return self.dataset.keys

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that seeds the generators of transforms, also in workers that are running.

        Call it before each epoch, as `DistributedSampler.set_epoch`: without it, a sample is transformed
        alike each time.
        """
        if not is_integer(epoch) or not 0 <= epoch < MAX_EPOCH:
            msg = f"Invalid epoch {epoch!r}: must be an integer of at least 0."
            raise UsageError(msg)
        self._epochs.set(int(epoch))

    def __getitem__(self, index: Any) -> Any:
        if type(index) is not int and (several := self._several(index)) is not None:
            return self.__getitems__(several)
        number, sample = read_or_substitute(self.dataset, self._number(index), log_skipped)
        item: Any = sample
        if self.dataset.has_transform:
            item = self.dataset.transformed(number, sample, epoch=self._epochs.following())
        return as_dict(item) if self.dataset.as_dict else item

    def __getitems__(self, indices: Iterable[Any]) -> list[Any]:
        """Return several samples; the workers of a `DataLoader` call it with the numbers of a batch."""
        return [self[index] for index in indices]

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def _several(self, index: Any) -> Iterable[Any] | None:
        """Return the indices of a slice, list or array; None for the index of a single sample."""
        if isinstance(index, slice):
            return range(len(self))[index]
        is_array = isinstance(index, (np.ndarray, torch.Tensor)) and index.ndim == 1
        return index if is_array or isinstance(index, (list, tuple, range)) else None

    def _number(self, index: Any) -> int:
        """Return the number of a sample by a number, also negative, or a key."""
        if isinstance(index, torch.Tensor) and index.ndim == 0:
            index = index.item()
        if isinstance(index, str):
            return self.dataset.number_of(index)
        if not is_integer(index):
            msg = f"Invalid sample number {index!r}: must be an integer, a key, a slice or a list of them."
            raise UsageError(msg)
        if not -len(self) <= index < len(self):
            msg = f"Sample {index} is out of range: {len(self)} samples."
            raise IndexError(msg)
        return int(index) % len(self)
