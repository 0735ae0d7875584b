"""Residual connections and the spiking MLP.

The stream between blocks is real-valued with the `membrane` residual: each block reads spikes of it and adds
a current. With `sew` (QKFormer) each block reads the stream and adds spikes, so that it contains small
integers.
"""

from __future__ import annotations

from torch import Tensor, nn

from snnergy.layers.conv_norm import ConvNorm
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec
from snnergy.layers.types import Residual


class ResidualInput(nn.Module):
    """Input of a block: spikes of the stream (`membrane`), or the stream itself (`sew`)."""

    def __init__(self, residual: Residual, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.neuron = cell.neuron() if residual == "membrane" else None

    def forward(self, stream: Tensor) -> Tensor:
        """Return the block's input for a stream [T, B, C, H, W]."""
        return stream if self.neuron is None else self.neuron(stream)


class ResidualOutput(nn.Module):
    """Output of a block: its current (`membrane`), or the spikes of it (`sew`)."""

    def __init__(self, residual: Residual, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.neuron = cell.neuron() if residual == "sew" else None

    def forward(self, current: Tensor) -> Tensor:
        """Return what to add to the stream for a current [T, B, C, H, W]."""
        return current if self.neuron is None else self.neuron(current)


class SpikingMLP(nn.Module):
    """Spiking MLP of two 1×1 convolutions with a residual connection.

    Args:
        dim: channels C.
        ratio: hidden channels in multiples of C.
        residual: kind of stream.
        cell: kind of neuron.
    """

    def __init__(self, dim: int, ratio: int, residual: Residual, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.enter, self.exit = ResidualInput(residual, cell), ResidualOutput(residual, cell)
        self.layers = nn.Sequential(
            ConvNorm(dim, ratio * dim),
            cell.neuron(),
            ConvNorm(ratio * dim, dim),
        )

    def forward(self, stream: Tensor) -> Tensor:
        """Return the stream [T, B, C, H, W] with the MLP's output added."""
        return stream + self.exit(self.layers(self.enter(stream)))
