"""Look at the neurons of a network while it runs: their spikes, by the name of the part that fired them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch  # noqa: F401  (the example uses it)
from torch import Tensor, nn

from snnergy.layers.neurons import SpikingNeuron

SpikeCallback = Callable[[str, SpikingNeuron, Tensor], None]


@contextmanager
def record_spikes(model: nn.Module, look: SpikeCallback) -> Iterator[None]:
    """Within it, `look(name, neuron, spikes)` is called each time a neuron has fired.

    >>> seen = []
    >>> model = nn.Sequential(SpikingNeuron())
    >>> with record_spikes(model, lambda name, neuron, spikes: seen.append((name, float(spikes.mean())))):
    ...     _ = model(torch.tensor([[0.5], [9.0]]))
    >>> seen
    [('0', 0.5)]
    """
    parts = [(name, part) for name, part in model.named_modules() if isinstance(part, SpikingNeuron)]
    handles = [part.register_forward_hook(partial(_call, look, name)) for name, part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call(look: SpikeCallback, name: str, neuron: Any, given: tuple[Any, ...], spikes: Tensor) -> None:
    look(name, neuron, spikes.detach())
