"""Changes to training samples, drawn from (seed, epoch, key) alone: no worker, rank or resume alters them.

What changes time changes both modalities together, and what changes a picture changes all frames of its clip
in the same way.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnergy.data import Batch
from snnergy.training.config import AugmentConfig


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The draws of one sample in one epoch."""
    return np.random.default_rng([seed, epoch, zlib.crc32(key.encode())])


def augment(
    mel: Tensor,
    frames: Tensor,
    keys: Sequence[str],
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int,
    repeated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Changed copies of the samples of a batch.

    Args:
        mel: float32 [B, T, 1, F, L].
        frames: uint8 [B, T, C, H, W].
        keys: of the B samples.
        config: what is changed, and how much at most.
        seed: of the draws.
        epoch: of the draws.
        repeated: each step's mel shows the whole window, not the step's own part of it.

    Returns:
        Mel and frames of the same shapes.
    """
    if config == AugmentConfig():
        return mel, frames
    made = [
        _sample(mel[place], frames[place], config, sample_rng(seed, epoch, key), repeated=repeated)
        for place, key in enumerate(keys)
    ]
    return torch.stack([sound for sound, _ in made]), torch.stack([sight for _, sight in made])


def _sample(
    mel: Tensor, frames: Tensor, config: AugmentConfig, draw: np.random.Generator, *, repeated: bool
) -> tuple[Tensor, Tensor]:
    # All draws come first and in one order, so that switching one change off leaves the others as they were.
    steps = int(draw.integers(-config.shift, config.shift + 1))
    masks, flip = int(draw.integers(2**31)), draw.random() < config.flip
    angle = float(draw.uniform(-config.rotate, config.rotate))
    light, contrast = draw.uniform(1 - config.jitter, 1 + config.jitter, size=2)
    if steps:
        mel, frames = shift(mel, frames, steps, repeated=repeated)
    if config.bands or config.columns:
        mel = spec_augment(mel, config.bands, config.columns, masks, repeated=repeated)
    return mel, _picture(frames, flip, angle, float(light), float(contrast))


def shift(mel: Tensor, frames: Tensor, steps: int, *, repeated: bool = False) -> tuple[Tensor, Tensor]:
    """Sound [T, 1, F, L] and frames [T, C, H, W] rolled in time, both by `steps` steps.

    A step is the smallest shift that both can make: a frame cannot be moved by a part of one.
    """
    if repeated:
        return mel.roll(steps * mel.shape[-1] // len(frames), -1), frames.roll(steps, 0)
    return mel.roll(steps, 0), frames.roll(steps, 0)


def spec_augment(mel: Tensor, bands: int, columns: int, seed: int, *, repeated: bool = False) -> Tensor:
    """Mel [T, 1, F, L] with a run of bands and one of columns at 0, the mean (SpecAugment, arXiv 1904.08779).

    The steps are one picture laid side by side: bands are hidden in all of them, columns once in the whole.
    """
    from torchaudio import transforms  # noqa: PLC0415  # breaks often: only those who use it import it

    picture = mel[:1] if repeated else torch.cat(list(mel), -1)[None]
    with torch.random.fork_rng(devices=[mel.device] if mel.is_cuda else []):
        torch.manual_seed(seed)
        if bands:
            picture = transforms.FrequencyMasking(min(bands, mel.shape[-2]))(picture)
        if columns:
            picture = transforms.TimeMasking(min(columns, picture.shape[-1]))(picture)
    if repeated:
        return picture.expand_as(mel).clone()
    return torch.stack(picture[0].chunk(len(mel), -1))


def _picture(frames: Tensor, flip: bool, angle: float, light: float, contrast: float) -> Tensor:
    if not flip and angle == 0 and light == contrast == 1:
        return frames
    from torchvision.transforms.v2 import InterpolationMode, functional  # noqa: PLC0415

    changed: Any = functional.horizontal_flip(frames) if flip else frames
    if angle:
        changed = functional.rotate(changed, angle, interpolation=InterpolationMode.BILINEAR)
    if light != 1:
        changed = functional.adjust_brightness(changed, light)
    if contrast != 1:
        changed = functional.adjust_contrast(changed, contrast)
    made: Tensor = changed
    return made


def mixup(batch: Batch, alpha: float, draw: np.random.Generator) -> tuple[Batch, Tensor, float]:
    """Each sample mixed with another: sound and sight by one share and one permutation (arXiv 1710.09412).

    Two permutations would pair sound and sight that no label describes.

    Returns:
        The mixed batch with its own labels, the labels of the others, and the share λ of its own.
    """
    if alpha == 0:
        return batch, batch.label, 1.0
    share = float(draw.beta(alpha, alpha))
    other = torch.from_numpy(draw.permutation(len(batch.label))).to(batch.label.device)
    audio = torch.lerp(batch.audio[:, other], batch.audio, share)
    video = torch.lerp(batch.video[:, other], batch.video, share)
    return Batch(audio, video, batch.label, batch.weight), batch.label[other], share
