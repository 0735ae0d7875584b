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
        """The layout that is one copy from what a decoder gives: [T, H, W, C], or of a strip [H, T, W, C]."""
        steps, height, width, channels = self.frames
        return (height, steps, width, channels) if strip else self.frames

    def tensor(self, frames: np.ndarray, *, strip: bool) -> torch.Tensor:
        """The same memory as uint8 [B, T, C, H, W]."""
        made = torch.from_numpy(frames)
        return made.permute(0, 2, 4, 1, 3) if strip else made.permute(0, 1, 4, 2, 3)

    def check(self, array: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
        """Refuse an array that is not what dataset.json says.

        Raises:
            AvdataError: its shape or type is another.
        """
        if array.shape != shape or array.dtype != dtype:
            msg = f"an array is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)}"
            raise AvdataError(msg)


@dataclass(frozen=True, slots=True)
class Scale:
    """What makes a set's mels even: float32 [F, L] each."""

    mean: torch.Tensor
    factor: torch.Tensor


def scale_of(stats: Mapping[str, list[float]], shape: Shape) -> Scale:
    """The scale of statistics of each mel band."""
    # As large as a step: over a band's few columns alone torch's loops are too short to be quick.
    mean, deviation = (
        torch.tensor(stats[name])[:, None].expand(shape.mel[1:]).contiguous() for name in ("mean", "std")
    )
    return Scale(mean, 1 / deviation.clamp(min=1e-5))


def fill_mel(members: Mapping[str, memoryview], shape: Shape, scale: Scale | None, out: torch.Tensor) -> None:
    """Write a sample's mel, stored as float16 [T, F, L], into `out`, float32 [T, F, L], in that scale.

    Raises:
        AvdataError: the mel is not of the set's shape.
        KeyError: the sample has none.
    """
    stored = decode_npy(members["mel.npy"])
    shape.check(stored, shape.mel, np.float16)
    # A copy, since torch takes no memory that it may not write to; while it is in the processor's cache.
    out.copy_(torch.from_numpy(stored.copy()))
    if scale is not None:
        out.sub_(scale.mean).mul_(scale.factor)


def fill_frames(members: Mapping[str, memoryview], shape: Shape, out: np.ndarray, *, strip: bool) -> None:
    """Write a sample's frames into `out`, which has the layout of their storage.

    Raises:
        AvdataError: the frames are not of the set's shape.
        KeyError: the sample has no frames of that storage.
    """
    if not strip:
        stored = decode_npy(members["frames.npy"])
        shape.check(stored, shape.frames, np.uint8)
        _copy(stored, out)
        return
    steps, height, width, channels = shape.frames
    pictures = decode_strip(members)
    shape.check(pictures, (channels, height, steps * width), np.uint8)
    # Decoders give a view of pixels; taking the channels apart here would cost a sixth of the decoding.
    _copy(pictures.transpose(1, 2, 0), out.reshape(height, steps * width, channels))


def _copy(stored: np.ndarray, out: np.ndarray) -> None:
    # An assignment ends in memmove, whose string instruction takes a fifth longer on AMD's processors than
    # the loop of a ufunc.
    np.positive(stored, out=out)
