from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snnergy.data import audio_video_batches, open_split, to_batch
from snnergy.models.inputs import IMAGENET_MEAN, IMAGENET_STD

B, T, F, L, SIZE = 3, 4, 12, 8, 16


def samples(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mel = torch.randn(B, T, 1, F, L, generator=generator)
    frames = torch.randint(0, 256, (B, T, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return mel, frames


def test_to_batch_puts_time_first_and_normalizes() -> None:
    mel, frames = samples()
    batch = to_batch(mel, frames, torch.zeros(B), torch.ones(B))
    assert batch.audio.shape == (T, B, 1, F, L)
    assert torch.equal(batch.audio[2, 1], mel[1, 2])
    for channel in range(3):
        value = (float(frames[1, 2, channel, 5, 7]) / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert batch.video[2, 1, channel, 5, 7].item() == pytest.approx(value, abs=1e-6)


def test_audio_video_batches_skip_padding(tiny_set: Path) -> None:
    loader = open_split(tiny_set, "val", rank=0, world_size=1).loader(3, num_workers=0)
    shapes = [
        [part if part is None else part.shape[1] for part in given]
        for given in audio_video_batches(loader, 9)
    ]
    assert shapes == [[3, 3, None, None], [1, 1, None, None]]


def test_audio_video_batches_yield_masks_of_absent_modalities(tiny_set: Path) -> None:
    first, last = open_split(tiny_set, "val", rank=0, world_size=1).loader(3, num_workers=0)
    present = torch.tensor([[True, False], [True, True], [True, True]])
    given = [replace(batch, present=present) for batch in (first, last)]
    masks = [masks for _, _, *masks in audio_video_batches(given, 9)]
    assert [(mask_a, mask_v.tolist()) for mask_a, mask_v in masks if mask_v is not None] == [
        (None, [False, True, True]), (None, [False]),
    ]  # fmt: skip
