"""Read and decode single samples of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from avdata.errors import AvdataError
from avdata.shards.members import parse_metadata, read_members
from avdata.streaming.batch import AVSample
from avdata.streaming.collate import BatchAssembler, MelNormalization, SampleShape
from avdata.streaming.frames_format import FramesFormat
from avdata.streaming.parts import Shards
from avdata.streaming.shard_reader import sample_error
from avdata.streaming.split_index import SplitIndex


@dataclass
class SampleReader:
    """Reader of the samples of an index.

    Attributes:
        shards: Reader of the shards.
        index: The samples; they are numbered in its order.
        info: Content of dataset.json.
        splits: Names of the splits of the samples.
        shape: Shapes of what is read of a sample.
        is_strip: Whether the frames of a sample are stored as one image.
        frames_format: Data type and memory layout of `AVSample.frames`.
        normalization: Normalization of the mels, if any.
    """

    shards: Shards
    index: SplitIndex
    info: Mapping[str, Any]
    splits: Sequence[str]
    shape: SampleShape
    is_strip: bool
    frames_format: FramesFormat
    normalization: MelNormalization | None
    _sha256: Any = field(default=None, init=False, repr=False)

    def sample(self, number: int, *, fetch_shard: bool = True) -> AVSample:
        """Return one sample.

        Args:
            number: Number of the sample in the index.
            fetch_shard: Fetch the complete shard of a remote dataset, for the samples that follow.
        """
        shape = self.shape
        mel = torch.empty(shape.mel) if shape.has_mel else None
        frames = shape.empty_frames(strip=self.is_strip)
        waveform = None if shape.waveform is None else torch.empty(shape.waveform)
        assembler, key = BatchAssembler(), self.index.key(number)
        metadata = self.fill(
            number, mel, frames, assembler, waveform=waveform, key=key, fetch_shard=fetch_shard,
            always_metadata=True,
        )  # fmt: skip
        assembler.flush()
        return AVSample(
            mel=None if mel is None else mel.unsqueeze(1),
            frames=self.frames_format.convert(shape.sample_tensor(frames, strip=self.is_strip)),
            label=int(self.index.label[number]), key=key, metadata=metadata,
            waveform=waveform, sample_rate=shape.sample_rate,
        )  # fmt: skip

    def fill(
        self,
        number: int,
        mel: torch.Tensor | None,
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
            mel: Destination of the mel, if it is read.
            frames: Destination of the frames, if they are read; see `SampleShape.layout`.
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
        index = self.index
        shard, key = index.shards[index.shard_of[number]], key or index.key(number)
        offset, nbytes = int(index.offset[number]), int(index.nbytes[number])
        try:
            if fetch_shard:
                data = self.shards.read_shard(shard)[offset : offset + nbytes]
            else:
                data = self.shards.read_sample(shard, offset, nbytes, lambda: self._sha256_of(number))
            members = read_members(data, key)
            if mel is not None:
                assembler.mel(members, self.shape, self.normalization, mel)
            assembler.frames(members, self.shape, frames, strip=self.is_strip)
            if waveform is not None:
                assembler.waveform(members, self.shape, waveform)
            text = bytes(members["json"])
            is_needed = always_metadata or b'"step_labels"' in text
            return parse_metadata(text, self.shape.mel[0]) if is_needed else {}
        except (AvdataError, ValueError, KeyError, RuntimeError) as error:
            raise sample_error(error, key, shard, self.shards.name) from error

    def verify_index(self) -> None:
        """Check that the index is that of dataset.json; call it before reading more columns.

        Another process may have replaced the copy of a remote index by that of a newer publication.
        """
        self.shards.set_expected(self.info, self.splits)

    def _sha256_of(self, number: int) -> str:
        if self._sha256 is None:
            # Read on demand: the checksums are half of the index and only needed for single remote samples.
            self.verify_index()
            self._sha256 = self.index.column("sha256", self.shards)
        return str(self._sha256[number].as_py())
