"""Look at the neurons of a network while it runs: their spikes, by the name of the part that fired them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch  # noqa: F401  (the example uses it)
from torch import Tensor, nn

from snnergy.layers.neurons import Neuron

Look = Callable[[str, Neuron, Tensor], None]


@contextmanager
def watched(model: nn.Module, look: Look) -> Iterator[None]:
    """Within it, `look(name, neuron, spikes)` is called each time a neuron has fired.

    >>> seen = []
    >>> model = nn.Sequential(Neuron())
    >>> with watched(model, lambda name, neuron, spikes: seen.append((name, float(spikes.mean())))):
    ...     _ = model(torch.tensor([[0.5], [9.0]]))
    >>> seen
    [('0', 0.5)]
    """
    parts = [(name, part) for name, part in model.named_modules() if isinstance(part, Neuron)]
    handles = [part.register_forward_hook(partial(_call, look, name)) for name, part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call(look: Look, name: str, neuron: Any, given: tuple[Any, ...], spikes: Tensor) -> None:
    look(name, neuron, spikes.detach())
