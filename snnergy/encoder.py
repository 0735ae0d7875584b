"""One modality's way through three stages: patch embedding with a deformed shortcut, then query-key blocks.

Between the parts runs a stream [T, B, C, H, W]. With the `membrane` residual it is real-valued and every
part fires on it first, so that convolutions see spikes only; with `sew` (QKFormer's) spikes are added to
spikes and the stream holds small integers.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from snnergy.attention import ConvNorm, Kind, QKAttention, SumNorm
from snnergy.neuron import Neuron

Residual = Literal["membrane", "sew"]


class _Entry(nn.Module):
    """What a part sees of the stream: spikes of the membrane, or the stream as it is."""

    def __init__(self, residual: Residual) -> None:
        super().__init__()
        self.neuron = Neuron() if residual == "membrane" else None

    def forward(self, stream: Tensor) -> Tensor:
        return stream if self.neuron is None else self.neuron(stream)


class _Exit(nn.Module):
    """What a part adds to the stream: its current, or the spikes of it."""

    def __init__(self, residual: Residual) -> None:
        super().__init__()
        self.neuron = Neuron() if residual == "sew" else None

    def forward(self, current: Tensor) -> Tensor:
        return current if self.neuron is None else self.neuron(current)


class PatchEmbedding(nn.Module):
    """SPEDS: half the grid and other channels, beside a strided 1×1 shortcut (QKFormer, §3.5).

    The first stage also embeds the picture itself: the one convolution that sees real values.

    Args:
        inputs: channels that come in.
        dim: channels that go out.
        residual: kind of stream.
        first: it is the first stage.
    """

    def __init__(self, inputs: int, dim: int, residual: Residual, *, first: bool) -> None:
        super().__init__()
        held = dim // 2 if first else inputs
        self.embed = nn.Sequential(ConvNorm(inputs, held, 3, pool=True), Neuron()) if first else None
        self.enter = None if first else _Entry(residual)
        self.main = nn.Sequential(ConvNorm(held, dim, 3, pool=True), Neuron(), ConvNorm(dim, dim, 3))
        self.shortcut = ConvNorm(held, dim, 1, stride=2)
        self.exit_main, self.exit_shortcut = _Exit(residual), _Exit(residual)

    def forward(self, x: Tensor) -> Tensor:
        """[T, B, C, H, W] to a stream of half (first stage: a quarter of) the grid, rounded up."""
        spikes = self.embed(x) if self.embed is not None else self.enter(x)  # type: ignore[misc]
        joined: Tensor = self.exit_main(self.main(spikes)) + self.exit_shortcut(self.shortcut(spikes))
        return joined


class Block(nn.Module):
    """Query-key attention, then a spiking MLP, each added to the stream."""

    def __init__(
        self, dim: int, heads: int, kind: Kind, ratio: int, residual: Residual, sum_norm: SumNorm
    ) -> None:
        super().__init__()
        self.enter_attention, self.enter_mlp = _Entry(residual), _Entry(residual)
        self.attention = QKAttention(dim, heads, kind, sum_norm)
        self.mlp = nn.Sequential(ConvNorm(dim, ratio * dim), Neuron(), ConvNorm(ratio * dim, dim))
        self.exit_attention, self.exit_mlp = _Exit(residual), _Exit(residual)

    def forward(self, stream: Tensor) -> Tensor:
        """The stream with both added."""
        stream = stream + self.exit_attention(self.attention(self.enter_attention(stream)))
        result: Tensor = stream + self.exit_mlp(self.mlp(self.enter_mlp(stream)))
        return result


class Stage(nn.Module):
    """Patch embedding and blocks of one modality at one resolution."""

    def __init__(
        self,
        inputs: int,
        dim: int,
        heads: int,
        depth: int,
        kind: Kind,
        ratio: int,
        residual: Residual,
        sum_norm: SumNorm,
        *,
        first: bool,
    ) -> None:
        super().__init__()
        self.embedding = PatchEmbedding(inputs, dim, residual, first=first)
        self.blocks = nn.Sequential(
            *(Block(dim, heads, kind, ratio, residual, sum_norm) for _ in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The next stage's stream."""
        result: Tensor = self.blocks(self.embedding(x))
        return result
