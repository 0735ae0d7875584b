"""Samples and batches of a dataset, as tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any

import torch

from avdata.errors import SampleFlag
from avdata.visualization.html import render_sample

PRESENCE_FLAGS = (SampleFlag.SILENT_AUDIO, SampleFlag.BLACK_FRAMES)  # of the columns of `AVBatch.present`


@dataclass(frozen=True, slots=True)
class AVSample:
    """One sample.

    Attributes:
        mel: float32 tensor of shape [T, 1, F, L], normalized unless `normalize=False`; None with
            `modalities=("video",)`.
        frames: uint8 tensor of shape [T, C, H, W], or of `frames_dtype`; None in a dataset of audio or with
            `modalities=("audio",)`.
        label: Index of the label in `AVDataset.labels`.
        key: Key of the sample.
        metadata: The sample's JSON: times, group, flags, step labels, provenance.
        weight: 0 for padding, and for a substitute of an unreadable sample; `metadata["skipped"]` then holds
            the error.
        waveform: float32 tensor of shape [n] in [-1, 1], the window's audio; None unless opened with
            `waveform=True`. n is the same for all samples of a dataset. With align.window=whole, n is that of
            the longest window, and shorter waveforms are followed by zeros.
        sample_rate: Samples per second of `waveform` in Hz, else None.
    """

    mel: torch.Tensor | None
    frames: torch.Tensor | None
    label: int
    key: str
    metadata: Mapping[str, Any]
    weight: float = 1.0
    waveform: torch.Tensor | None = None
    sample_rate: int | None = None

    def __repr__(self) -> str:
        return f"AVSample({self.key!r}, label={self.label}, {_shapes_text(self)})"

    @property
    def present(self) -> list[bool]:
        """Whether the sample has audio that is not silent and frames that are not black, by its flags."""
        audio, frames = (flag not in self.metadata.get("flags", ()) for flag in PRESENCE_FLAGS)
        has_audio = self.mel is not None or self.waveform is not None
        return [audio and has_audio, frames and self.frames is not None]

    def as_dict(self) -> dict[str, Any]:
        """Return the sample as a dict without the metadata, for loaders that collate dicts.

        Returns:
            `label` (int), `key`, `weight` (float) and `present` (bool tensor of shape [2]); `mel`, `frames`,
            `waveform` and `step_labels` (int64 tensor of shape [T]) if the sample has them.
        """
        fields = {name: getattr(self, name) for name in ("mel", "frames", "label", "key", "weight")}
        fields |= {"present": torch.tensor(self.present), "waveform": self.waveform}
        fields = {name: value for name, value in fields.items() if value is not None}
        if self.metadata.get("step_labels"):
            fields["step_labels"] = torch.tensor(self.metadata["step_labels"])
        return fields

    def _repr_html_(self) -> str | None:
        if self.mel is None:
            return None  # notebooks show the text
        frames = self.frames
        if frames is not None:
            frames = frames.float().mul(255).round().byte() if frames.is_floating_point() else frames
            frames = frames.permute(0, 2, 3, 1)
        pixels = None if frames is None else frames.numpy()
        return render_sample(self.mel.squeeze(1).numpy(), pixels, self.metadata)


@dataclass(frozen=True, slots=True)
class AVBatch:
    """A batch of samples.

    Attributes:
        mel: float32 tensor of shape [B, T, 1, F, L], normalized unless `normalize=False`; None with
            `modalities=("video",)`.
        frames: uint8 tensor of shape [B, T, C, H, W], or of `frames_dtype`. Without `frames_layout`, a
            loader's is a view of memory in storage order, which a copy to a device keeps: [B, T, H, W, C] for
            arrays, [B, H, T, W, C] for JPEG strips. None in a dataset of audio or with
            `modalities=("audio",)`.
        label: int64 tensor of shape [B].
        key: B keys.
        weight: float32 tensor of shape [B]. 0 marks padding: exclude it from losses and metrics.
        present: bool tensor of shape [B, 2]. False where the audio is silent or not read, or the frames are
            black, absent or not read; silent and black according to the flags in the index.
        step_labels: int64 tensor of shape [B, T] if the dataset labels its steps, else None.
        waveform: float32 tensor of shape [B, n], as `AVSample.waveform`, else None.
        sample_rate: Samples per second of `waveform` in Hz, else None.
    """

    mel: torch.Tensor | None
    frames: torch.Tensor | None
    label: torch.Tensor
    key: list[str]
    weight: torch.Tensor
    present: torch.Tensor
    step_labels: torch.Tensor | None
    waveform: torch.Tensor | None = None
    sample_rate: int | None = None

    def __repr__(self) -> str:
        steps = "" if self.step_labels is None else f", step_labels={list(self.step_labels.shape)}"
        return f"AVBatch({len(self.key)} samples, {_shapes_text(self)}{steps}, device='{self.label.device}')"

    def as_dict(self) -> dict[str, Any]:
        """Return the tensors and the keys as a dict, without those that are None."""
        fields = {field.name: getattr(self, field.name) for field in dataclass_fields(self)}
        del fields["sample_rate"]
        return {name: value for name, value in fields.items() if value is not None}

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> AVBatch:
        """Return the batch with all tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> AVBatch:
        """Return the batch in page-locked memory, from which GPU copies run asynchronously."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> AVBatch:
        def optional(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else function(tensor)

        return replace(
            self, mel=optional(self.mel), frames=optional(self.frames), label=function(self.label),
            weight=function(self.weight), present=function(self.present),
            step_labels=optional(self.step_labels), waveform=optional(self.waveform),
        )  # fmt: skip


def as_dict(value: Any) -> Any:
    """Return a sample or a batch as a dict, and other objects, such as those of a transform, unchanged."""
    return value.as_dict() if isinstance(value, (AVSample, AVBatch)) else value


def _shapes_text(tensors: AVSample | AVBatch) -> str:
    mel, frames = (None if part is None else list(part.shape) for part in (tensors.mel, tensors.frames))
    waveform = "" if tensors.waveform is None else f", waveform={list(tensors.waveform.shape)}"
    return f"mel={mel}, frames={frames}{waveform}"
