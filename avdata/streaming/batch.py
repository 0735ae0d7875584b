"""What the stream hands out: one sample, or a batch of them, as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from avdata.visualization.html import render_sample


@dataclass(frozen=True, slots=True)
class AVSample:
    """One sample: mel float32 [T, 1, F, L], frames uint8 [T, C, H, W], label, key, its JSON.

    With `weight` 0 it is the repetition of another in the place of one that was skipped, and
    `facts["skipped"]` says which and why.
    """

    mel: torch.Tensor
    frames: torch.Tensor
    label: int
    key: str
    metadata: Mapping[str, Any]
    weight: float = 1.0

    def _repr_html_(self) -> str:
        return render_sample(
            self.mel.squeeze(1).numpy(), self.frames.permute(0, 2, 3, 1).numpy(), self.metadata
        )


@dataclass(frozen=True, slots=True)
class AVBatch:
    """A batch of samples.

    Attributes:
        mel: float32 [B, T, 1, F, L], normalized by the train split's statistics unless asked otherwise.
        frames: uint8 [B, T, C, H, W]; a view of memory in the order of the storage, which a copy to a device
            keeps: [B, T, H, W, C] of arrays, [B, H, T, W, C] of JPEG strips.
        label: int64 [B].
        key: B keys.
        weight: float32 [B]; 0 marks padding, which no loss and no metric may count.
        present: bool [B, 2]; whether the sound is not silent, and the frames not black, by the index's flags.
        step_labels: int64 [B, T] where the dataset labels its steps, else None.
    """

    mel: torch.Tensor
    frames: torch.Tensor
    label: torch.Tensor
    key: list[str]
    weight: torch.Tensor
    present: torch.Tensor
    step_labels: torch.Tensor | None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> AVBatch:
        """The batch on a device; Lightning moves batches with it."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return replace(
            self, mel=moved(self.mel), frames=moved(self.frames), label=moved(self.label),
            weight=moved(self.weight), present=moved(self.present),
            step_labels=None if self.step_labels is None else moved(self.step_labels),
        )  # fmt: skip

    def pin_memory(self) -> AVBatch:
        """The batch in page-locked memory, from which a GPU copies while it computes."""
        steps = self.step_labels
        return replace(
            self, mel=self.mel.pin_memory(), frames=self.frames.pin_memory(), label=self.label.pin_memory(),
            weight=self.weight.pin_memory(), present=self.present.pin_memory(),
            step_labels=None if steps is None else steps.pin_memory(),
        )  # fmt: skip
