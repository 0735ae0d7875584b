"""Inputs of a network: normalization of frames, shapes, masks of absent modalities, and finite values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from snnergy.models.config import ModelConfig

Layout = Literal["TBCHW", "BTCHW"]

InputBatch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""(audio, video) or (audio, video, mask_a, mask_v): the first arguments of `SNNergy.forward`."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)

IMAGENET_STD = (0.229, 0.224, 0.225)

SMALLEST = 16
"""Smallest height and width that the network accepts, pixels."""


def normalize_frames(frames: Tensor) -> Tensor:
    """Return frames with time first and normalized: color by ImageNet's mean and deviation, gray by 0.5.

    Args:
        frames: uint8 [B, T, C, H, W].

    Returns:
        float32 [T, B, C, H, W], contiguous.

    Raises:
        ValueError: the frames are not uint8.
    """
    if frames.dtype != torch.uint8:
        msg = f"frames must be uint8, not {frames.dtype}: open the dataset without frames_dtype."
        raise ValueError(msg)
    color = frames.shape[2] == 3
    mean = torch.tensor(IMAGENET_MEAN if color else (0.5,), device=frames.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD if color else (0.5,), device=frames.device)[:, None, None]
    return frames.transpose(0, 1).contiguous().float().mul_(1 / (255 * std)).sub_(mean / std)


def arrange_inputs(
    audio: Tensor, video: Tensor, config: ModelConfig, layout: Layout, dtype: torch.dtype
) -> tuple[Tensor, Tensor, int]:
    """Return both inputs as [T, B, C, H, W] of `dtype`, static ones with T = 1, and T.

    Raises:
        ValueError: the shapes do not match each other or the settings, or an input contains integers.
    """
    shapes = f"audio {list(audio.shape)} and video {list(video.shape)}"
    for name, part in (("audio", audio), ("video", video)):
        if not part.is_floating_point():
            msg = f"{name} is {part.dtype}, not float: convert a batch by model.preprocess(batch)."
            raise ValueError(msg)
    inputs = [
        part.transpose(0, 1) if part.ndim == 5 and layout == "BTCHW" else part for part in (audio, video)
    ]
    steps = {len(part) for part in inputs if part.ndim == 5} or {config.steps}
    if not {part.ndim for part in inputs} <= {4, 5} or len(steps) > 1:
        msg = f"{shapes} must be [T, B, C, H, W] with the same T, or static [B, C, H, W]."
        raise ValueError(msg)
    (count,) = steps
    if inputs[0].ndim == 4:
        segmented = config.audio_mode == "segment"
        inputs[0] = _segments(inputs[0], count) if segmented else inputs[0][None]
    if inputs[1].ndim == 4:
        inputs[1] = inputs[1][None]
    audio, video = inputs
    if audio.shape[1] != video.shape[1]:
        msg = f"{shapes} have batches of {audio.shape[1]} and {video.shape[1]} samples."
        raise ValueError(msg)
    if audio.shape[2] != 1 or video.shape[2] != config.video_channels:
        msg = f"{shapes} must have 1 and {config.video_channels} channels."
        raise ValueError(msg)
    if min(*audio.shape[3:], *video.shape[3:]) < SMALLEST:
        msg = f"{shapes} must have at least {SMALLEST} rows and columns."
        raise ValueError(msg)
    return audio.to(dtype), video.to(dtype), count


def _segments(audio: Tensor, steps: int) -> Tensor:
    """Return static audio [B, 1, F, L] cut into T equal segments, each stretched to L columns."""
    parts = [
        functional.interpolate(part, size=audio.shape[-2:], mode="bilinear", align_corners=False)
        for part in audio.tensor_split(steps, dim=3)
    ]
    return torch.stack(parts)


def check_masks(masks: Mapping[str, Tensor | None], batch_size: int) -> None:
    """Raise unless each mask is bool [B] or None. A mask of numbers would scale features instead.

    Raises:
        ValueError: a mask has another dtype or shape.
    """
    for name, mask in masks.items():
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (batch_size,)):
            msg = f"The mask of {name} must be bool [{batch_size}], not {mask.dtype} {list(mask.shape)}."
            raise ValueError(msg)


def presence_masks(present: Tensor, device: torch.device | str | None = None) -> dict[str, Tensor | None]:
    """Return `mask_a` and `mask_v`, bool [B] on a device, for `AVBatch.present`; None if all are present.

    Args:
        present: bool [B, 2], whether a sample has audio and video.
        device: device of the masks; None: that of `present`.
    """
    audio, video = (
        None if bool(part.all()) else part.to(device or part.device) for part in present.unbind(1)
    )
    return {"mask_a": audio, "mask_v": video}


class NonFiniteInputError(ValueError):
    """Input of a network with NaN or infinite values.

    Attributes:
        modality: `audio` or `video`.
        samples: numbers of the samples in the batch.
    """

    def __init__(self, modality: str, samples: list[int]) -> None:
        self.modality, self.samples = modality, samples
        shown = f"{', '.join(map(str, samples[:5]))}{', …' if len(samples) > 5 else ''}"
        super().__init__(f"{modality} has NaN or infinite values in the batch's samples {shown}.")


def check_finite(inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]) -> None:
    """Raise if a sample contains NaN or infinity, from which a neuron makes no spikes and no NaN.

    Args:
        inputs: by modality, float [T, B, C, H, W].
        masks: by modality, bool [B]; a modality that a sample does not have may contain anything.

    Raises:
        NonFiniteInputError: the message names modality and samples.
    """
    for name, values in inputs.items():
        mask = masks[name]
        broken = ~values.isfinite().all(0).flatten(1).all(1)
        broken = broken if mask is None else broken & mask
        if bool(broken.any()):
            raise NonFiniteInputError(name, broken.nonzero().flatten().tolist())
