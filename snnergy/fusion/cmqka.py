"""Cmqka."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnergy.layers.attention import TokenSumMask, align_grid, split_heads
from snnergy.layers.conv_norm import ConvNorm, merge_time_batch
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec
from snnergy.layers.types import Combine, Modality, SumNorm


class CrossModalAttention(nn.Module):
    """One direction of CMQKA: what the target modality asks for, of the source modality.

    The Query comes from the target, the Key from the source. Branch `s` masks each token, branch `t` each
    step, and `o` crosses a target token mask with a source channel mask.

    Args:
        dim: channels C of both.
        heads: h.
        branches: which of s, t, o.
        sum_norm: how sums over tokens are normalized.
        combine: branches stand beside one another, or are joined by OR, or added.
        query_source: `source` exchanges the parts: the source asks, the target's Key answers.
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
        """Currents for the target [T, B, C, H, W], from spikes of the target and of the source, any grid."""
        if self.branches != "o" or self.query_source == "source":
            source = align_grid(source, target.shape[-2:])
        asks, answers = (target, source) if self.query_source == "target" else (source, target)
        parts = len(self.branches), self.heads
        queries = split_heads(self.query_neuron(self.query(asks)), *parts)
        keys = split_heads(self.key_neuron(self.key(answers)), *parts)
        masked = [
            self._mask(branch, query, key)
            for branch, query, key in zip(self.branches, queries, keys, strict=True)
        ]
        return self.out(self._joined(masked))

    def _joined(self, masked: list[Tensor]) -> Tensor:
        if self.combine == "concat":
            # Pictures of four dimensions keep their layout.
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
            # The token mask of the one times the channel mask of the other, whatever that one's grid is.
            key = self.channel(key)
        return (key * mask).flatten(2, 3)
