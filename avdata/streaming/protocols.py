"""Interfaces between the loaders and the data they iterate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from avdata.streaming.batch import AVSample
from avdata.streaming.collate import BatchAssembler, SampleShape


class StreamSource(Protocol):
    """Samples that `Loader` assembles into batches: `AVDataset` and `Mixture`."""

    epoch: int
    on_error: str
    plan_rank: int
    shape: SampleShape
    is_strip: bool
    world_size: int

    def __len__(self) -> int: ...
    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        ...

    def epoch_order(self) -> np.ndarray:
        """Return the numbers of the samples in the order of the epoch, over all ranks."""
        ...

    def keys_of(self, numbers: np.ndarray) -> list[str]:
        """Return the keys of samples."""
        ...

    def label_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the labels of samples, int64 [B]."""
        ...

    def present_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return which modalities samples have, bool [B, 2]."""
        ...

    def fill(
        self,
        number: int,
        mel: torch.Tensor,
        frames: torch.Tensor,
        copies: BatchAssembler,
        *,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Read a sample into `mel`, float32 [T, F, L], and `frames`, uint8; return its JSON if needed."""
        ...

    def prefetch(self, number: int) -> None:
        """Fetch the shard of a sample."""
        ...

    def first_uses(self, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (place, sample) where a remote shard is needed for the first time."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what a state must have in common with the stream that resumes from it."""
        ...


class SampleSource(StreamSource, Protocol):
    """Samples that `Samples` iterates one by one: `AVDataset`."""

    def shared_epoch(self) -> int:
        """Return the epoch that this process iterates."""
        ...

    def order_of(self, epoch: int) -> np.ndarray:
        """Return the order of any epoch."""
        ...

    def sample(self, number: int) -> AVSample:
        """Return one sample."""
        ...
