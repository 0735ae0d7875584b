"""What a trained network does on some samples: how often each layer fires, and what its masks let through."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from snnergy.models.network import SNNergy


@dataclass(frozen=True)
class MaskRecord:
    """What was seen while a network looked at a batch.

    Attributes:
        probabilities: [B, K].
        rates: share of ones by layer, in the order of the network.
        masks: by modality (`audio`, `video`) and stage, the share of heads that let a place pass:
            float32 [B, T, H, W].
    """

    probabilities: np.ndarray
    rates: dict[str, float]
    masks: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


@torch.no_grad()
def record_masks(network: SNNergy, audio: Tensor, video: Tensor) -> MaskRecord:
    """Run samples through a network and note what its neurons and masks do.

    Args:
        network: on the CPU, in evaluation mode.
        audio: [T, B, 1, F, L].
        video: [T, B, C, H, W].
    """
    logits, seen = network(audio, video, return_aux=True)
    return MaskRecord(
        torch.softmax(logits.float(), 1).numpy(),
        {name: float(rate) for name, rate in seen["rates"].items()},
        # A mask over tokens is [T, B, heads, 1, H, W].
        {
            where: mask.float().mean((2, 3)).transpose(0, 1).numpy()
            for name, mask in seen["masks"].items()
            if (where := _direction(name)) is not None
        },
    )


def _direction(name: str) -> tuple[str, str] | None:
    """(modality, stage) of a cross-modal attention's token mask, by its place in the network.

    >>> _direction("fusions.2.to_audio.message.spatial")
    ('audio', '2')
    >>> _direction("fusions.2.to_audio.message.temporal.neuron")
    """
    parts = name.split(".")
    if parts[0] == "fusions" and parts[-1] == "spatial":
        return parts[2].removeprefix("to_"), parts[1]
    return None


def overlay_mask(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture that keeps its light where a mask lets pass, and is dimmed where not.

    >>> overlay_mask(np.full((2, 2, 3), 100, np.uint8), np.array([[1.0, 0.0]]))[:, :, 0].tolist()
    [[100, 25], [100, 25]]

    Args:
        picture: uint8 [H, W, 3].
        mask: float [h, w] in 0 … 1, on any grid.
    """
    rows = np.arange(picture.shape[0]) * mask.shape[0] // picture.shape[0]
    columns = np.arange(picture.shape[1]) * mask.shape[1] // picture.shape[1]
    light = 0.25 + 0.75 * mask[rows][:, columns, None]
    return (picture * light).astype(np.uint8)
