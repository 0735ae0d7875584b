"""Residual."""

from __future__ import annotations

from torch import Tensor, nn

from snnergy.layers.conv_norm import ConvNorm
from snnergy.layers.neurons import DEFAULT_NEURON, NeuronSpec
from snnergy.layers.types import Residual


class ResidualInput(nn.Module):
    """What a part sees of the stream: spikes of the membrane, or the stream as it is."""

    def __init__(self, residual: Residual, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.neuron = cell.neuron() if residual == "membrane" else None

    def forward(self, stream: Tensor) -> Tensor:
        """Spikes, or the stream."""
        return stream if self.neuron is None else self.neuron(stream)


class ResidualOutput(nn.Module):
    """What a part adds to the stream: its current, or the spikes of it."""

    def __init__(self, residual: Residual, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.neuron = cell.neuron() if residual == "sew" else None

    def forward(self, current: Tensor) -> Tensor:
        """The current, or its spikes."""
        return current if self.neuron is None else self.neuron(current)


class SpikingMLP(nn.Module):
    """The spiking MLP, added to the stream."""

    def __init__(self, dim: int, ratio: int, residual: Residual, cell: NeuronSpec = DEFAULT_NEURON) -> None:
        super().__init__()
        self.enter, self.exit = ResidualInput(residual, cell), ResidualOutput(residual, cell)
        self.layers = nn.Sequential(
            ConvNorm(dim, ratio * dim),
            cell.neuron(),
            ConvNorm(ratio * dim, dim),
        )

    def forward(self, stream: Tensor) -> Tensor:
        """The stream with it added."""
        return stream + self.exit(self.layers(self.enter(stream)))
