"""Conversion of avdata's batches to the layout that the network takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import avdata
from avdata.config.schema import Config
from avdata.errors import UsageError
from avdata.streaming.batch import AVBatch
from avdata.streaming.collate import mel_normalization
from avdata.streaming.dataset import AVDataset
from snnergy.layers.waveform_mel import WaveformMel

Features = Literal["stored", "waveform"]
"""Source of the mels: the dataset, or its waveforms, from which the device computes them."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)

IMAGENET_STD = (0.229, 0.224, 0.225)

SMALLEST = 16
"""Smallest height and width that the network accepts, pixels."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Batch in the network's layout, time first.

    Attributes:
        audio: float32 [T, B, 1, F, L].
        video: float32 [T, B, C, H, W].
        label: int64 [B].
        weight: float32 [B]; 0 marks padding.
    """

    audio: Tensor
    video: Tensor
    label: Tensor
    weight: Tensor


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


def waveform_mel(data: AVDataset, device: torch.device | str | None = None) -> WaveformMel | None:
    """Return the module that computes mels from waveforms; None if `data` was opened without them.

    Raises:
        UsageError: a setting of the dataset has no equivalent in torchaudio.
    """
    if data.shape.waveform is None:
        return None
    stats = data.info["mel_stats"]
    normalization = None if stats is None else mel_normalization(stats, data.shape)
    return WaveformMel(Config.model_validate(data.info["config"]), normalization).to(device)


def video_channels(data: AVDataset, fusion: str) -> int:
    """Return the number of color channels of a dataset; 3 for a dataset of audio.

    Raises:
        UsageError: the dataset has no frames, and the fusion requires some.
    """
    frames = data.info["shape"]["frames"]
    if frames is None and fusion != "audio":
        msg = f"Fusion {fusion!r} requires frames, and the dataset of audio {data.name} has none."
        raise UsageError(msg, hint="use --fusion audio")
    return 3 if frames is None else int(frames[3])


def to_batch(mel: Tensor, frames: Tensor, label: Tensor, weight: Tensor) -> Batch:
    """Return a batch with time first and frames normalized to floats.

    Color frames use ImageNet's mean and standard deviation, gray frames 0.5 and 0.5.

    Args:
        mel: float32 [B, T, 1, F, L].
        frames: uint8 [B, T, C, H, W].
        label: int64 [B].
        weight: float32 [B].
    """
    color = frames.shape[2] == 3
    mean = torch.tensor(IMAGENET_MEAN if color else (0.5,), device=frames.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD if color else (0.5,), device=frames.device)[:, None, None]
    video = frames.transpose(0, 1).contiguous().float().mul_(1 / (255 * std)).sub_(mean / std)
    return Batch(audio=mel.transpose(0, 1).contiguous(), video=video, label=label, weight=weight)


def to_device(
    batch: AVBatch, device: torch.device | str | None = None, mel: WaveformMel | None = None
) -> Batch:
    """Return a batch of the loader in the network's layout on a device. Arguments as for `move_to_device`."""
    return to_batch(*move_to_device(batch, device, mel))


def move_to_device(
    batch: AVBatch, device: torch.device | str | None, mel: WaveformMel | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mel, frames, label and weight on a device. Frames stay uint8: a quarter of the bytes.

    In place of the frames of a dataset of audio are black ones of the smallest size, which no network
    reads: `video_channels` requires the fusion `audio`.

    Args:
        batch: batch of a loader.
        device: device of the tensors.
        mel: module on the device that computes the mel from the waveform; None: the stored mel.
    """
    audio = batch.mel if mel is None else batch.waveform
    assert audio is not None
    frames = batch.frames
    if frames is None:
        size, steps = batch.mel.shape[:2]
        frames = torch.zeros((size, steps, 3, SMALLEST, SMALLEST), dtype=torch.uint8)
    parts = (audio, frames, batch.label, batch.weight)
    audio, frames, label, weight = (part.to(device, non_blocking=True) for part in parts)
    return audio if mel is None else mel(audio), frames, label, weight


def batches(
    loader: Iterable[AVBatch],
    count: int,
    device: torch.device | str | None = None,
    mel: WaveformMel | None = None,
) -> Iterator[Batch]:
    """Yield the first `count` batches of a loader in the network's layout."""
    for _, batch in zip(range(count), loader, strict=False):
        yield to_device(batch, device, mel)


def audio_video_batches(
    loader: Iterable[AVBatch],
    count: int,
    device: torch.device | str | None = None,
    mel: WaveformMel | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (audio, video) of the first `count` batches without padding.

    A batch of padding only is yielded complete, so that its process also has input.
    """
    for batch in batches(loader, count, device, mel):
        real = batch.weight > 0
        if not bool(real.any()):
            real = torch.ones_like(real)
        yield batch.audio[:, real], batch.video[:, real]
