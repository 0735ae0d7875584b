"""Interfaces between loaders and iterators, and the datasets they read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from avdata.streaming.batch import AVSample
from avdata.streaming.collate import BatchAssembler, SampleShape
from avdata.streaming.distributed import RankInfo
from avdata.streaming.frames_format import FramesFormat
from avdata.streaming.sampling import ShuffleConfig


class StreamSource(Protocol):
    """Samples that `AVLoader` assembles into batches: `AVDataset` and `MixedDataset`."""

    on_error: str
    as_dict: bool
    order: ShuffleConfig
    shape: SampleShape
    is_strip: bool
    frames_format: FramesFormat

    @property
    def epoch(self) -> int:
        """Epoch of the current pass; after its last sample or batch, that of the next pass."""
        ...

    @property
    def num_samples(self) -> int:
        """Number of samples of an epoch, over all ranks."""
        ...

    @property
    def num_rows(self) -> int:
        """Number of distinct samples; they are numbered from 0."""
        ...

    @property
    def has_transform(self) -> bool:
        """Whether `transformed` changes samples."""
        ...

    def rank_info(self) -> RankInfo:
        """Return the rank and world size of this process, resolved now."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, which determines the order together with the seed."""
        ...

    def begin_pass(self) -> int:
        """Begin a new pass and return its epoch, the same in all workers of a pass."""
        ...

    def resume_pass(self, epoch: int) -> None:
        """Continue a pass of an epoch."""
        ...

    def end_pass(self, epoch: int) -> None:
        """Record that all of an epoch was handed out."""
        ...

    def order_of(self, epoch: int) -> np.ndarray:
        """Return the sample numbers in the order of an epoch, over all ranks."""
        ...

    def keys_of(self, numbers: np.ndarray) -> list[str]:
        """Return the keys of samples."""
        ...

    def label_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the labels of samples, int64 [B]."""
        ...

    def present_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return whether samples have non-silent audio and non-black frames, bool [B, 2]."""
        ...

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
        """Read a sample into `mel`, float32 [T, F, L], `frames`, uint8, and `waveform`, float32 [n].

        Returns:
            The sample's JSON if it labels steps, else an empty dict.
        """
        ...

    def prefetch(self, number: int) -> None:
        """Fetch the shard of a sample, if it is remote."""
        ...

    def first_uses(self, numbers: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (position, sample) for the first sample of each remote shard, in the order of `numbers`."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return the properties that a state and the stream that loads it must share."""
        ...

    def sample(self, number: int) -> AVSample:
        """Return one sample, before the transform."""
        ...

    def transformed(self, number: int, sample: AVSample, *, epoch: int, occurrence: int = 0) -> Any:
        """Return what the transform returns for a sample, or the sample if there is none."""
        ...
