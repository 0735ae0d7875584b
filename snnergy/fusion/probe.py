"""Linear probe: pooled inputs in place of encoders, to see what a dataset gives without any network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

MEL_GRID = (32, 16)
"""Bands and columns of the pooled spectrogram of the complete window."""

FRAMES_GRID = (4, 8, 8)
"""Frames, rows and columns of the pooled video."""


class PooledInputs(nn.Module):
    """Averages of the inputs over a coarse grid, each standardized by batch norm.

    It has the interface of `LateFusion`, whose head is linear, and reads all time steps at once.

    Args:
        names: modalities.
        video_channels: channels of a frame.

    Attributes:
        width: number of inputs of the head.
    """

    def __init__(self, names: tuple[str, ...], video_channels: int) -> None:
        super().__init__()
        rows, columns = MEL_GRID
        count, height, width = FRAMES_GRID
        sizes = {"audio": rows * columns, "video": video_channels * count * height * width}
        self.norms = nn.ModuleDict({name: nn.BatchNorm1d(sizes[name], affine=False) for name in names})
        self.width = sum(sizes[name] for name in names)

    def pool(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor | None], steps: int) -> Tensor:
        """Return features [T, B, width], the same at all steps.

        Args:
            inputs: `audio` [T, B, 1, F, L] and `video` [T, B, C, H, W]; static ones have T = 1.
            present: by modality, bool [B], or None if all samples have it.
            steps: number of steps T.
        """
        parts = []
        for name, norm in self.norms.items():
            # [B, C, T, rows, columns]; the steps of a spectrogram lie side by side.
            clip = inputs[name].movedim(0, 2)
            pooled = (
                functional.adaptive_avg_pool2d(clip.transpose(2, 3).flatten(3), MEL_GRID)
                if name == "audio"
                else functional.adaptive_avg_pool3d(clip, FRAMES_GRID)
            )
            feature, mask = norm(pooled.flatten(1)), present[name]
            parts.append(feature if mask is None else feature * mask[:, None])
        return torch.cat(parts, 1).expand(steps, -1, -1)

    def combine(self, features: Tensor) -> Tensor:
        """Return the head's input [B, width] for features [B, width], the mean over steps."""
        return features
