"""Firing rates and attention masks of a trained network on samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from snnergy.models.network import SNNergy


@dataclass(frozen=True)
class MaskRecord:
    """Intermediate results of a forward pass on one batch.

    Attributes:
        probabilities: class probabilities, float32 [B, K].
        rates: firing rate (share of ones) of each layer, in the order of the network.
        masks: by modality (`audio`, `video`) and stage, the share of heads whose mask is 1 at a token:
            float32 [B, T, H, W].
    """

    probabilities: np.ndarray
    rates: dict[str, float]
    masks: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def predicted(self, number: int) -> int:
        """Return the most probable class of a sample of the batch."""
        return int(self.probabilities[number].argmax())


@torch.no_grad()
def record_masks(
    network: SNNergy, audio: Tensor, video: Tensor, mask_a: Tensor | None = None, mask_v: Tensor | None = None
) -> MaskRecord:
    """Return firing rates and masks of a network on a batch.

    Args:
        network: network on the CPU, in evaluation mode.
        audio: float32 [T, B, 1, F, L].
        video: float32 [T, B, C, H, W].
        mask_a: bool [B], which samples have audio; None: all.
        mask_v: bool [B], which samples have video; None: all.
    """
    logits, aux = network(audio, video, mask_a, mask_v, return_aux=True)
    return MaskRecord(
        torch.softmax(logits.float(), 1).numpy(),
        {name: float(rate) for name, rate in aux["rates"].items()},
        # A mask over tokens is [T, B, heads, 1, H, W].
        {
            direction: mask.float().mean((2, 3)).transpose(0, 1).numpy()
            for name, mask in aux["masks"].items()
            if (direction := _direction(name)) is not None
        },
    )


def _direction(name: str) -> tuple[str, str] | None:
    """Return (modality, stage) of a cross-modal token mask from its module name, or None.

    >>> _direction("fusions.2.to_audio.message.spatial")
    ('audio', '2')
    >>> _direction("fusions.2.to_audio.message.temporal.neuron")
    """
    parts = name.split(".")
    if parts[0] == "fusions" and parts[-1] == "spatial":
        return parts[2].removeprefix("to_"), parts[1]
    return None


def overlay_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an image that is dimmed where the mask is 0.

    >>> overlay_mask(np.full((2, 2, 3), 100, np.uint8), np.array([[1.0, 0.0]]))[:, :, 0].tolist()
    [[100, 25], [100, 25]]

    Args:
        image: uint8 [H, W, 3].
        mask: float [h, w] between 0 and 1, on any grid.

    Returns:
        uint8 [H, W, 3].
    """
    rows = np.arange(image.shape[0]) * mask.shape[0] // image.shape[0]
    columns = np.arange(image.shape[1]) * mask.shape[1] // image.shape[1]
    brightness = 0.25 + 0.75 * mask[rows][:, columns, None]
    return (image * brightness).astype(np.uint8)
