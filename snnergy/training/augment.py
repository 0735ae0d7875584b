"""Augmentation of training samples, determined by (seed, epoch, key).

The result does not depend on workers, ranks or resumes.

Changes of time affect both modalities together. Changes of frames affect all frames of a clip alike.
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
    """Return the random generator of one sample in one epoch."""
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
    """Return augmented copies of the samples of a batch.

    Args:
        mel: float32 [B, T, 1, F, L].
        frames: uint8 [B, T, C, H, W].
        keys: keys of the B samples.
        config: augmentation settings.
        seed: seed of the run.
        epoch: number of the epoch.
        repeated: the mel of each step covers the complete window instead of the step's part of it.

    Returns:
        Mel and frames with the same shapes and dtypes.
    """
    if config == AugmentConfig():
        return mel, frames
    samples = [
        _augment_sample(mel[index], frames[index], config, sample_rng(seed, epoch, key), repeated=repeated)
        for index, key in enumerate(keys)
    ]
    return torch.stack([audio for audio, _ in samples]), torch.stack([video for _, video in samples])


def _augment_sample(
    mel: Tensor, frames: Tensor, config: AugmentConfig, rng: np.random.Generator, *, repeated: bool
) -> tuple[Tensor, Tensor]:
    # Draw everything first and in a fixed order, so that disabling one change does not alter the others.
    steps = int(rng.integers(-config.shift, config.shift + 1))
    masks, flip = int(rng.integers(2**31)), rng.random() < config.flip
    angle = float(rng.uniform(-config.rotate, config.rotate))
    brightness, contrast = rng.uniform(1 - config.jitter, 1 + config.jitter, size=2)
    if steps:
        mel, frames = shift(mel, frames, steps, repeated=repeated)
    if config.bands or config.columns:
        mel = spec_augment(mel, config.bands, config.columns, masks, repeated=repeated)
    return mel, _augment_frames(frames, flip, angle, float(brightness), float(contrast))


def shift(mel: Tensor, frames: Tensor, steps: int, *, repeated: bool = False) -> tuple[Tensor, Tensor]:
    """Return mel [T, 1, F, L] and frames [T, C, H, W] rolled in time by `steps` steps.

    A step is the smallest shift that both support: frames cannot be shifted by a fraction of a step.
    """
    if repeated:
        return mel.roll(steps * mel.shape[-1] // len(frames), -1), frames.roll(steps, 0)
    return mel.roll(steps, 0), frames.roll(steps, 0)


def spec_augment(mel: Tensor, bands: int, columns: int, seed: int, *, repeated: bool = False) -> Tensor:
    """Return mel [T, 1, F, L] with one range of bands and one of columns set to 0, the mean.

    This is SpecAugment (arXiv 1904.08779).

    The steps form one spectrogram side by side: bands are masked in all steps, columns once in the complete
    one.
    """
    from torchaudio import transforms  # noqa: PLC0415  # imported on use: its releases often break

    spectrogram = mel[:1] if repeated else torch.cat(list(mel), -1)[None]
    with torch.random.fork_rng(devices=[mel.device] if mel.is_cuda else []):
        torch.manual_seed(seed)
        if bands:
            spectrogram = transforms.FrequencyMasking(min(bands, mel.shape[-2]))(spectrogram)
        if columns:
            spectrogram = transforms.TimeMasking(min(columns, spectrogram.shape[-1]))(spectrogram)
    if repeated:
        return spectrogram.expand_as(mel).clone()
    return torch.stack(spectrogram[0].chunk(len(mel), -1))


def _augment_frames(frames: Tensor, flip: bool, angle: float, brightness: float, contrast: float) -> Tensor:
    if not flip and angle == 0 and brightness == contrast == 1:
        return frames
    from torchvision.transforms.v2 import InterpolationMode, functional  # noqa: PLC0415

    changed: Any = functional.horizontal_flip(frames) if flip else frames
    if angle:
        changed = functional.rotate(changed, angle, interpolation=InterpolationMode.BILINEAR)
    if brightness != 1:
        changed = functional.adjust_brightness(changed, brightness)
    if contrast != 1:
        changed = functional.adjust_contrast(changed, contrast)
    result: Tensor = changed
    return result


def mixup(batch: Batch, alpha: float, rng: np.random.Generator) -> tuple[Batch, Tensor, float]:
    """Mix each sample with another one (arXiv 1710.09412).

    Both modalities use the same λ and the same permutation. Two permutations would pair audio and video
    that no label describes.

    Args:
        batch: batch in the network's layout.
        alpha: parameter of the Beta distribution of λ; 0 disables mixup.
        rng: random generator.

    Returns:
        The mixed batch with its own labels, the labels of the other samples, and the weight λ of its own
        labels.
    """
    if alpha == 0:
        return batch, batch.label, 1.0
    share = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(len(batch.label))).to(batch.label.device)
    audio = torch.lerp(batch.audio[:, other], batch.audio, share)
    video = torch.lerp(batch.video[:, other], batch.video, share)
    return Batch(audio, video, batch.label, batch.weight), batch.label[other], share
