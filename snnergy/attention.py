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

from snnergy.config import Combine, Kind, Side, SumNorm
from snnergy.neuron import Cell

LIF = Cell()


def fold(spikes: Tensor) -> Tensor:
    """[T, B, …] as [T·B, …]."""
    return spikes.flatten(0, 1)


def pixelwise(pictures: Tensor) -> Tensor:
    """Pictures [N, C, H, W] laid out as channels_last, on processors the quicker way for all that follows.

    Of one channel torch does not say so by itself, and would go on in the other layout.
    """
    if torch.compiler.is_exporting():
        return pictures
    n, channels, height, width = pictures.shape
    rows = pictures.permute(0, 2, 3, 1).reshape(-1)
    return rows.view(n, height, width, channels).permute(0, 3, 1, 2)


def by_head(spikes: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[T, B, parts · C, H, W] as `parts` views [T, B, h, C / h, H, W]."""
    return spikes.unflatten(2, (parts, heads, -1)).unbind(2)


class ConvNorm(nn.Module):
    """Convolution and batch norm on the folded T·B axis: [T, B, C, H, W] to [T, B, C', H', W'].

    Args:
        inputs: channels C.
        outputs: channels C'.
        kernel: side of the convolution's.
        stride: of the convolution.
        pool: halve the grid after the norm, by max pooling.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        pool: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        """The normalised (and pooled) result, real-valued."""
        y: Tensor = self.norm(self.conv(fold(x) if x.is_cuda else pixelwise(fold(x))))
        y = y if self.pool is None else self.pool(y)
        return y.unflatten(0, x.shape[:2])


class SumNeuron(nn.Module):
    """Fires on sums over tokens: spikes [T, B, h, d, H, W] to a mask of heads or of channels.

    A raw sum over hundreds of tokens is nearly never zero, and the mask would always be one; batch norm over
    T·B, with its bias at 1, keeps it open about half of the time. At inference that is one threshold a group.
    """

    def __init__(self, groups: int, sum_norm: SumNorm, cell: Cell = LIF) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(groups) if sum_norm == "bn" else None
        if self.norm is not None:
            nn.init.ones_(self.norm.bias)
        self.neuron = cell.gate()

    def forward(self, spikes: Tensor, *, of_heads: bool = False) -> Tensor:
        """The mask, [T, B, h, 1, 1, 1] or [T, B, h, d, 1, 1], of the spikes' type."""
        # In float32 at least: bfloat16 has no number between 512 and 516.
        wide = torch.promote_types(spikes.dtype, torch.float32)
        sums = spikes.sum((3, 4, 5) if of_heads else (4, 5), keepdim=True, dtype=wide)
        flat = sums.flatten(2)
        if self.norm is not None:
            tokens = spikes.shape[4] * spikes.shape[5]
            flat = self.norm(fold(flat / tokens)).unflatten(0, flat.shape[:2])
        mask: Tensor = self.neuron(flat)
        return mask.reshape(sums.shape).to(spikes.dtype)


class QKAttention(nn.Module):
    """Attention within a modality: a token or channel mask from the Query on the Key (QKFormer, §3).

    Args:
        dim: channels C.
        heads: h; a token mask is made for each.
        kind: `token`, an OR over the head's channels at each token; `channel`, over tokens for each channel.
        sum_norm: how sums over tokens are normalised.
        cell: kind of neuron.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kind: Kind,
        sum_norm: SumNorm = "bn",
        cell: Cell = LIF,
    ) -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        self.query_key = ConvNorm(dim, 2 * dim)
        self.neuron = cell.neuron()
        self.token = cell.gate() if kind == "token" else None
        self.channel = SumNeuron(dim, sum_norm, cell) if kind == "channel" else None
        self.out = ConvNorm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes [T, B, C, H, W] to currents of the same shape."""
        query, key = by_head(self.neuron(self.query_key(x)), 2, self.heads)
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

    def __init__(self, dim: int, heads: int, cell: Cell = LIF) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = ConvNorm(dim, 3 * dim)
        self.neuron, self.fire = cell.neuron(), cell.ready()
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
    return functional.adaptive_max_pool2d(fold(spikes), tuple(grid)).unflatten(0, spikes.shape[:2])


class CrossModalAttention(nn.Module):
    """One direction of CMQKA: what the target modality asks for, of the source modality.

    The Query comes from the target, the Key from the source. Branch `s` masks each token, branch `t` each
    step, and `o` crosses a target token mask with a source channel mask.

    Args:
        dim: channels C of both.
        heads: h.
        branches: which of s, t, o.
        sum_norm: how sums over tokens are normalised.
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
        query_source: Side = "target",
        cell: Cell = LIF,
    ) -> None:
        super().__init__()
        self.heads, self.branches, self.combine, self.query_source = heads, branches, combine, query_source
        self.query = ConvNorm(dim, len(branches) * dim)
        self.key = ConvNorm(dim, len(branches) * dim)
        self.query_neuron, self.key_neuron = cell.neuron(), cell.neuron()
        self.spatial = cell.gate() if set("so") & set(branches) else None
        self.temporal = SumNeuron(heads, sum_norm, cell) if "t" in branches else None
        self.channel = SumNeuron(dim, sum_norm, cell) if "o" in branches else None
        width = (len(branches) if combine == "concat" else 1) * dim
        self.out = ConvNorm(width, dim)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Currents for the target [T, B, C, H, W], from spikes of the target and of the source, any grid."""
        if self.branches != "o" or self.query_source == "source":
            source = align_grid(source, target.shape[-2:])
        asks, answers = (target, source) if self.query_source == "target" else (source, target)
        parts = len(self.branches), self.heads
        queries = by_head(self.query_neuron(self.query(asks)), *parts)
        keys = by_head(self.key_neuron(self.key(answers)), *parts)
        masked = [
            self._mask(branch, query, key)
            for branch, query, key in zip(self.branches, queries, keys, strict=True)
        ]
        return self.out(self._joined(masked))

    def _joined(self, masked: list[Tensor]) -> Tensor:
        if self.combine == "concat":
            # Pictures of four dimensions keep their layout.
            return torch.cat([fold(part) for part in masked], dim=1).unflatten(0, masked[0].shape[:2])
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
