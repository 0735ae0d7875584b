"""From the bytes of a sample to its arrays, as the stream does it: no copy but the one into the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from avdata.errors import AvdataError
from avdata.shards import decode_npy, decode_strip


@dataclass(frozen=True, slots=True)
class Shape:
    """The shapes of a set: mel (T, F, L) and frames (T, H, W, C)."""

    mel: tuple[int, ...]
    frames: tuple[int, ...]

    def layout(self, *, strip: bool) -> tuple[int, ...]:
        """The layout that is one copy from the storage: [T, H, W, C], or of a strip [C, H, T, W]."""
        steps, height, width, channels = self.frames
        return (channels, height, steps, width) if strip else self.frames

    def tensor(self, frames: np.ndarray, *, strip: bool) -> torch.Tensor:
        """The same memory as uint8 [B, T, C, H, W]."""
        made = torch.from_numpy(frames)
        return made.permute(0, 3, 1, 2, 4) if strip else made.permute(0, 1, 4, 2, 3)

    def check(self, array: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
        """Refuse an array that is not what dataset.json says.

        Raises:
            AvdataError: its shape or type is another.
        """
        if array.shape != shape or array.dtype != dtype:
            msg = f"an array is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)}"
            raise AvdataError(msg)


def fill_frames(members: Mapping[str, memoryview], shape: Shape, out: np.ndarray, *, strip: bool) -> None:
    """Write a sample's frames into `out`, which has the layout of their storage.

    Raises:
        AvdataError: the frames are not of the set's shape.
        KeyError: the sample has no frames of that storage.
    """
    if not strip:
        stored = decode_npy(members["frames.npy"])
        shape.check(stored, shape.frames, np.uint8)
        out[:] = stored
        return
    steps, height, width, channels = shape.frames
    pictures = decode_strip(members)
    shape.check(pictures, (channels, height, steps * width), np.uint8)
    out[:] = pictures.reshape(out.shape)
