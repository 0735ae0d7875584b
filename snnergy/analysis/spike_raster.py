"""Raster of a network's spikes: which neurons of each layer fire at which step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from snnergy.layers.monitor import record_spikes
from snnergy.layers.neurons import SpikingNeuron
from snnergy.models.network import SNNergy

NEURONS = 24
"""Neurons of a layer that a raster shows, spread evenly over channels and positions."""

CELL = 6
"""Width of a step in pixels; a neuron has half of it."""

SPIKE, SILENCE, GAP = (37, 99, 235), (241, 245, 249), (255, 255, 255)


@torch.no_grad()
def record_raster(
    network: SNNergy, audio: Tensor, video: Tensor, mask_a: Tensor | None = None, mask_v: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Return the spikes of some neurons of each layer for the first sample of a batch.

    Args:
        network: network in evaluation mode.
        audio: float [T, B, 1, F, L].
        video: float [T, B, C, H, W].
        mask_a: bool [B], which samples have audio; None: all.
        mask_v: bool [B], which samples have video; None: all.

    Returns:
        By layer, in the order of execution, bool [T, n] with n at most `NEURONS`.
    """
    layers: dict[str, np.ndarray] = {}

    def record(name: str, neuron: SpikingNeuron, spikes: Tensor) -> None:
        flat = spikes[:, 0].flatten(1)
        chosen = torch.linspace(0, flat.shape[1] - 1, min(NEURONS, flat.shape[1])).round().long()
        layers[name] = (flat[:, chosen.to(flat.device)] > 0).cpu().numpy()

    with record_spikes(network, record):
        network(audio, video, mask_a, mask_v)
    return layers


def draw_raster(layers: dict[str, np.ndarray]) -> np.ndarray:
    """Return a raster as an image: a column of steps per layer, a row per neuron, a spike in blue.

    Args:
        layers: result of `record_raster`.

    Returns:
        uint8 [H, W, 3].
    """
    height = NEURONS * CELL // 2
    columns = []
    for spikes in layers.values():
        steps, count = spikes.shape
        column = np.full((height, steps * CELL, 3), GAP, np.uint8)
        colors = np.where(spikes.T[:, :, None], np.array(SPIKE, np.uint8), np.array(SILENCE, np.uint8))
        cells = colors.repeat(CELL // 2, 0).repeat(CELL, 1)
        column[: count * CELL // 2] = cells
        columns += [column, np.full((height, CELL, 3), GAP, np.uint8)]
    return np.concatenate(columns[:-1], 1)
