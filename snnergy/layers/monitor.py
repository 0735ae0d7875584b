"""Access to the spikes of a network's neurons during forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch  # noqa: F401  (used by the doctest)
from torch import Tensor, nn

from snnergy.layers.neurons import SpikingNeuron

SpikeCallback = Callable[[str, SpikingNeuron, Tensor], None]


@contextmanager
def record_spikes(model: nn.Module, callback: SpikeCallback) -> Iterator[None]:
    """Call `callback(name, neuron, spikes)` after each forward pass of a neuron, while the context is active.

    >>> seen = []
    >>> model = nn.Sequential(SpikingNeuron())
    >>> with record_spikes(model, lambda name, neuron, spikes: seen.append((name, float(spikes.mean())))):
    ...     _ = model(torch.tensor([[0.5], [9.0]]))
    >>> seen
    [('0', 0.5)]
    """
    neurons = [(name, part) for name, part in model.named_modules() if isinstance(part, SpikingNeuron)]
    handles = [part.register_forward_hook(partial(_call, callback, name)) for name, part in neurons]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call(callback: SpikeCallback, name: str, neuron: Any, args: tuple[Any, ...], spikes: Tensor) -> None:
    callback(name, neuron, spikes.detach())
