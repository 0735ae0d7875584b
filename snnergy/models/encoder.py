"""Stages of an encoder: patch embedding with a deformed shortcut, then query-key attention blocks.

The blocks exchange a stream [T, B, C, H, W]. With the `membrane` residual it is real-valued and every block
first converts it to spikes, so that convolutions read spikes only. With `sew` (QKFormer) blocks add spikes
to spikes, so that the stream contains small integers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from snnergy.layers.attention import QKAttention, SelfAttention
from snnergy.layers.checkpointing import Run, call
from snnergy.layers.conv_norm import ConvNorm
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec
from snnergy.layers.residual import DropPath, ResidualInput, ResidualOutput, SpikingMLP
from snnergy.layers.types import AttentionKind, Residual, SumNorm


class PatchEmbedding(nn.Module):
    """SPEDS: convolutions that halve the grid, with a strided 1×1 shortcut (QKFormer, §3.5).

    The first stage also embeds the input: the only convolution that reads real values.

    Args:
        inputs: input channels.
        dim: output channels.
        residual: kind of stream.
        cell: kind of neuron.
        first: whether this is the first stage.
    """

    def __init__(
        self, inputs: int, dim: int, residual: Residual, cell: NeuronSpec = DEFAULT_NEURON, *, first: bool
    ) -> None:
        super().__init__()
        width = dim // 2 if first else inputs
        self.embed = nn.Sequential(ConvNorm(inputs, width, 3, pool=True), cell.neuron()) if first else None
        self.enter = None if first else ResidualInput(residual, cell)
        self.main = nn.Sequential(
            ConvNorm(width, dim, 3, pool=True),
            cell.neuron(),
            ConvNorm(dim, dim, 3),
        )
        self.shortcut = ConvNorm(width, dim, 1, stride=2)
        self.exit_main, self.exit_shortcut = ResidualOutput(residual, cell), ResidualOutput(residual, cell)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        """Return the stream [T, B, C', H', W'] for an input [T, B, C, H, W].

        The grid is half (in the first stage a quarter) of the input's, rounded up. An input that is
        constant over time may have T = 1: it is convolved once and then repeated.
        """
        if self.embed is None:
            assert self.enter is not None
            spikes = self.enter(x)
        else:
            spikes = self.embed[1](self.embed[0](x).expand(steps, -1, -1, -1, -1))
        stream: Tensor = self.exit_main(self.main(spikes)) + self.exit_shortcut(self.shortcut(spikes))
        return stream


class PositionalConv(nn.Module):
    """Position encoding: a 3×3 convolution with a residual connection."""

    def __init__(self, dim: int, residual: Residual, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.enter, self.exit = ResidualInput(residual, cell), ResidualOutput(residual, cell)
        self.conv = ConvNorm(dim, dim, 3)

    def forward(self, stream: Tensor) -> Tensor:
        """Return the stream [T, B, C, H, W] with the encoding added."""
        return stream + self.exit(self.conv(self.enter(stream)))


class Block(nn.Module):
    """Attention and a spiking MLP, each with a residual connection."""

    def __init__(
        self,
        dim: int,
        heads: int,
        kind: AttentionKind,
        ratio: int,
        residual: Residual,
        sum_norm: SumNorm,
        cell: NeuronSpec = DEFAULT_NEURON,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.enter, self.exit = ResidualInput(residual, cell), ResidualOutput(residual, cell)
        self.attention = (
            SelfAttention(dim, heads, cell)
            if kind == "ssa"
            else QKAttention(dim, heads, kind, sum_norm, cell)
        )
        self.mlp = SpikingMLP(dim, ratio, residual, cell, drop_path)

    def forward(self, stream: Tensor) -> Tensor:
        """Return the updated stream [T, B, C, H, W]."""
        return self.mlp(stream + self.drop_path(self.exit(self.attention(self.enter(stream)))))


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
        drop_paths: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.embedding = PatchEmbedding(inputs, dim, residual, cell, first=first)
        self.position = PositionalConv(dim, residual, cell) if rpe else None
        self.blocks = nn.Sequential(
            *(
                Block(dim, heads, kind, ratio, residual, sum_norm, cell, share)
                for share in drop_paths or [0.0] * depth
            )
        )

    def forward(self, x: Tensor, steps: int, run: Run = call) -> Tensor:
        """Return the stream after this stage; `run` calls each part."""
        stream: Tensor = run(self.embedding, x, steps)
        if self.position is not None:
            stream = run(self.position, stream)
        for block in self.blocks:
            stream = run(block, stream)
        return stream
