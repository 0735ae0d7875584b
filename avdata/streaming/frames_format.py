"""Data type and memory layout of the frames that a stream returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from avdata.errors import UsageError

DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16)

LAYOUTS = ("BTCHW", "channels_last")


@dataclass(frozen=True, slots=True)
class FramesFormat:
    """Data type and memory layout of frames.

    Attributes:
        dtype: uint8 as stored, or a float type of values in [0, 1].
        layout: `BTCHW`: contiguous. `channels_last`: each frame has torch's memory format of that name. None:
            the order in storage.
    """

    dtype: torch.dtype = torch.uint8
    layout: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            names = ", ".join(str(dtype) for dtype in DTYPES)
            msg = f"Invalid frames_dtype={self.dtype!r}: must be one of {names}."
            raise UsageError(msg)
        if self.layout is not None and self.layout not in LAYOUTS:
            msg = f"Invalid frames_layout={self.layout!r}: must be one of {', '.join(LAYOUTS)}, or None."
            raise UsageError(msg)

    @property
    def is_stored(self) -> bool:
        """Whether frames stay as stored."""
        return self.dtype == torch.uint8 and self.layout is None

    def convert(self, frames: torch.Tensor | None, memory: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return frames in this format, of the same shape and, if nothing changes, the same memory.

        Args:
            frames: uint8 view of shape [B, T, C, H, W] or [T, C, H, W] of dense memory in storage order.
            memory: Memory for the result, uint8 of shape [bytes] (default: new memory, whose page faults take
                four times as long as the conversion).
        """
        if frames is None or self.is_stored:
            return frames
        values = torch.empty(frames.numel(), dtype=self.dtype) if memory is None else memory.view(self.dtype)
        if self.layout is None:
            converted = values.as_strided(frames.shape, frames.stride())
        elif self.layout == "BTCHW":
            converted = values.view(frames.shape)
        else:
            *leading, channels, height, width = frames.shape
            converted = values.view(*leading, height, width, channels).movedim(-1, -3)
        if self.dtype == torch.uint8:
            np.copyto(converted.numpy(), frames.numpy())  # twice as fast as torch
            return converted
        # As torchvision scales. `torch.div` with `out` takes four times as long.
        return converted.copy_(frames).mul_(1 / 255)
