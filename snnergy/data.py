"""Conversion of avdata's batches to the layout that the network takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import avdata
from avdata.config.schema import Config
from avdata.errors import AvdataError, UsageError
from avdata.streaming.batch import AVBatch
from avdata.streaming.collate import MelNormalization, mel_normalization
from avdata.streaming.dataset import AVDataset
from snnergy.fusion.registry import FUSIONS
from snnergy.layers.waveform_mel import WaveformMel
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.inputs import SMALLEST, InputBatch, normalize_frames, presence_masks

Features = Literal["stored", "waveform"]
"""Source of the mels: the dataset, or its waveforms, from which the device computes them."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Batch in the network's layout, time first.

    Attributes:
        audio: float32 [T, B, 1, F, L].
        video: float32 [T, B, C, H, W].
        label: int64 [B], or [B, T] for labels of steps.
        weight: float32 [B]; 0 marks padding.
        present: bool [B, 2] on the CPU, whether a sample has audio and video; None: all have both.
    """

    audio: Tensor
    video: Tensor
    label: Tensor
    weight: Tensor
    present: Tensor | None = None

    @property
    def masks(self) -> tuple[Tensor | None, Tensor | None]:
        """`mask_a` and `mask_v` of `SNNergy.forward`, on the device of the inputs."""
        if self.present is None:
            return None, None
        masks = presence_masks(self.present, self.audio.device)
        return masks["mask_a"], masks["mask_v"]

    @property
    def arguments(self) -> dict[str, Tensor]:
        """Arguments of `SNNergy.forward`."""
        masks = zip(("mask_a", "mask_v"), self.masks, strict=True)
        given = {name: mask for name, mask in masks if mask is not None}
        return {"audio": self.audio, "video": self.video, **given}


def open_split(
    dataset: str | Path,
    split: str,
    *,
    features: Features = "stored",
    shuffle: bool = False,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
) -> AVDataset:
    """Open one split of a prepared dataset. By default torch.distributed provides rank and world size.

    Raises:
        UsageError: with features=waveform, the dataset has no waveforms.
    """
    waveform = features == "waveform"
    return avdata.open(
        dataset, split, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size, waveform=waveform
    )


def open_any_split(dataset: str | Path, splits: Sequence[str], **options: Any) -> AVDataset:
    """Open the first of `splits` that a prepared dataset has. Options as for `open_split`.

    Raises:
        AvdataError: it has none of them.
    """
    for split in splits:
        try:
            return open_split(dataset, split, **options)
        except UsageError as error:
            if not error.message.startswith("Unknown split"):
                raise
    msg = f"Dataset has none of the splits {', '.join(splits)}: {dataset}."
    raise AvdataError(msg, hint="Prepare it with another --split-by; avdata info lists them")


class Renormalization(nn.Module):
    """Conversion of stored mels from the statistics of their dataset to those of a training set.

    Args:
        source: normalization of the dataset, which its loaders apply; None: they apply none.
        target: normalization of the training set; None: none.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, source: MelNormalization | None, target: MelNormalization | None) -> None:
        super().__init__()
        identity = MelNormalization(torch.zeros(()), torch.ones(()))
        old, new = source or identity, target or identity
        self.register_buffer("scale", new.factor / old.factor)
        self.register_buffer("offset", (old.mean - new.mean) * new.factor)

    def forward(self, mel: Tensor) -> Tensor:
        """Return float32 [B, T, 1, F, L] for mels of the same shape."""
        return torch.addcmul(self.offset, mel, self.scale)


MelTransform = WaveformMel | Renormalization


def mel_transform(
    data: AVDataset, device: torch.device | str | None = None, facts: DatasetFacts | None = None
) -> MelTransform | None:
    """Return the module that computes a network's mels from batches; None if the loaders already return them.

    Args:
        data: dataset; if it was opened with waveforms, the module computes mels from them.
        device: device of the module.
        facts: those of the network's training set, whose statistics normalize the mels; None: of `data`.

    Raises:
        UsageError: a setting of the dataset has no equivalent in torchaudio.
    """
    own = data.info["mel_stats"]
    stats = own if facts is None else facts.mel_stats
    source, target = (None if each is None else mel_normalization(each, data.shape) for each in (own, stats))
    if data.shape.waveform is not None:
        return WaveformMel(Config.model_validate(data.info["config"]), target).to(device)
    return None if own == stats else Renormalization(source, target).to(device)


def video_channels(data: AVDataset, fusion: str) -> int:
    """Return the number of color channels of a dataset; 3 for a dataset of audio.

    Raises:
        UsageError: the dataset has no frames, and the fusion requires some.
    """
    frames = data.info["shape"]["frames"]
    if frames is None and "video" in FUSIONS[fusion].modalities:
        msg = f"Fusion {fusion!r} requires frames, and the dataset of audio {data.name} has none."
        raise UsageError(msg, hint="Use --fusion audio")
    return 3 if frames is None else int(frames[3])


def to_batch(
    mel: Tensor, frames: Tensor, label: Tensor, weight: Tensor, present: Tensor | None = None
) -> Batch:
    """Return a batch with time first and frames normalized to floats.

    Args:
        mel: float32 [B, T, 1, F, L].
        frames: uint8 [B, T, C, H, W].
        label: int64 [B].
        weight: float32 [B].
        present: bool [B, 2]; None: all samples have audio and video.
    """
    return Batch(mel.transpose(0, 1).contiguous(), normalize_frames(frames), label, weight, present)


def to_device(
    batch: AVBatch,
    device: torch.device | str | None = None,
    mel: MelTransform | None = None,
    *,
    per_step: bool = False,
) -> Batch:
    """Return a batch of the loader in the network's layout on a device. Arguments as for `move_to_device`."""
    return to_batch(*move_to_device(batch, device, mel, per_step=per_step), batch.present)


def move_to_device(
    batch: AVBatch,
    device: torch.device | str | None,
    mel: MelTransform | None = None,
    *,
    per_step: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mel, frames, label and weight on a device. Frames stay uint8: a quarter of the bytes.

    In place of the frames of a dataset of audio are black ones of the smallest size, which no network
    reads: `video_channels` requires the fusion `audio`.

    Args:
        batch: batch of a loader.
        device: device of the tensors.
        mel: module on the device, from `mel_transform`; None: the mel of the loader.
        per_step: return the labels of the steps, int64 [B, T], instead of those of the clips.
    """
    audio = batch.waveform if isinstance(mel, WaveformMel) else batch.mel
    assert audio is not None
    frames = batch.frames
    if frames is None:
        assert batch.mel is not None
        size, steps = batch.mel.shape[:2]
        frames = torch.zeros((size, steps, 3, SMALLEST, SMALLEST), dtype=torch.uint8)
    label = batch.step_labels if per_step else batch.label
    assert label is not None
    parts = (audio, frames, label, batch.weight)
    audio, frames, label, weight = (part.to(device, non_blocking=True) for part in parts)
    return audio if mel is None else mel(audio), frames, label, weight


def batches(
    loader: Iterable[AVBatch],
    count: int,
    device: torch.device | str | None = None,
    mel: MelTransform | None = None,
) -> Iterator[Batch]:
    """Yield the first `count` batches of a loader in the network's layout."""
    for _, batch in zip(range(count), loader, strict=False):
        yield to_device(batch, device, mel)


def audio_video_batches(
    loader: Iterable[AVBatch],
    count: int,
    device: torch.device | str | None = None,
    mel: MelTransform | None = None,
) -> Iterator[InputBatch]:
    """Yield (audio, video, mask_a, mask_v) of the first `count` batches without padding.

    A batch of padding only is yielded complete, so that its process also has input.
    """
    for batch in batches(loader, count, device, mel):
        real = batch.weight > 0
        if not bool(real.any()):
            real = torch.ones_like(real)
        mask_a, mask_v = (None if mask is None else mask[real] for mask in batch.masks)
        yield batch.audio[:, real], batch.video[:, real], mask_a, mask_v
