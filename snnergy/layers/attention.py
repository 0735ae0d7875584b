"""Spiking attention within a modality, linear in tokens: query-key attention (QKFormer) and Spikformer's SSA.

In query-key attention, the sum of a spiking Query is turned into a binary mask, which is multiplied with the
spikes of the Key. There is no softmax, no product of Query and Key, and no N × N score matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnergy.layers.conv_norm import ConvNorm, merge_time_batch
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec
from snnergy.layers.types import AttentionKind, SumNorm


def split_heads(spikes: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Return `parts` views [T, B, h, C / h, H, W] of [T, B, parts · C, H, W]."""
    return spikes.unflatten(2, (parts, heads, -1)).unbind(2)


class TokenSumMask(nn.Module):
    """Binary mask per head or channel from sums over tokens.

    A raw sum over hundreds of tokens is almost never zero, so that the mask would always be 1. Batch norm
    over T·B with bias 1 keeps about half of the mask at 1. At inference it is one threshold per group.

    Args:
        groups: number of heads or channels.
        sum_norm: `bn`, or `none` for raw sums.
        cell: kind of neuron.
    """

    def __init__(self, groups: int, sum_norm: SumNorm, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(groups) if sum_norm == "bn" else None
        if self.norm is not None:
            nn.init.ones_(self.norm.bias)
        self.neuron = cell.mask_neuron()

    def forward(self, spikes: Tensor, *, of_heads: bool = False) -> Tensor:
        """Return the mask of spikes [T, B, h, d, H, W], in their dtype.

        It is [T, B, h, 1, 1, 1] with `of_heads`, otherwise [T, B, h, d, 1, 1].
        """
        # At least float32: bfloat16 represents no integer between 512 and 516.
        wide = torch.promote_types(spikes.dtype, torch.float32)
        sums = spikes.sum((3, 4, 5) if of_heads else (4, 5), keepdim=True, dtype=wide)
        flat = sums.flatten(2)
        if self.norm is not None:
            tokens = spikes.shape[4] * spikes.shape[5]
            means = merge_time_batch(flat / tokens).to(self.norm.weight.dtype)
            flat = self.norm(means).unflatten(0, flat.shape[:2])
        mask: Tensor = self.neuron(flat)
        return mask.reshape(sums.shape).to(spikes.dtype)


class ProductNeuron(nn.Module):
    """Spikes of an attention product: batch norm with bias 1 before a neuron with threshold 0.5.

    The size of a sum of products depends on the number of tokens and on the firing rates. With a fixed scale
    the neuron is silent in a new network, or fires always. The norm has no weights: those of the projections
    that make the product, and of the one that reads it, are enough.

    Args:
        dim: channels C.
        cell: kind of neuron.
    """

    def __init__(self, dim: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim, affine=False)
        self.neuron = cell.attention_neuron()

    def forward(self, product: Tensor, grid: Sequence[int]) -> Tensor:
        """Return spikes [T, B, C, H, W] of a product [T, B, h, C / h, N] on a grid of N tokens."""
        current = merge_time_batch(product.flatten(2, 3).unflatten(3, tuple(grid)))
        spikes: Tensor = self.neuron(self.norm(current).add(1.0).unflatten(0, product.shape[:2]))
        return spikes


class QKAttention(nn.Module):
    """Query-key attention within a modality: a mask from the Query, applied to the Key (QKFormer, §3).

    Args:
        dim: channels C.
        heads: number of heads h, each with its own token mask.
        kind: `token`: one mask value per token, an OR over the head's channels; `channel`: one per channel,
            from the sum over tokens.
        sum_norm: normalization of sums over tokens.
        cell: kind of neuron.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kind: AttentionKind,
        sum_norm: SumNorm = "bn",
        cell: NeuronSpec = DEFAULT_NEURON,
    ) -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        self.query_key = ConvNorm(dim, 2 * dim)
        self.neuron = cell.neuron()
        self.token = cell.mask_neuron() if kind == "token" else None
        self.channel = TokenSumMask(dim, sum_norm, cell) if kind == "channel" else None
        self.out = ConvNorm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return currents of the same shape for spikes [T, B, C, H, W]."""
        query, key = split_heads(self.neuron(self.query_key(x)), 2, self.heads)
        if self.token is not None:
            mask = self.token(query.sum(3, keepdim=True))
        else:
            assert self.channel is not None
            mask = self.channel(query)
        return self.out((key * mask).flatten(2, 3))


class SelfAttention(nn.Module):
    """Spiking self-attention (Spikformer, arXiv 2209.15425): Q·(Kᵀ·V), normalized, then spikes; no softmax.

    Kᵀ·V is computed first: the cost is linear in tokens and quadratic in the channels of a head.
    """

    def __init__(self, dim: int, heads: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = ConvNorm(dim, 3 * dim)
        self.neuron, self.fire = cell.neuron(), ProductNeuron(dim, cell)
        self.out = ConvNorm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return currents of the same shape for spikes [T, B, C, H, W]."""
        spikes = self.neuron(self.query_key_value(x))
        query, key, value = spikes.unflatten(2, (3, self.heads, -1)).flatten(5).unbind(2)
        attended = (value @ key.transpose(-1, -2)) @ query
        return self.out(self.fire(attended, x.shape[3:]))


def align_grid(spikes: Tensor, grid: Sequence[int]) -> Tensor:
    """Return spikes [T, B, C, H, W] on another grid, by adaptive max pooling, which keeps them binary.

    A position is (mel band, column) in audio and (row, column) in video: this pairs indices, not locations.
    """
    if tuple(spikes.shape[-2:]) == tuple(grid):
        return spikes
    return functional.adaptive_max_pool2d(merge_time_batch(spikes), tuple(grid)).unflatten(
        0, spikes.shape[:2]
    )
