"""What a network looks like when it does not learn: silent layers, saturated ones, masks that hide nothing.

A mask that is always one is no attention, one that is always zero lets nothing pass, and a layer that never
fires has no gradient worth the name. Rates are measured on evaluation batches, after recalibration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snnergy.data import Batch
from snnergy.layers.neurons import SpikingNeuron

SILENT, SATURATED = 1e-4, 0.98

MASK_LOW, MASK_HIGH = 0.02, 0.98

LAYERS_SHOWN = 3

UNSTABLE_HINT = "begin again with a lower --lr or --set precision=32; a last.ckpt was written before this"
"""What to do where numbers are no longer finite."""


@contextmanager
def record_firing_rates(network: nn.Module) -> Iterator[dict[str, float]]:
    """Inside, each forward pass sets the rate of every neuron layer: the share of ones.

    >>> # with record_firing_rates(network) as rates: network(audio, video)
    """
    rates: dict[str, float] = {}
    pending: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def seen(module: nn.Module, inputs: Any, spikes: Tensor) -> None:
            pending[name] = spikes.detach().float().mean()

        return seen

    layers = [(name, part) for name, part in network.named_modules() if isinstance(part, SpikingNeuron)]
    handles = [part.register_forward_hook(hook(name)) for name, part in layers]
    try:
        yield rates
    finally:
        for handle in handles:
            handle.remove()
        if pending:
            # One copy from the device, not one a layer.
            values = torch.stack(list(pending.values())).tolist()
            rates.update(zip(pending, values, strict=True))


def diagnose(network: nn.Module, rates: Mapping[str, float]) -> dict[str, list[str]]:
    """What is wrong with the rates, as sentences, each with the layers that it holds for."""
    masks = {name for name, part in network.named_modules() if isinstance(part, SpikingNeuron) and part.mask}
    found = {
        f"attention masks outside [{MASK_LOW}, {MASK_HIGH}]": [
            name for name, rate in rates.items() if name in masks and not MASK_LOW <= rate <= MASK_HIGH
        ],
        f"silent layers, firing below {SILENT:g}": [
            name for name, rate in rates.items() if name not in masks and rate < SILENT
        ],
        f"saturated layers, firing above {SATURATED}": [
            name for name, rate in rates.items() if name not in masks and rate > SATURATED
        ],
    }
    return {sentence: layers for sentence, layers in found.items() if layers}


def format_warning(sentence: str, layers: Sequence[str], rates: Mapping[str, float]) -> str:
    """One line of a warning: what, how many, and the first few by name.

    >>> format_warning("silent layers", ["a", "b"], {"a": 0.0, "b": 0.0})
    '2 silent layers: a (0), b (0)'
    """
    named = ", ".join(f"{name} ({rates[name]:.2g})" for name in layers[:LAYERS_SHOWN])
    return f"{len(layers)} {sentence}: {named}{', …' if len(layers) > LAYERS_SHOWN else ''}"


def find_non_finite(network: nn.Module, batches: Sequence[Batch]) -> str:
    """Where a step's parts become infinite or NaN: a weight, an input, or the first layer that makes them so.

    Run it before the optimizer has stepped, or every weight may be NaN.
    """
    for name, weight in network.named_parameters():
        if not bool(weight.isfinite().all()):
            return f"the weight {name}"
    for batch in batches:
        for name, value in (("sound", batch.audio), ("pictures", batch.video)):
            if not bool(value.isfinite().all()):
                return f"the {name} of the batch"
    found: list[str] = []

    def hook(name: str) -> Any:
        def seen(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name)

        return seen

    # Children finish before their parents, so the first to be found is the innermost.
    handles = [part.register_forward_hook(hook(name)) for name, part in network.named_modules() if name]
    try:
        with torch.no_grad():
            for batch in batches:
                network(batch.audio, batch.video)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the layer {found[0]}"
    for name, weight in network.named_parameters():
        if weight.grad is not None and not bool(weight.grad.isfinite().all()):
            return f"the gradient of {name}"
    return "the loss alone, with every layer's output finite"
