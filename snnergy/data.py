"""Batches in: the one room that knows avdata's stream, and makes of its batches what the network takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import avdata
from avdata.stream import AVBatch, AVDataset

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Batch:
    """audio [T, B, 1, F, L], video [T, B, C, H, W], label int64 [B], weight float32 [B] (0: padding)."""

    audio: Tensor
    video: Tensor
    label: Tensor
    weight: Tensor


def open_split(where: str | Path, split: str, *, shuffle: bool = False, seed: int = 0) -> AVDataset:
    """One split of a prepared set."""
    return avdata.open(where, split, shuffle=shuffle, seed=seed)


def to_batch(batch: AVBatch, device: torch.device | None = None) -> Batch:
    """The network's layout: time first, pictures as floats with ImageNet's mean and deviation (grey: 0.5)."""
    colour = batch.frames.shape[2] == 3
    mean = torch.tensor(IMAGENET_MEAN if colour else (0.5,))[:, None, None]
    std = torch.tensor(IMAGENET_STD if colour else (0.5,))[:, None, None]
    video = batch.frames.float().div_(255).sub_(mean).div_(std)
    return Batch(
        audio=batch.mel.transpose(0, 1).contiguous().to(device),
        video=video.transpose(0, 1).contiguous().to(device),
        label=batch.label.to(device),
        weight=batch.weight.to(device),
    )


def pairs(
    batches: Iterable[AVBatch], count: int, device: torch.device | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(audio, video) of the first `count` batches, as recalibration wants them."""
    for _, batch in zip(range(count), batches, strict=False):
        made = to_batch(batch, device)
        yield made.audio, made.video
