"""Query-key attention on spikes, within a modality (QKFormer) and across (CMQKA), linear in tokens.

A mask is made by summing a spiking Query and firing again; it lets spikes of the Key pass or not. No softmax,
no products of Query and Key, no N × N scores.

The cross-modal form is this project's reconstruction: of CMQKA (arXiv 2602.00701) only the abstract and the
author's summary were at hand: a linear, binary, bidirectional query-key attention for complementary
spatiotemporal features, with learnable residual fusion.
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
    """[T, B, parts · C, H, W] as `parts` views [T, B, h, C / h, H, W]."""
    return spikes.unflatten(2, (parts, heads, -1)).unbind(2)


class TokenSumMask(nn.Module):
    """Fires on sums over tokens: spikes [T, B, h, d, H, W] to a mask of heads or of channels.

    A raw sum over hundreds of tokens is nearly never zero, and the mask would always be one; batch norm over
    T·B, with its bias at 1, keeps it open about half of the time. At inference that is one threshold a group.
    """

    def __init__(self, groups: int, sum_norm: SumNorm, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(groups) if sum_norm == "bn" else None
        if self.norm is not None:
            nn.init.ones_(self.norm.bias)
        self.neuron = cell.mask_neuron()

    def forward(self, spikes: Tensor, *, of_heads: bool = False) -> Tensor:
        """The mask, [T, B, h, 1, 1, 1] or [T, B, h, d, 1, 1], of the spikes' type."""
        # In float32 at least: bfloat16 has no number between 512 and 516.
        wide = torch.promote_types(spikes.dtype, torch.float32)
        sums = spikes.sum((3, 4, 5) if of_heads else (4, 5), keepdim=True, dtype=wide)
        flat = sums.flatten(2)
        if self.norm is not None:
            tokens = spikes.shape[4] * spikes.shape[5]
            flat = self.norm(merge_time_batch(flat / tokens)).unflatten(0, flat.shape[:2])
        mask: Tensor = self.neuron(flat)
        return mask.reshape(sums.shape).to(spikes.dtype)


class QKAttention(nn.Module):
    """Attention within a modality: a token or channel mask from the Query on the Key (QKFormer, §3).

    Args:
        dim: channels C.
        heads: h; a token mask is made for each.
        kind: `token`, an OR over the head's channels at each token; `channel`, over tokens for each channel.
        sum_norm: how sums over tokens are normalized.
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
        """Spikes [T, B, C, H, W] to currents of the same shape."""
        query, key = split_heads(self.neuron(self.query_key(x)), 2, self.heads)
        if self.token is not None:
            mask = self.token(query.sum(3, keepdim=True))
        else:
            assert self.channel is not None
            mask = self.channel(query)
        return self.out((key * mask).flatten(2, 3))


class SelfAttention(nn.Module):
    """Spiking self-attention (Spikformer, arXiv 2209.15425): Q·(Kᵀ·V), scaled and fired, without softmax.

    KᵀV first: linear in tokens, quadratic in a head's channels.
    """

    SCALE = 0.125

    def __init__(self, dim: int, heads: int, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = ConvNorm(dim, 3 * dim)
        self.neuron, self.fire = cell.neuron(), cell.attention_neuron()
        self.out = ConvNorm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes [T, B, C, H, W] to currents of the same shape."""
        spikes = self.neuron(self.query_key_value(x))
        query, key, value = spikes.unflatten(2, (3, self.heads, -1)).flatten(5).unbind(2)
        gathered = (value @ key.transpose(-1, -2)) @ query
        return self.out(self.fire((gathered * self.SCALE).flatten(2, 3).unflatten(3, x.shape[3:])))


def align_grid(spikes: Tensor, grid: Sequence[int]) -> Tensor:
    """Spikes [T, B, C, H, W] on another grid, by adaptive max pooling: binary stays binary.

    A position means (band, column) to sound and (row, column) to sight: this pairs indices, not places.
    """
    if tuple(spikes.shape[-2:]) == tuple(grid):
        return spikes
    return functional.adaptive_max_pool2d(merge_time_batch(spikes), tuple(grid)).unflatten(
        0, spikes.shape[:2]
    )
