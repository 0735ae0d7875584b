"""Augmentation of training batches, determined by (seed, epoch, key) of each sample.

The result does not depend on the batch, workers, ranks or resumes. The random numbers of each sample are
drawn first; then every change is applied to the complete batch on its device.

Changes of time affect both modalities together. Changes of frames affect all frames of a clip alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from snnergy.training.config import AugmentConfig


@dataclass(frozen=True, slots=True)
class Changes:
    """Random changes of the samples of a batch, on the CPU.

    Attributes:
        steps: int64 [B], shift in time.
        flip: bool [B], horizontal flip.
        angle: float64 [B], rotation in degrees, counterclockwise.
        brightness: float64 [B], factor.
        contrast: float64 [B], factor.
        crop: float64 [B, 4], top, left, height and width of the crop, as shares of the frame.
        erase: float64 [B, 4], the same of the box that is set to black.
        bands: bool [B, F], masked mel bands.
        columns: bool [B, N], masked columns of the complete spectrogram.
    """

    steps: Tensor
    flip: Tensor
    angle: Tensor
    brightness: Tensor
    contrast: Tensor
    crop: Tensor
    erase: Tensor
    bands: Tensor
    columns: Tensor


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
    steps, bands, columns = mel.shape[1], mel.shape[3], mel.shape[4]
    size = (bands, columns if repeated else steps * columns)
    changes = draw_changes(keys, config, size, seed=seed, epoch=epoch)
    if config.shift:
        mel, frames = shift(mel, frames, changes.steps, repeated=repeated)
    if config.bands or config.columns:
        mel = mask(mel, changes.bands, changes.columns)
    if config.flip or config.rotate or config.jitter or config.crop or config.erase:
        frames = _change_frames(frames, changes, config)
    return mel, frames


def draw_changes(
    keys: Sequence[str], config: AugmentConfig, size: tuple[int, int], *, seed: int, epoch: int
) -> Changes:
    """Draw the changes of samples, each from its own generator.

    Args:
        keys: keys of the B samples.
        config: augmentation settings.
        size: F and N, bands and columns of a complete spectrogram.
        seed: seed of the run.
        epoch: number of the epoch.
    """
    rows, masks, boxes = [], [], []
    for key in keys:
        # Draw everything in a fixed order, so that disabling one change does not alter the others.
        rng = sample_rng(seed, epoch, key)
        steps, masks_seed = rng.integers(-config.shift, config.shift + 1), rng.integers(2**31)
        flip, angle = rng.random() < config.flip, rng.uniform(-config.rotate, config.rotate)
        rows.append((steps, flip, angle, *rng.uniform(1 - config.jitter, 1 + config.jitter, size=2)))
        masks.append(_draw_masks(config, size, int(masks_seed)))
        kept = _draw_box(rng, 1 - rng.uniform(0, config.crop), 3 / 4)
        boxes.append((kept, _draw_box(rng, rng.uniform(0, config.erase), 0.3)))
    steps, flip, angle, brightness, contrast = torch.tensor(rows, dtype=torch.float64).T
    bands, columns = (torch.stack(part) for part in zip(*masks, strict=True))
    crop, erase = torch.tensor(boxes, dtype=torch.float64).unbind(1)
    return Changes(steps.long(), flip.bool(), angle, brightness, contrast, crop, erase, bands, columns)


def _draw_box(rng: np.random.Generator, area: float, aspect: float) -> tuple[float, float, float, float]:
    """Return top, left, height and width of a random box, as shares of the frame.

    Args:
        rng: generator of the sample.
        area: share of the frame's area.
        aspect: smallest ratio of width to height; the largest is its inverse.
    """
    ratio = float(np.exp(rng.uniform(np.log(aspect), -np.log(aspect))))
    height, width = min(1.0, (area / ratio) ** 0.5), min(1.0, (area * ratio) ** 0.5)
    top, left = rng.random(2)
    return float(top * (1 - height)), float(left * (1 - width)), height, width


def draw_kept_modalities(keys: Sequence[str], share: float, *, seed: int, epoch: int) -> Tensor:
    """Return which modalities modality dropout keeps, bool [B, 2]: it hides audio or video, never both.

    Args:
        keys: keys of the B samples.
        share: probability that a sample loses one modality.
        seed: seed of the run.
        epoch: number of the epoch.
    """
    kept = torch.ones(len(keys), 2, dtype=torch.bool)
    for row, key in zip(kept, keys, strict=True):
        # A generator of its own: the other changes of the sample stay the same.
        draws = np.random.default_rng([seed, epoch, zlib.crc32(key.encode()), 1]).random(2)
        if draws[0] < share:
            row[int(draws[1] < 0.5)] = False
    return kept


def _draw_masks(config: AugmentConfig, size: tuple[int, int], seed: int) -> list[Tensor]:
    """Return SpecAugment's masked bands, bool [F], and columns, bool [N] (arXiv 1904.08779)."""
    from torchaudio.functional import mask_along_axis  # noqa: PLC0415  # its releases often break

    # torchaudio draws from torch's generator on the CPU, where a vector suffices to get a mask.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return [
            mask_along_axis(torch.ones(1, length), round(share * length), 0.0, axis=1)[0] == 0
            for share, length in zip((config.bands, config.columns), size, strict=True)
        ]


def shift(mel: Tensor, frames: Tensor, steps: Tensor, *, repeated: bool = False) -> tuple[Tensor, Tensor]:
    """Roll both modalities of each sample in time.

    A step is the smallest shift that both support: frames cannot be shifted by a fraction of a step.

    Args:
        mel: float32 [B, T, 1, F, L].
        frames: uint8 [B, T, C, H, W].
        steps: int64 [B].
        repeated: the mel of each step covers the complete window.
    """
    count, columns = frames.shape[1], mel.shape[4]
    samples, sources = _sources(steps, count, frames.device)
    frames = frames[samples, sources]
    if not repeated:
        return mel[samples, sources], frames
    sources = _sources(steps * columns // count, columns, mel.device)[1]
    return mel.take_along_dim(sources[:, None, None, None], 4), frames


def _sources(steps: Tensor, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the index of each sample, int64 [B, 1], and of what each position takes, int64 [B, count]."""
    sources = (torch.arange(count) - steps[:, None]) % count
    return torch.arange(len(steps), device=device)[:, None], sources.to(device)


def mask(mel: Tensor, bands: Tensor, columns: Tensor) -> Tensor:
    """Set bands and columns of each sample to 0, the mean.

    Bands are masked in all steps. The steps form one spectrogram side by side, unless each covers the
    complete window: columns are masked once in the complete one.

    Args:
        mel: float32 [B, T, 1, F, L].
        bands: bool [B, F].
        columns: bool [B, T·L], or [B, L] if each step covers the complete window.
    """
    by_step = columns.view(len(mel), -1, 1, 1, mel.shape[4])
    return mel.masked_fill(bands.to(mel.device)[:, None, None, :, None] | by_step.to(mel.device), 0.0)


def _change_frames(frames: Tensor, changes: Changes, config: AugmentConfig) -> Tensor:
    """Flip, rotate and crop frames, change brightness and contrast, and erase a box.

    Values are as in `torchvision.transforms.v2`. Images stay in float32 with whole numbers between the
    changes, as v2 converts to uint8 after each.
    """
    from torchvision.transforms.v2 import functional as v2  # noqa: PLC0415

    def factors(values: Tensor) -> Tensor:
        return values.to(frames.device, torch.float32)[:, None, None, None, None]

    # A loader's frames are in storage order, in which most changes are slower.
    frames = frames.contiguous()
    if config.flip:
        flip = changes.flip.to(frames.device)[:, None, None, None, None]
        frames = torch.where(flip, v2.horizontal_flip(frames), frames)
    images = frames.float()
    if config.rotate:
        images = _rotate(images, changes.angle)
    if config.crop:
        images = _crop(images, changes.crop)
    if config.jitter:
        images = images.mul_(factors(changes.brightness)).clamp_(0, 255).floor_()
        # The sum of whole numbers is exact in float64, so that it does not depend on its order.
        gray = v2.rgb_to_grayscale(images).floor_().mean((2, 3, 4), keepdim=True, dtype=torch.float64)
        # Like `add` with `alpha` in v2, `addcmul` rounds once.
        images = images.mul_(factors(changes.contrast)).addcmul_(gray.float(), factors(1 - changes.contrast))
        images = images.clamp_(0, 255)
    if config.erase:
        images = images.masked_fill(_box_mask(changes.erase, images.shape[-2:]).to(images.device), 0.0)
    return images.to(torch.uint8)


def box_pixels(box: Tensor, size: Sequence[int], least: int) -> Tensor:
    """Return boxes in pixels, int64 [B, 4]: top, left, height and width, each at least `least` pixels.

    Args:
        box: float64 [B, 4], shares of the frame.
        size: height and width of the frame.
        least: smallest height and width.
    """
    whole = torch.tensor(list(size))
    extent = (box[:, 2:] * whole).round().long().clamp_min(least)
    start = (box[:, :2] * whole).round().long()
    return torch.cat([torch.minimum(start, whole - extent), extent], 1)


def _crop(images: Tensor, box: Tensor) -> Tensor:
    """Crop images float32 [B, T, C, H, W] and resize the crop to [H, W], bilinearly."""
    height, width = images.shape[-2:]
    pixels = box_pixels(box, (height, width), 1).to(images.device, torch.float32)
    top, left, rows, columns = pixels[:, :, None].unbind(1)

    def positions(first: Tensor, count: Tensor, size: int) -> Tensor:
        # Pixels of the frame outside the crop must not contribute.
        centers = torch.arange(size, device=images.device) + 0.5
        source = (first + centers * count / size - 0.5).clamp(first, first + count - 1)
        return (2 * source + 1) / size - 1

    x, y = positions(left, columns, width)[:, None, :], positions(top, rows, height)[:, :, None]
    grid = torch.stack(torch.broadcast_tensors(x, y), -1)
    cropped = functional.grid_sample(images.flatten(1, 2), grid, padding_mode="border", align_corners=False)
    return cropped.round_().view_as(images)


def _box_mask(box: Tensor, size: Sequence[int]) -> Tensor:
    """Return which pixels lie in boxes, bool [B, 1, 1, H, W]."""
    top, left, rows, columns = box_pixels(box, size, 0)[:, :, None].unbind(1)
    y, x = torch.arange(size[0]), torch.arange(size[1])
    in_rows, in_columns = (y >= top) & (y < top + rows), (x >= left) & (x < left + columns)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None, None]


def _rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate images float32 [B, T, C, H, W] around their center by angles [B] in degrees.

    The grid is computed by element. `affine_grid` multiplies matrices, whose rounding may depend on the
    batch size, and with TF32 is wrong by a hundredth of a pixel.
    """
    height, width = images.shape[-2:]
    radians = angle.deg2rad()[:, None, None]
    cos, sin = (part.to(images.device, torch.float32) for part in (radians.cos(), radians.sin()))
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)[:, None]
    grid = torch.stack(((cos * x - sin * y) / (width / 2), (sin * x + cos * y) / (height / 2)), -1)
    # As channels, the frames of a clip share the computation of weights.
    rotated = functional.grid_sample(images.flatten(1, 2), grid, align_corners=False)
    return rotated.round_().view_as(images)
