"""Cross-attention of quadratic cost, for comparison with CMQKA: CCSSA and spiking cross-attention (SCA).

Scores of every target token with every source token are N × N per step and head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnergy.layers.attention import ProductNeuron, align_grid
from snnergy.layers.conv_norm import ConvNorm
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return (Q·Kᵀ)·V of [..., d, N] as [..., d, N]."""
    return value @ (query.transpose(-1, -2) @ key).transpose(-1, -2)


class CCSSA(nn.Module):
    """One direction of CCSSA: attention between all tokens of a step, and between all steps of a token.

    The temporal half reads all steps at once and is not causal. Two errors of the published code are not
    reproduced: here heads are merged after their axis has been moved next to the channels, and neurons run
    over the steps of one sample, not over T·B.

    Args:
        dim: channels C of both modalities.
        heads: number of heads h.
        cell: kind of neuron.
    """

    def __init__(self, dim: int, heads: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (ConvNorm(dim, 2 * dim) for _ in range(3))
        self.neurons = nn.ModuleList(cell.neuron() for _ in range(3))
        self.spatial, self.temporal = ProductNeuron(dim, cell), ProductNeuron(dim, cell)
        self.out = ConvNorm(2 * dim, dim)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Return currents for the target [T, B, C, H, W]; both inputs are spikes, the source on any grid."""
        grid = target.shape[-2:]
        source = align_grid(source, grid)
        spikes = [
            neuron(part(x)).unflatten(2, (2, self.heads, -1)).flatten(5)
            for neuron, part, x in zip(
                self.neurons, (self.query, self.key, self.value), (target, source, source), strict=True
            )
        ]
        # Each [T, B, h, d, N]: N × N scores per step, T × T scores per token.
        (query, query_t), (key, key_t), (value, value_t) = (part.unbind(2) for part in spikes)
        tokens = _attend(query, key, value)
        by_token = [part.permute(1, 2, 4, 0, 3) for part in (query_t, key_t, value_t)]
        steps = ((by_token[0] @ by_token[1].transpose(-1, -2)) @ by_token[2]).permute(3, 0, 1, 4, 2)
        return self.out(torch.cat([self.spatial(tokens, grid), self.temporal(steps, grid)], dim=2))


class SpikingCrossAttention(nn.Module):
    """One direction of spiking cross-attention (SMMT): (Q·Kᵀ)·V, with the target's Query, normalized; spikes.

    Args:
        dim: channels C of both modalities.
        heads: number of heads h.
        cell: kind of neuron.
    """

    def __init__(self, dim: int, heads: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.heads = heads
        self.query = ConvNorm(dim, dim)
        self.key_value = ConvNorm(dim, 2 * dim)
        self.query_neuron, self.key_neuron = cell.neuron(), cell.neuron()
        self.fire = ProductNeuron(dim, cell)
        self.out = ConvNorm(dim, dim)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Return currents for the target [T, B, C, H, W]; both inputs are spikes, the source on any grid."""
        grid = target.shape[-2:]
        query = self.query_neuron(self.query(target)).unflatten(2, (self.heads, -1)).flatten(4)
        spikes = self.key_neuron(self.key_value(align_grid(source, grid)))
        key, value = spikes.unflatten(2, (2, self.heads, -1)).flatten(5).unbind(2)
        return self.out(self.fire(_attend(query, key, value), grid))
