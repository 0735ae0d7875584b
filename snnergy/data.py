"""Batches in: the one room that knows avdata's stream, and makes of its batches what the network takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import avdata
from avdata.config.overrides import diff_settings, merge_overrides, parse_setting, read_config_file
from avdata.config.schema import format_validation_error
from avdata.errors import did_you_mean
from avdata.streaming.batch import AVBatch
from avdata.streaming.dataset import AVDataset
from avdata.streaming.loader import AVLoader

__all__ = [
    "AVBatch",
    "AVDataset",
    "AVLoader",
    "Batch",
    "audio_video_batches",
    "batches",
    "did_you_mean",
    "diff_settings",
    "format_validation_error",
    "merge_overrides",
    "open_split",
    "parse_setting",
    "read_config_file",
    "to_batch",
]  # fmt: skip

IMAGENET_MEAN = (0.485, 0.456, 0.406)

IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Batch:
    """audio [T, B, 1, F, L], video [T, B, C, H, W], label int64 [B], weight float32 [B] (0: padding)."""

    audio: Tensor
    video: Tensor
    label: Tensor
    weight: Tensor


def open_split(
    where: str | Path,
    split: str,
    *,
    shuffle: bool = False,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
) -> AVDataset:
    """One split of a prepared set; without `rank` and `world_size`, what torch.distributed says."""
    return avdata.open(where, split, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)


def to_batch(mel: Tensor, frames: Tensor, label: Tensor, weight: Tensor) -> Batch:
    """The network's layout: time first, pictures as floats with ImageNet's mean and deviation (gray: 0.5).

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


def to_device(batch: AVBatch, device: torch.device | str | None = None) -> Batch:
    """A batch of the stream as it is, in the network's layout, on a device."""
    return to_batch(*move_to_device(batch, device))


def move_to_device(
    batch: AVBatch, device: torch.device | str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mel, frames (still uint8: a quarter of the bytes), label and weight of a batch on a device."""
    parts = (batch.mel, batch.frames, batch.label, batch.weight)
    mel, frames, label, weight = (part.to(device, non_blocking=True) for part in parts)
    return mel, frames, label, weight


def batches(
    loader: Iterable[AVBatch], count: int, device: torch.device | str | None = None
) -> Iterator[Batch]:
    """The first `count` batches of a loader, as the network takes them."""
    for _, batch in zip(range(count), loader, strict=False):
        yield to_device(batch, device)


def audio_video_batches(
    loader: Iterable[AVBatch], count: int, device: torch.device | str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(audio, video) of the first `count` batches without padding, to recalibrate or to count energy."""
    for made in batches(loader, count, device):
        # A process that was given padding alone still has to see something.
        real = made.weight > 0 if bool((made.weight > 0).any()) else torch.ones_like(made.weight) > 0
        yield made.audio[:, real], made.video[:, real]
