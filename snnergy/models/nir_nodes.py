"""Nodes of a NIR graph that computes one time step of a network, without a batch axis.

NIR (`pip install nir`) has no maximum and no repetition over a grid. Such a host operation ends in an
Output node and its result is an Input node, whose metadata name the operation and the Output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from avdata.errors import UsageError
from snnergy.layers.neurons import SpikingNeuron

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Signal:
    """Sum of the outputs of nodes of one shape. A NIR node adds the values of its incoming edges.

    Attributes:
        sources: names of the nodes.
        shape: C, H, W.
    """

    sources: tuple[str, ...]
    shape: Shape

    def __add__(self, other: Signal) -> Signal:
        """Return the sum of both signals."""
        return Signal(self.sources + other.sources, self.shape)


def refusal(part: str) -> UsageError:
    """Return the error for a part of a network that has no nodes in NIR."""
    return UsageError(f"NIR cannot express {part}.", hint="Use --format onnx or --format torch")


@dataclass
class NirNodes:
    """Graph under construction: each method adds a node and returns its output."""

    nodes: dict[str, nir.NIRNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    def _add(self, name: str, node: nir.NIRNode, inputs: Signal, shape: Sequence[int]) -> Signal:
        self.nodes[name] = node
        self.edges += [(source, name) for source in inputs.sources]
        return Signal((name,), tuple(map(int, shape)))

    def input(self, name: str, shape: Shape, **metadata: Any) -> Signal:
        """Add an input [C, H, W] of the graph."""
        self.nodes[name] = nir.Input({"input": np.array(shape)}, metadata=metadata)
        return Signal((name,), shape)

    def output(self, name: str, x: Signal) -> None:
        """Add an output of the graph."""
        self._add(name, nir.Output({"output": np.array(x.shape)}), x, x.shape)

    def host(self, name: str, x: Signal, shape: Shape, operation: str, **options: Any) -> Signal:
        """Add an operation that NIR has not: x [C, H, W] is an output, its result an input of the graph."""
        self.output(f"{name}.source", x)
        return self.input(name, shape, operation=operation, source=f"{name}.source", **options)

    def conv(
        self, name: str, x: Signal, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0
    ) -> Signal:
        """Add a convolution of x [C, H, W] with a weight [C', C, k, k]."""
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        node = nir.Conv2d(
            x.shape[1:], _array(weight), (stride, stride), (padding, padding), (1, 1), 1, _array(bias)
        )
        return self._add(name, node, x, node.output_type["output"])

    def layer(self, name: str, x: Signal, layer: nn.Conv2d, part: slice = slice(None)) -> Signal:
        """Add some output channels of a convolution of x [C, H, W]; its pooling is not added."""
        bias = None if layer.bias is None else layer.bias[part]
        padding = layer.padding[0]
        assert isinstance(padding, int)
        return self.conv(name, x, layer.weight[part], bias, layer.stride[0], padding)

    def max_pool(self, name: str, x: Signal, pool: nn.MaxPool2d) -> Signal:
        """Add max pooling of x [C, H, W], by the host."""
        sizes = {"kernel_size": pool.kernel_size, "stride": pool.stride, "padding": pool.padding}
        with torch.device("meta"):
            shape = tuple(pool(torch.empty(x.shape)).shape)
        return self.host(name, x, shape, "max_pool2d", **sizes)

    def neuron(self, name: str, x: Signal, neuron: nn.Module) -> Signal:
        """Add neurons with currents x [C, H, W]. Their time constant counts steps, and R = 1.

        NIR compares v > threshold, and SNNergy v ≥ threshold: the next smaller float32 gives the same spikes.

        Raises:
            UsageError: they have a soft reset, or are not spiking.
        """
        if not isinstance(neuron, SpikingNeuron):
            activation = f"the activation {type(neuron).__name__}"
            raise refusal(activation)
        if neuron.reset == "soft":
            setting = "reset=soft"
            raise refusal(setting)
        tau = neuron.tau if neuron.leak is None else 1 / float(torch.sigmoid(neuron.leak.double()))
        ones, zeros = np.ones(x.shape, np.float32), np.zeros(x.shape, np.float32)
        threshold = ones * np.nextafter(np.float32(neuron.threshold), np.float32(0))
        node = (
            nir.IF(ones, threshold, zeros)
            if neuron.kind == "if"
            else nir.LIF(ones * np.float32(tau), ones, zeros, threshold, zeros)
        )
        return self._add(name, node, x, x.shape)

    def exceeds(self, name: str, x: Signal, threshold: float) -> Signal:
        """Add 1 where x [C, H, W] exceeds a threshold, else 0: of summed spikes, 1.5 is AND and 0.5 is OR."""
        return self._add(name, nir.Threshold(np.full(x.shape, threshold, np.float32)), x, x.shape)

    def scale(self, name: str, x: Signal, factor: Tensor) -> Signal:
        """Add x [C, H, W] times a number, or times one per channel [C, 1, 1]."""
        node = nir.Scale(_array(factor.expand(x.shape)))
        return self._add(name, node, x, x.shape)

    def token_sum(self, name: str, x: Signal) -> Signal:
        """Add the sum [C, 1, 1] over the grid of x [C, H, W]."""
        grid = np.array(x.shape[1:])
        return self._add(name, nir.SumPool2d(grid, grid, np.zeros(2, int)), x, (x.shape[0], 1, 1))

    def linear(self, name: str, x: Signal, weight: Tensor, bias: Tensor) -> Signal:
        """Add a linear layer [K, C] of the mean [C] over the grid of x [C, H, W]."""
        grid, (channels, *_) = np.array(x.shape[1:]), x.shape
        mean = nir.AvgPool2d(grid, grid, np.zeros(2, int))
        mean_out = self._add(f"{name}.mean", mean, x, (channels, 1, 1))
        flat = nir.Flatten({"input": np.array(mean_out.shape)}, 0, -1)
        flat_out = self._add(f"{name}.flat", flat, mean_out, (channels,))
        return self._add(name, nir.Affine(_array(weight), _array(bias)), flat_out, (len(weight),))


def _array(weight: Tensor) -> np.ndarray:
    return weight.detach().float().cpu().numpy().copy()
