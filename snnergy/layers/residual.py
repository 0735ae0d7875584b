"""Residual connections and the spiking MLP.

The stream between blocks is real-valued with the `membrane` residual: each block reads spikes of it and adds
a current. With `sew` (QKFormer) each block reads the stream and adds spikes, so that it contains small
integers.
"""

from __future__ import annotations

import torch
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


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, random samples skip a residual branch at all steps.

    Args:
        share: probability of skipping the branch; the others are scaled by 1 / (1 - share).
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch [T, B, C, H, W], 0 for the samples that skip it."""
        if not self.training or self.share == 0:
            return branch
        kept = torch.rand(branch.shape[1], device=branch.device) >= self.share
        return branch * (kept / (1 - self.share)).to(branch.dtype)[:, None, None, None]

    def extra_repr(self) -> str:
        """Return the probability for `repr`."""
        return f"share={self.share:g}"


class SpikingMLP(nn.Module):
    """Spiking MLP of two 1×1 convolutions with a residual connection.

    Args:
        dim: channels C.
        ratio: hidden channels in multiples of C.
        residual: kind of stream.
        cell: kind of neuron.
        drop_path: see `DropPath`.
    """

    def __init__(
        self,
        dim: int,
        ratio: int,
        residual: Residual,
        cell: NeuronSpec = DEFAULT_NEURON,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.enter, self.exit = ResidualInput(residual, cell), ResidualOutput(residual, cell)
        self.layers = nn.Sequential(
            ConvNorm(dim, ratio * dim),
            cell.neuron(),
            ConvNorm(ratio * dim, dim),
        )

    def forward(self, stream: Tensor) -> Tensor:
        """Return the stream [T, B, C, H, W] with the MLP's output added."""
        return stream + self.drop_path(self.exit(self.layers(self.enter(stream))))
