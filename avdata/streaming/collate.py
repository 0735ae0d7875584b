"""Collate samples into batches, and decode stored samples directly into batch memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from avdata.errors import AvdataError, UsageError
from avdata.shards.members import check_strip, decode_npy
from avdata.streaming.batch import AVBatch, AVSample
from avdata.streaming.waveform import decode_flac

MELS_PER_CALL = 8  # mels normalized together: as many as fit in the CPU cache


def collate(samples: Sequence[AVSample]) -> AVBatch:
    """Return samples as one batch, for torch's and torchdata's loaders.

        dataset = avdata.open("out/cremad", shuffle=True)
        loader = torch.utils.data.DataLoader(dataset, batch_size=32, collate_fn=avdata.collate)

    torch's `DataLoader` uses it by default for an `AVSample`.

    Args:
        samples: Samples of equal shapes, at least one.

    Returns:
        The batch, as `AVDataset.loader` returns it: weights are those of the samples, `present` follows their
        flags. If any sample labels its steps, one that does not gets its label at every step.

    Raises:
        UsageError: `samples` is empty, or the samples differ in `sample_rate` or in whether they have a mel
            or frames.
    """
    if not samples:
        msg = "Cannot collate 0 samples."
        raise UsageError(msg)
    rates = list(dict.fromkeys(sample.sample_rate for sample in samples))
    if len(rates) > 1:
        msg = f"Cannot collate samples with the sample rates {rates}."
        raise UsageError(msg, hint="Open all datasets with the same `waveform` option")
    waveforms = [sample.waveform for sample in samples if sample.waveform is not None]
    mels = [sample.mel for sample in samples if sample.mel is not None]
    frames = [sample.frames for sample in samples if sample.frames is not None]
    for name, tensors in (("a mel", mels), ("frames", frames)):
        if len(tensors) not in (0, len(samples)):
            msg = f"Cannot collate samples with and without {name}: {len(tensors)} of {len(samples)} have it."
            raise UsageError(msg)
    steps = [sample.metadata.get("step_labels") for sample in samples]
    num_steps = max(len(labels or ()) for labels in steps)
    return AVBatch(
        mel=torch.stack(mels) if mels else None,
        frames=torch.stack(frames) if frames else None,
        label=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        key=[sample.key for sample in samples],
        weight=torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
        present=torch.tensor([sample.present for sample in samples]),
        step_labels=None
        if not any(steps)
        else torch.tensor(
            [labels or [sample.label] * num_steps for labels, sample in zip(steps, samples, strict=True)]
        ),
        waveform=torch.stack(waveforms) if waveforms else None,
        sample_rate=rates[0],
    )


def _collate_by_default(samples: Sequence[AVSample], *, collate_fn_map: object = None) -> AVBatch:
    return collate(samples)


# `torch.utils.data.default_collate` documents this way to extend it.
default_collate_fn_map[AVSample] = _collate_by_default


@dataclass(frozen=True, slots=True)
class SampleShape:
    """Shapes of a dataset's samples as stored.

    Attributes:
        mel: (T, F, L), also if mels are not read.
        frames: (T, H, W, C); None if frames are not read.
        waveform: (n,) if waveforms are read, else None.
        sample_rate: Of the waveform in Hz, else None.
        has_mel: Whether mels are read.
    """

    mel: tuple[int, ...]
    frames: tuple[int, ...] | None
    waveform: tuple[int, ...] | None = None
    sample_rate: int | None = None
    has_mel: bool = True

    @property
    def sample(self) -> str:
        """The shapes of a sample's tensors as text, for `repr`."""
        mel = [self.mel[0], 1, *self.mel[1:]] if self.has_mel else None
        frames = self.frames and [self.frames[0], self.frames[3], *self.frames[1:3]]
        waveform = "" if self.waveform is None else f", waveform={list(self.waveform)}"
        return f"mel={mel}, frames={frames}{waveform}"

    def layout(self, *, strip: bool) -> tuple[int, ...] | None:
        """Return the memory layout of a sample's frames: [T, H, W, C], or [H, T, W, C] for a strip.

        A decoder's output needs a single copy into this layout. None without frames.
        """
        if self.frames is None or not strip:
            return self.frames
        steps, height, width, channels = self.frames
        return height, steps, width, channels

    def empty_frames(self, *, strip: bool) -> torch.Tensor | None:
        """Return memory for the frames of one sample in that layout; None without frames."""
        layout = self.layout(strip=strip)
        return None if layout is None else torch.empty(layout, dtype=torch.uint8)

    def tensor(self, frames: torch.Tensor | None, *, strip: bool) -> torch.Tensor | None:
        """Return a batch in that layout as a view of shape [B, T, C, H, W]; None without frames."""
        if frames is None:
            return None
        return frames.permute(0, 2, 4, 1, 3) if strip else frames.permute(0, 1, 4, 2, 3)

    def sample_tensor(self, frames: torch.Tensor | None, *, strip: bool) -> torch.Tensor | None:
        """Return a sample in that layout as a view of shape [T, C, H, W]; None without frames."""
        if frames is None:
            return None
        return frames.permute(1, 3, 0, 2) if strip else frames.permute(0, 3, 1, 2)

    def check(self, array: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
        """Raise an error if an array differs from dataset.json.

        Raises:
            AvdataError: The shape or the dtype differs.
        """
        if array.shape != shape or array.dtype != dtype:
            msg = f"array is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} {list(shape)}"
            raise AvdataError(msg)


def stores_strips(info: Mapping[str, Any]) -> bool:
    """Return whether a dataset stores the frames of a sample as one JPEG or PNG strip."""
    return info["config"].get("video", {}).get("storage", "npy") in {"jpeg", "png"}


@dataclass(frozen=True, slots=True)
class MelNormalization:
    """Mean and inverse standard deviation of a dataset's mels: float32 tensors of shape [F, L]."""

    mean: torch.Tensor
    factor: torch.Tensor


def mel_normalization(stats: Mapping[str, list[float]], shape: SampleShape) -> MelNormalization:
    """Return the normalization of the statistics per mel band that dataset.json holds."""
    # Expanded to [F, L]: broadcasting over the few columns of a band makes torch's inner loops too short.
    mean, deviation = (
        torch.tensor(stats[name])[:, None].expand(shape.mel[1:]).contiguous() for name in ("mean", "std")
    )
    return MelNormalization(mean, 1 / deviation.clamp(min=1e-5))


class BatchAssembler:
    """Copies decoded samples into a batch, either immediately or several in one call.

    Each torch call takes the GIL, and waking up for it takes as long as copying a sample. With one call per
    sample, two threads are no faster than one.

    Args:
        at_once: Copy each sample immediately, for callers without concurrent threads.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self._mels_per_call = 1 if at_once else MELS_PER_CALL
        self._mels: list[tuple[torch.Tensor, torch.Tensor, MelNormalization | None]] = []
        self._frames: list[tuple[torch.Tensor, torch.Tensor]] = []

    def mel(
        self,
        members: Mapping[str, memoryview],
        shape: SampleShape,
        normalization: MelNormalization | None,
        out: torch.Tensor,
    ) -> None:
        """Copy a sample's mel, stored as float16 [T, F, L], normalized into `out`, float32 [T, F, L].

        Raises:
            AvdataError: The mel has another shape than the dataset.
            KeyError: The sample has no mel.
        """
        stored = decode_npy(members["mel.npy"])
        shape.check(stored, shape.mel, np.float16)
        self._mels.append((out, torch.from_numpy(stored), normalization))
        if len(self._mels) == self._mels_per_call:
            self._flush_mels()

    def frames(
        self, members: Mapping[str, memoryview], shape: SampleShape, out: torch.Tensor | None, *, strip: bool
    ) -> None:
        """Copy a sample's frames into `out`, uint8 in the layout of `SampleShape.layout`.

        A strip is decoded immediately. Without frames, `out` is None, and nothing is copied.

        Raises:
            AvdataError: The frames have another shape than the dataset.
            KeyError: The sample has no frames in that storage format.
        """
        if out is None or shape.frames is None:
            return
        if strip:
            steps, height, width, channels = shape.frames
            check_strip(members, shape.frames)
            stored = decode_strip(members)
            shape.check(stored, (channels, height, steps * width), np.uint8)
            # The decoder returns a view of interleaved pixels; separating channels would cost a sixth of the
            # decoding time.
            stored, out = stored.transpose(1, 2, 0), out.view(height, steps * width, channels)
        else:
            stored = decode_npy(members["frames.npy"])
            shape.check(stored, shape.frames, np.uint8)
        if strip or self._mels_per_call == 1:
            # An assignment calls memmove, whose string instruction is a fifth slower on AMD.
            np.positive(stored, out=out.numpy())
        else:
            self._frames.append((out, torch.from_numpy(stored)))

    def waveform(self, members: Mapping[str, memoryview], shape: SampleShape, out: torch.Tensor) -> None:
        """Decode a sample's FLAC immediately into `out`, float32 [n].

        Raises:
            AvdataError: The FLAC is damaged, or has another sample rate than the dataset.
            KeyError: The sample has no FLAC.
        """
        assert shape.sample_rate is not None
        decode_flac(members["flac"], shape.sample_rate, out.numpy())

    def flush(self) -> None:
        """Copy all pending samples."""
        if self._mels:
            self._flush_mels()
        if self._frames:
            torch._foreach_copy_([out for out, _ in self._frames], [stored for _, stored in self._frames])

    def _flush_mels(self) -> None:
        if len(self._mels) == 1:  # the calls for several tensors take a fifth longer for one
            out, stored, scale = self._mels.pop()
            out.copy_(stored)
            if scale is not None:
                out.sub_(scale.mean).mul_(scale.factor)
            return
        torch._foreach_copy_([out for out, _, _ in self._mels], [stored for _, stored, _ in self._mels])
        pairs = [(out, scale) for out, _, scale in self._mels if scale is not None]
        if pairs:
            outs = [out for out, _ in pairs]
            torch._foreach_sub_(outs, [scale.mean for _, scale in pairs])
            torch._foreach_mul_(outs, [scale.factor for _, scale in pairs])
        self._mels.clear()


def decode_strip(members: Mapping[str, memoryview]) -> np.ndarray:
    """Return the strip of a sample's frames, uint8 [C, H, T·W], from its JPEG or PNG.

    torchvision issues a hidden DeprecationWarning on each call, which with its other checks takes 3 % of the
    time of a sample of 5 frames of 224². Its list input would save that on CPU, but fails as a whole.
    """
    from torchvision.io import decode_jpeg, decode_png  # noqa: PLC0415  # fails beside another torch

    decode, name = (decode_png, "frames.png") if "frames.png" in members else (decode_jpeg, "frames.jpg")
    stored = members[name]
    data = torch.frombuffer(bytearray(stored) if stored.readonly else stored, dtype=torch.uint8)
    strip: np.ndarray = decode(data).numpy()
    return strip
