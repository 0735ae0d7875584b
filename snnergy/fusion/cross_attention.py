"""Cross attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnergy.layers.attention import align_grid
from snnergy.layers.conv_norm import ConvNorm
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec

SCALE = 0.125


class CCSSA(nn.Module):
    """One direction of CCSSA: every token of the target with every token of the source, and step with step.

    The temporal half looks at all steps at once and is not causal. Heads are merged after their own axis has
    been put back beside its channels, which the published code forgets, and neurons run over the steps of one
    sample, where it runs them over T·B.

    Args:
        dim: channels C of both.
        heads: h.
        cell: kind of neuron.
    """

    def __init__(self, dim: int, heads: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (ConvNorm(dim, 2 * dim) for _ in range(3))
        self.neurons = nn.ModuleList(cell.neuron() for _ in range(3))
        self.spatial, self.temporal = cell.attention_neuron(), cell.attention_neuron()
        self.out = ConvNorm(2 * dim, dim)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Currents for the target [T, B, C, H, W], from spikes of the target and of the source, any grid."""
        grid = target.shape[-2:]
        source = align_grid(source, grid)
        fired = [
            neuron(part(x)).unflatten(2, (2, self.heads, -1)).flatten(5)
            for neuron, part, x in zip(
                self.neurons, (self.query, self.key, self.value), (target, source, source), strict=True
            )
        ]
        (query, query_t), (key, key_t), (value, value_t) = (part.unbind(2) for part in fired)
        # [T, B, h, d, N]: N × N scores of a step, T × T scores of a token.
        tokens = value @ (query.transpose(-1, -2) @ key).transpose(-1, -2)
        by_token = [part.permute(1, 2, 4, 0, 3) for part in (query_t, key_t, value_t)]
        steps = ((by_token[0] @ by_token[1].transpose(-1, -2)) @ by_token[2]).permute(3, 0, 1, 4, 2)
        both = [
            fire((part * SCALE).flatten(2, 3).unflatten(3, grid))
            for fire, part in ((self.spatial, tokens), (self.temporal, steps))
        ]
        return self.out(torch.cat(both, dim=2))


class SpikingCrossAttention(nn.Module):
    """One direction of spiking cross-attention (SMMT): (Q·Kᵀ)·V of the target's Query, scaled and fired.

    Args:
        dim: channels C of both.
        heads: h.
        cell: kind of neuron.
    """

    def __init__(self, dim: int, heads: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.heads = heads
        self.query = ConvNorm(dim, dim)
        self.key_value = ConvNorm(dim, 2 * dim)
        self.query_neuron, self.key_neuron, self.fire = cell.neuron(), cell.neuron(), cell.attention_neuron()
        self.out = ConvNorm(dim, dim)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Currents for the target [T, B, C, H, W], from spikes of the target and of the source, any grid."""
        grid = target.shape[-2:]
        query = self.query_neuron(self.query(target)).unflatten(2, (self.heads, -1)).flatten(4)
        spikes = self.key_neuron(self.key_value(align_grid(source, grid)))
        key, value = spikes.unflatten(2, (2, self.heads, -1)).flatten(5).unbind(2)
        gathered = value @ (query.transpose(-1, -2) @ key).transpose(-1, -2)
        return self.out(self.fire((gathered * SCALE).flatten(2, 3).unflatten(3, grid)))
