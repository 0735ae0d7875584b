"""From the bytes of a sample to its arrays, as the stream does it: no copy but the one into the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from avdata.errors import AvdataError
from avdata.shards.reader import decode_npy

_MELS = 8  # mels that are scaled together: as many as stay in a processor's cache


@dataclass(frozen=True, slots=True)
class SampleShape:
    """The shapes of a set: mel (T, F, L) and frames (T, H, W, C)."""

    mel: tuple[int, ...]
    frames: tuple[int, ...]

    def layout(self, *, strip: bool) -> tuple[int, ...]:
        """The layout that is one copy from what a decoder gives: [T, H, W, C], or of a strip [H, T, W, C]."""
        steps, height, width, channels = self.frames
        return (height, steps, width, channels) if strip else self.frames

    def tensor(self, frames: torch.Tensor, *, strip: bool) -> torch.Tensor:
        """A batch of that layout as [B, T, C, H, W], in the same memory."""
        return frames.permute(0, 2, 4, 1, 3) if strip else frames.permute(0, 1, 4, 2, 3)

    def check(self, array: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
        """Refuse an array that is not what dataset.json says.

        Raises:
            AvdataError: its shape or type is another.
        """
        if array.shape != shape or array.dtype != dtype:
            msg = f"an array is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)}"
            raise AvdataError(msg)


@dataclass(frozen=True, slots=True)
class MelNormalization:
    """What makes a set's mels even: float32 [F, L] each."""

    mean: torch.Tensor
    factor: torch.Tensor


def mel_normalization(stats: Mapping[str, list[float]], shape: SampleShape) -> MelNormalization:
    """The scale of statistics of each mel band."""
    # As large as a step: over a band's few columns alone torch's loops are too short to be quick.
    mean, deviation = (
        torch.tensor(stats[name])[:, None].expand(shape.mel[1:]).contiguous() for name in ("mean", "std")
    )
    return MelNormalization(mean, 1 / deviation.clamp(min=1e-5))


class BatchAssembler:
    """What is copied into a batch: each sample at once, or for threads side by side in a few long calls.

    Threads take turns at the interpreter's lock, and waking up for it lasts as long as copying a sample: with
    a call for each, two threads are no faster than one.

    Args:
        at_once: leave nothing for later, since no other thread copies.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self._together = 1 if at_once else _MELS
        self._mels: list[tuple[torch.Tensor, torch.Tensor, MelNormalization | None]] = []
        self._frames: list[tuple[torch.Tensor, torch.Tensor]] = []

    def mel(
        self,
        members: Mapping[str, memoryview],
        shape: SampleShape,
        scale: MelNormalization | None,
        out: torch.Tensor,
    ) -> None:
        """A sample's mel, stored as float16 [T, F, L], into `out`, float32 [T, F, L], in that scale.

        Raises:
            AvdataError: the mel is not of the set's shape.
            KeyError: the sample has none.
        """
        stored = decode_npy(members["mel.npy"])
        shape.check(stored, shape.mel, np.float16)
        self._mels.append((out, torch.from_numpy(stored), scale))
        if len(self._mels) == self._together:
            self._flush_mels()

    def frames(
        self, members: Mapping[str, memoryview], shape: SampleShape, out: torch.Tensor, *, strip: bool
    ) -> None:
        """A sample's frames into `out`, uint8 in the layout of their storage; a strip is decoded at once.

        Raises:
            AvdataError: the frames are not of the set's shape.
            KeyError: the sample has no frames of that storage.
        """
        if strip:
            steps, height, width, channels = shape.frames
            stored = decode_strip(members)
            shape.check(stored, (channels, height, steps * width), np.uint8)
            # Decoders give a view of pixels; taking the channels apart would cost a sixth of the decoding.
            stored, out = stored.transpose(1, 2, 0), out.view(height, steps * width, channels)
        else:
            stored = decode_npy(members["frames.npy"])
            shape.check(stored, shape.frames, np.uint8)
        if strip or self._together == 1:
            # An assignment ends in memmove, whose string instruction takes a fifth longer on AMD.
            np.positive(stored, out=out.numpy())
        else:
            self._frames.append((out, torch.from_numpy(stored)))

    def flush(self) -> None:
        """Copy what is left."""
        if self._mels:
            self._flush_mels()
        if self._frames:
            torch._foreach_copy_([out for out, _ in self._frames], [stored for _, stored in self._frames])

    def _flush_mels(self) -> None:
        torch._foreach_copy_([out for out, _, _ in self._mels], [stored for _, stored, _ in self._mels])
        scaled = [(out, scale) for out, _, scale in self._mels if scale is not None]
        if scaled:
            out = [out for out, _ in scaled]
            torch._foreach_sub_(out, [scale.mean for _, scale in scaled])
            torch._foreach_mul_(out, [scale.factor for _, scale in scaled])
        self._mels.clear()


def decode_strip(members: Mapping[str, memoryview]) -> np.ndarray:
    """The strip of a sample's frames, uint8 [C, H, T·W], from its JPEG or PNG."""
    import torchvision.io  # noqa: F401, PLC0415  # breaks often; brings the operators

    # The functions over them warn at each call, which costs a thirtieth of the decoding.
    image = torch.ops.image
    decode, name = (
        (image.decode_png, "frames.png") if "frames.png" in members else (image.decode_jpeg, "frames.jpg")
    )
    stored = members[name]
    data = torch.frombuffer(bytearray(stored) if stored.readonly else stored, dtype=torch.uint8)
    strip: np.ndarray = decode(data, 0, False).numpy()  # as it is stored, and not turned
    return strip
