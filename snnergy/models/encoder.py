"""One modality's way through three stages: patch embedding with a deformed shortcut, then query-key blocks.

Between the parts runs a stream [T, B, C, H, W]. With the `membrane` residual it is real-valued and every
part fires on it first, so that convolutions see spikes only; with `sew` (QKFormer's) spikes are added to
spikes and the stream holds small integers.
"""

from __future__ import annotations

from torch import Tensor, nn

from snnergy.layers.attention import QKAttention, SelfAttention
from snnergy.layers.checkpointing import Run, call
from snnergy.layers.conv_norm import ConvNorm
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec
from snnergy.layers.residual import ResidualInput, ResidualOutput, SpikingMLP
from snnergy.layers.types import AttentionKind, Residual, SumNorm


class PatchEmbedding(nn.Module):
    """SPEDS: half the grid and other channels, beside a strided 1×1 shortcut (QKFormer, §3.5).

    The first stage also embeds the picture itself: the one convolution that sees real values.

    Args:
        inputs: channels that come in.
        dim: channels that go out.
        residual: kind of stream.
        cell: kind of neuron.
        first: it is the first stage.
    """

    def __init__(
        self, inputs: int, dim: int, residual: Residual, cell: NeuronSpec = DEFAULT_NEURON, *, first: bool
    ) -> None:
        super().__init__()
        held = dim // 2 if first else inputs
        self.embed = nn.Sequential(ConvNorm(inputs, held, 3, pool=True), cell.neuron()) if first else None
        self.enter = None if first else ResidualInput(residual, cell)
        self.main = nn.Sequential(
            ConvNorm(held, dim, 3, pool=True),
            cell.neuron(),
            ConvNorm(dim, dim, 3),
        )
        self.shortcut = ConvNorm(held, dim, 1, stride=2)
        self.exit_main, self.exit_shortcut = ResidualOutput(residual, cell), ResidualOutput(residual, cell)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        """[T, B, C, H, W] to a stream of half (first stage: a quarter of) the grid, rounded up.

        What does not change from step to step may come with one: it is convolved once, and repeated.
        """
        if self.embed is None:
            assert self.enter is not None
            spikes = self.enter(x)
        else:
            spikes = self.embed[1](self.embed[0](x).expand(steps, -1, -1, -1, -1))
        joined: Tensor = self.exit_main(self.main(spikes)) + self.exit_shortcut(self.shortcut(spikes))
        return joined


class PositionalConv(nn.Module):
    """What a token's neighbors say of its place, added to the stream."""

    def __init__(self, dim: int, residual: Residual, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.enter, self.exit = ResidualInput(residual, cell), ResidualOutput(residual, cell)
        self.conv = ConvNorm(dim, dim, 3)

    def forward(self, stream: Tensor) -> Tensor:
        """The stream with it added."""
        return stream + self.exit(self.conv(self.enter(stream)))


class Block(nn.Module):
    """Attention, then a spiking MLP, each added to the stream."""

    def __init__(
        self,
        dim: int,
        heads: int,
        kind: AttentionKind,
        ratio: int,
        residual: Residual,
        sum_norm: SumNorm,
        cell: NeuronSpec = DEFAULT_NEURON,
    ) -> None:
        super().__init__()
        self.enter, self.exit = ResidualInput(residual, cell), ResidualOutput(residual, cell)
        self.attention = (
            SelfAttention(dim, heads, cell)
            if kind == "ssa"
            else QKAttention(dim, heads, kind, sum_norm, cell)
        )
        self.mlp = SpikingMLP(dim, ratio, residual, cell)

    def forward(self, stream: Tensor) -> Tensor:
        """The stream with both added."""
        return self.mlp(stream + self.exit(self.attention(self.enter(stream))))


class Stage(nn.Module):
    """Patch embedding and blocks of one modality at one resolution."""

    def __init__(
        self,
        inputs: int,
        dim: int,
        heads: int,
        depth: int,
        kind: AttentionKind,
        ratio: int,
        residual: Residual,
        sum_norm: SumNorm,
        cell: NeuronSpec = DEFAULT_NEURON,
        *,
        first: bool,
        rpe: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = PatchEmbedding(inputs, dim, residual, cell, first=first)
        self.position = PositionalConv(dim, residual, cell) if rpe else None
        self.blocks = nn.Sequential(
            *(Block(dim, heads, kind, ratio, residual, sum_norm, cell) for _ in range(depth))
        )

    def forward(self, x: Tensor, steps: int, run: Run = call) -> Tensor:
        """The next stage's stream; `run` calls each part."""
        stream: Tensor = run(self.embedding, x, steps)
        if self.position is not None:
            stream = run(self.position, stream)
        for block in self.blocks:
            stream = run(block, stream)
        return stream
