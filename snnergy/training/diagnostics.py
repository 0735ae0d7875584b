"""Diagnostics of a training: silent layers, saturated layers and masks, and non-finite values.

A mask that is always 1 has no effect, one that is always 0 blocks everything, and a layer that never spikes
has almost no gradient. Rates are measured on evaluation batches, after recalibration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snnergy.data import Batch
from snnergy.layers.monitor import record_spikes
from snnergy.layers.neurons import SpikingNeuron
from snnergy.training.config import TrainConfig

SILENT, SATURATED = 1e-4, 0.98

MASK_LOW, MASK_HIGH = 0.02, 0.98

LAYERS_SHOWN = 3

WIDEST_MASK = 0.25
"""Share of a spectrogram beyond which SpecAugment hides what distinguishes short sounds."""

UNSTABLE_HINT = "Restart with a lower --lr or --set precision=32; last.ckpt is from before this step"
"""For errors about values that are not finite."""


@contextmanager
def record_firing_rates(network: nn.Module) -> Iterator[dict[str, float]]:
    """Yield a dict that contains, after the context, the firing rate of each neuron layer.

    >>> # with record_firing_rates(network) as rates: network(audio, video)
    """
    rates: dict[str, float] = {}
    pending: dict[str, Tensor] = {}

    def record(name: str, neuron: SpikingNeuron, spikes: Tensor) -> None:
        pending[name] = spikes.float().mean()

    try:
        with record_spikes(network, record):
            yield rates
    finally:
        if pending:
            # One copy from the device instead of one per layer.
            values = torch.stack(list(pending.values())).tolist()
            rates.update(zip(pending, values, strict=True))


def diagnose(network: nn.Module, rates: Mapping[str, float]) -> dict[str, list[str]]:
    """Return the problems of the firing rates as sentences, each with the affected layers."""
    masks = {name for name, part in network.named_modules() if isinstance(part, SpikingNeuron) and part.mask}
    problems = {
        f"attention masks outside [{MASK_LOW}, {MASK_HIGH}]": [
            name for name, rate in rates.items() if name in masks and not MASK_LOW <= rate <= MASK_HIGH
        ],
        f"silent layers, firing rate below {SILENT:g}": [
            name for name, rate in rates.items() if name not in masks and rate < SILENT
        ],
        f"saturated layers, firing rate above {SATURATED}": [
            name for name, rate in rates.items() if name not in masks and rate > SATURATED
        ],
    }
    return {sentence: layers for sentence, layers in problems.items() if layers}


def check_setup(config: TrainConfig, info: Mapping[str, Any]) -> list[str]:
    """Return warnings about settings and a dataset, before the training.

    Args:
        config: settings.
        info: content of dataset.json.
    """
    found, splits = [], info["splits"]
    if "val" not in splits:
        end = "evaluated on test" if "test" in splits else "not evaluated"
        found.append(
            "Dataset has no val split: no checkpoint is selected and the training does not stop early;"
            f" last.ckpt is {end}."
        )
    counts = splits["train"].get("labels", {})
    absent = [label for label in info["labels"] if not counts.get(label)]
    if counts and absent:
        found.append(f"Labels without samples in the train split: {_shorten(absent)}.")
    found += [
        f"augment.{name}={share:g} masks up to {share:.0%} of each spectrogram; more than {WIDEST_MASK:.0%}"
        " hides short sounds."
        for name, share in (("bands", config.augment.bands), ("columns", config.augment.columns))
        if share > WIDEST_MASK
    ]
    return found


def check_result(measured: Mapping[str, Any], split: str) -> list[str]:
    """Return warnings about the result of `evaluate_split` on a split."""
    confusion, labels = measured["confusion"], list(measured["per_class"])
    largest = max(map(sum, confusion)) / max(measured["samples"], 1)
    found = []
    if len(labels) > 1 and measured["accuracy"] <= largest:
        found.append(
            f"The network is at chance: accuracy {measured['accuracy']:.3f} on {split}, where the most"
            f" frequent label alone gives {largest:.3f}."
        )
    never = [
        label
        for index, label in enumerate(labels)
        if sum(confusion[index]) and not any(row[index] for row in confusion)
    ]
    if never:
        found.append(f"Labels never predicted on {split}: {_shorten(never)}.")
    return found


def _shorten(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


def format_warning(sentence: str, layers: Sequence[str], rates: Mapping[str, float]) -> str:
    """Return one line with the number of layers and the first few names.

    >>> format_warning("silent layers", ["a", "b"], {"a": 0.0, "b": 0.0})
    '2 silent layers: a (0), b (0)'
    """
    named = ", ".join(f"{name} ({rates[name]:.2g})" for name in layers[:LAYERS_SHOWN])
    return f"{len(layers)} {sentence}: {named}{', …' if len(layers) > LAYERS_SHOWN else ''}"


def find_non_finite(network: nn.Module, batches: Sequence[Batch]) -> str:
    """Return where values first become infinite or NaN: a weight, an input, a layer or a gradient.

    Call it before the optimizer step, which may turn every weight into NaN.
    """
    for name, weight in network.named_parameters():
        if not bool(weight.isfinite().all()):
            return f"the weight {name}"
    for batch in batches:
        for name, value in (("audio", batch.audio), ("video", batch.video)):
            if not bool(value.isfinite().all()):
                return f"the {name} of the batch"
    non_finite: list[str] = []

    def hook(name: str) -> Any:
        def check(module: nn.Module, inputs: Any, output: Any) -> None:
            if not non_finite and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                non_finite.append(name)

        return check

    # Children run before their parents return, so that the first match is the innermost module.
    handles = [part.register_forward_hook(hook(name)) for name, part in network.named_modules() if name]
    try:
        with torch.no_grad():
            for batch in batches:
                network(**batch.arguments)
    finally:
        for handle in handles:
            handle.remove()
    if non_finite:
        return f"the layer {non_finite[0]}"
    for name, weight in network.named_parameters():
        if weight.grad is not None and not bool(weight.grad.isfinite().all()):
            return f"the gradient of {name}"
    return "only the loss; the outputs of all layers are finite"
