"""CMQKA: cross-modal query-key attention on spikes, linear in tokens.

This is the project's reconstruction. Of CMQKA (arXiv 2602.00701) only the abstract and the author's summary
were available: a linear, binary, bidirectional query-key attention for complementary spatiotemporal
features, with learnable residual fusion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnergy.layers.attention import TokenSumMask, align_grid, split_heads
from snnergy.layers.conv_norm import ConvNorm, merge_time_batch
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec
from snnergy.layers.types import Combine, Modality, SumNorm


class CrossModalAttention(nn.Module):
    """One direction of CMQKA: the Query comes from the target modality, the Key from the source.

    Branch `s` masks tokens, branch `t` masks time steps, and branch `o` multiplies a token mask of the
    target with a channel mask of the source.

    Args:
        dim: channels C of both modalities.
        heads: number of heads h.
        branches: `s`, `t`, `st` or `o`.
        sum_norm: normalization of sums over tokens.
        combine: concatenate the branches, combine them by OR, or add them.
        query_source: `source` takes the Query from the source and the Key from the target.
        cell: kind of neuron.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        branches: str = "st",
        sum_norm: SumNorm = "bn",
        *,
        combine: Combine = "concat",
        query_source: Modality = "target",
        cell: NeuronSpec = DEFAULT_NEURON,
    ) -> None:
        super().__init__()
        self.heads, self.branches, self.combine, self.query_source = heads, branches, combine, query_source
        self.query = ConvNorm(dim, len(branches) * dim)
        self.key = ConvNorm(dim, len(branches) * dim)
        self.query_neuron, self.key_neuron = cell.neuron(), cell.neuron()
        self.spatial = cell.mask_neuron() if set("so") & set(branches) else None
        self.temporal = TokenSumMask(heads, sum_norm, cell) if "t" in branches else None
        self.channel = TokenSumMask(dim, sum_norm, cell) if "o" in branches else None
        width = (len(branches) if combine == "concat" else 1) * dim
        self.out = ConvNorm(width, dim)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Return currents for the target [T, B, C, H, W]; both inputs are spikes, the source on any grid."""
        if self.branches != "o" or self.query_source == "source":
            source = align_grid(source, target.shape[-2:])
        query_input, key_input = (target, source) if self.query_source == "target" else (source, target)
        parts = len(self.branches), self.heads
        queries = split_heads(self.query_neuron(self.query(query_input)), *parts)
        keys = split_heads(self.key_neuron(self.key(key_input)), *parts)
        masked = [
            self._mask(branch, query, key)
            for branch, query, key in zip(self.branches, queries, keys, strict=True)
        ]
        return self.out(self._combine(masked))

    def _combine(self, masked: list[Tensor]) -> Tensor:
        if self.combine == "concat":
            # 4-D tensors keep their channels_last layout.
            return torch.cat([merge_time_batch(part) for part in masked], dim=1).unflatten(
                0, masked[0].shape[:2]
            )
        first, *others = masked
        for other in others:
            first = first + other if self.combine == "sum" else first + other - first * other
        return first

    def _mask(self, branch: str, query: Tensor, key: Tensor) -> Tensor:
        if branch == "t":
            assert self.temporal is not None
            mask = self.temporal(query, of_heads=True)
        else:
            assert self.spatial is not None
            mask = self.spatial(query.sum(3, keepdim=True))
        if branch == "o":
            assert self.channel is not None
            # A channel mask has no grid, so the source is not aligned.
            key = self.channel(key)
        return (key * mask).flatten(2, 3)
