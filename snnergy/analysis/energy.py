"""Energy estimate of an inference: operations counted on samples (QKFormer, app. 7.6; 45 nm).

A layer that reads spikes adds one weight per spike and target: a synaptic operation (SOP) of 0.9 pJ. A
layer that reads real values multiplies and adds (MAC, 4.6 pJ; Horowitz 2014): the first convolution of each
modality and the linear head. Norms and α are folded into weights and masks are ANDs: no cost. Sums and
products of attention count their spikes. SOPs are reported twice: `rate`, dense operations times the mean
spike count, and `exact`, in which a spike at a border has fewer targets.

The energy of arithmetic is not the energy of a chip. The estimate with memory adds 24.96 pJ per byte for
weights, read at every step, and for membranes, read and written at every step. It is much larger, and an
artificial network also pays for memory. The ratio of 0.9 to 4.6 alone does not prove hardware savings
(arXiv 2409.08290).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from avdata.errors import UsageError
from snnergy.fusion.registry import FUSIONS
from snnergy.layers.attention import TokenSumMask
from snnergy.layers.conv_norm import merge_time_batch
from snnergy.layers.monitor import record_spikes
from snnergy.layers.neurons import SpikingNeuron
from snnergy.models.inputs import InputBatch
from snnergy.models.network import SNNergy

MAC_PJ, AC_PJ, BYTE_PJ = 4.6, 0.9, 24.96


@dataclass(frozen=True)
class Layer:
    """Cost of one layer per sample, over all steps.

    Attributes:
        name: module name.
        spiking: whether its input is spikes.
        rate: mean of its input; for spikes the firing rate, which with `sew` may exceed 1.
        macs: dense multiply-accumulate operations.
        sops_rate: synaptic operations, estimated from the rate.
        sops_exact: synaptic operations, counted.
    """

    name: str
    spiking: bool
    rate: float
    macs: float
    sops_rate: float
    sops_exact: float

    @property
    def millijoules(self) -> float:
        """Energy of the arithmetic in mJ, from exact SOPs."""
        return (AC_PJ * self.sops_exact if self.spiking else MAC_PJ * self.macs) * 1e-9


@dataclass(frozen=True, repr=False)
class Energy:
    """Cost of a network per sample, the mean over the measured samples.

    Attributes:
        layers: convolutions and the head, in execution order.
        attention: additions in sums and products of attention.
        updates: membrane updates; not part of `millijoules`.
        rates: firing rate of each neuron layer.
        weight_bytes: bytes of weights read, once per step.
        steps: number of time steps T.
        samples: number of measured samples.
    """

    layers: tuple[Layer, ...]
    attention: float
    updates: float
    rates: dict[str, float]
    weight_bytes: float
    steps: float
    samples: int

    def __repr__(self) -> str:
        """Return the totals on one line."""
        return (
            f"Energy({self.millijoules():.4g} mJ and {self.sops() / 1e6:.4g} million SOPs per sample,"
            f" {len(self.layers)} layers, T={self.steps:g}, {self.samples} samples)"
        )

    def sops(self, mode: str = "exact") -> float:
        """Return the synaptic operations of all layers and attention, `exact` or from the `rate`."""
        return self.attention + sum(
            layer.sops_exact if mode == "exact" else layer.sops_rate for layer in self.layers if layer.spiking
        )

    def millijoules(self, mode: str = "exact") -> float:
        """Return the energy of all arithmetic in mJ, `exact` or from the `rate`."""
        macs = sum(layer.macs for layer in self.layers if not layer.spiking)
        return (AC_PJ * self.sops(mode) + MAC_PJ * macs) * 1e-9

    def totals(self) -> dict[str, float]:
        """Return all totals: operations and mJ per sample."""
        return {
            "sops_exact": self.sops(),
            "sops_rate": self.sops("rate"),
            "mj_exact": self.millijoules(),
            "mj_rate": self.millijoules("rate"),
            "mj_reference": self.reference_millijoules,
            "mj_with_memory": self.millijoules_with_memory,
        }

    @property
    def reference_millijoules(self) -> float:
        """Energy in mJ of an artificial network with the same layers, run at every step."""
        return MAC_PJ * sum(layer.macs for layer in self.layers) * 1e-9

    @property
    def millijoules_with_memory(self) -> float:
        """Energy in mJ of arithmetic and of weight and membrane traffic (float32, read and written)."""
        return self.millijoules() + BYTE_PJ * (self.weight_bytes + 8 * self.updates) * 1e-9


@dataclass
class _Sums:
    spiking: bool = True
    values: float = 0.0
    inputs: float = 0.0
    macs: float = 0.0
    exact: float = 0.0


@dataclass
class _OpCounter:
    layers: dict[str, _Sums] = field(default_factory=dict)
    spikes: dict[str, list[float]] = field(default_factory=dict)
    attention: float = 0.0
    updates: float = 0.0
    events: dict[str, Tensor] = field(default_factory=dict)
    artificial: bool = False


class _Products(TorchFunctionMode):
    """Counter of the additions in attention's products of spikes: the sum of the product is their number."""

    def __init__(self, count: _OpCounter) -> None:
        super().__init__()
        self._count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            self._count.attention += float(result.double().sum())
        return result


def _count_conv(count: _OpCounter, name: str, conv: Any, inputs: tuple[Tensor], out: Tensor) -> None:
    x, sums = count.events.pop(name, inputs[0]), count.layers.setdefault(name, _Sums())
    per_output = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
    sums.macs += out.numel() * per_output
    sums.values += float(x.double().sum())
    sums.inputs += x.numel()
    if count.artificial or name.endswith("embed.0.conv"):
        sums.spiking = False
        return
    kernel = torch.ones(1, 1, *conv.kernel_size, dtype=torch.float64, device=x.device)
    events = x.double().sum(1, keepdim=True)
    targets = functional.conv2d(events, kernel, stride=conv.stride, padding=conv.padding)
    sums.exact += float(targets.sum()) * conv.out_channels


def _count_linear(count: _OpCounter, name: str, linear: Any, inputs: tuple[Tensor], out: Tensor) -> None:
    sums = count.layers.setdefault(name, _Sums(spiking=False))
    sums.macs += out.numel() * linear.in_features
    sums.values += float(inputs[0].double().sum())
    sums.inputs += inputs[0].numel()


def _count_both_streams(model: SNNergy, count: _OpCounter) -> list[Any]:
    """Register hooks that count the events of fused `sew` streams.

    A fused stream x + α·Z is two spike streams, read by W and by α·W: each spike is one event. Its readers
    are the first convolutions of the next stage, and the MLP of the fusion if there is one.
    """
    hooks = []
    for stage, fusion in model.fusions.items():
        streams: dict[str, Tensor] = {}
        hooks.append(fusion.register_forward_pre_hook(partial(_keep_inputs, streams)))
        for name in model.encoders:
            embedding = f"encoders.{name}.{stage}.embedding"
            readers = [f"{embedding}.main.0.conv", f"{embedding}.shortcut.conv"]
            alpha = getattr(fusion, f"to_{name}").alpha
            message_readers = readers
            if fusion.mlp:
                message_readers = [f"fusions.{stage}.mlp.{name}.layers.0.conv"]
                own = partial(_add_events, count, streams, name, None, readers)
                last = model.get_submodule(f"fusions.{stage}.mlp.{name}.exit")
                hooks.append(last.register_forward_hook(own))
            sent = partial(_add_events, count, streams, name, alpha, message_readers)
            hooks.append(getattr(fusion, f"{name}_exit").register_forward_hook(sent))
    return hooks


def _keep_inputs(streams: dict[str, Tensor], fusion: nn.Module, inputs: tuple[Any, ...]) -> None:
    streams.update(inputs[0])


def _add_events(
    count: _OpCounter, streams: dict[str, Tensor], name: str, alpha: Tensor | None, readers: list[str],
    part: nn.Module, inputs: Any, spikes: Tensor,
) -> None:  # fmt: skip
    streams[name] = streams[name] + (spikes if alpha is None else spikes * (alpha != 0))
    count.events.update(dict.fromkeys(readers, merge_time_batch(streams[name])))


@contextmanager
def _count_ops(model: SNNergy, count: _OpCounter) -> Iterator[None]:
    def count_spikes(name: str, neuron: SpikingNeuron, spikes: Tensor) -> None:
        totals = count.spikes.setdefault(name, [0.0, 0.0])
        totals[0] += float(spikes.double().sum())
        totals[1] += spikes.numel()
        count.updates += spikes.numel()

    def count_sum(part: nn.Module, inputs: tuple[Any, ...]) -> None:
        count.attention += inputs[0].numel() if count.artificial else float(inputs[0].double().sum())

    has_two_streams = model.config.residual == "sew" and model.config.fusion_output == "stream"
    hooks = _count_both_streams(model, count) if has_two_streams else []
    count.artificial = FUSIONS[model.config.fusion].artificial
    within = {id(part.neuron) for part in model.modules() if isinstance(part, TokenSumMask)}
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d):
            hooks.append(part.register_forward_hook(partial(_count_conv, count, name)))
        elif isinstance(part, nn.Linear):
            hooks.append(part.register_forward_hook(partial(_count_linear, count, name)))
        elif isinstance(part, TokenSumMask) or (
            isinstance(part, SpikingNeuron) and part.mask and id(part) not in within
        ):
            hooks.append(part.register_forward_pre_hook(count_sum))
    try:
        with ExitStack() as stack:
            stack.enter_context(record_spikes(model, count_spikes))
            stack.enter_context(_Products(count))
            yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def measure_energy(model: SNNergy, batches: Iterable[InputBatch]) -> Energy:
    """Return the cost of an inference, the mean over samples.

    Use a trained network on a test split: firing rates of other networks or data are not meaningful.

    Args:
        model: network in evaluation mode.
        batches: (audio, video) or (audio, video, mask_a, mask_v) as for `SNNergy.forward`; static inputs are
            convolved once.

    Raises:
        UsageError: the network is in training mode, or `batches` is empty.
    """
    if model.training:
        msg = "Cannot measure the energy of a network in training mode."
        raise UsageError(msg, hint="Call model.eval() first")
    count, samples, steps = _OpCounter(), 0, 0
    with _count_ops(model, count):
        for batch in batches:
            audio, video = batch[:2]
            size = audio.shape[1] if audio.ndim == 5 else audio.shape[0]
            timed = [len(part) for part in (audio, video) if part.ndim == 5]
            steps += size * (timed[0] if timed else model.config.steps)
            model(*batch)
            samples += size
    if not samples:
        msg = "No samples to measure energy on."
        raise UsageError(msg, hint="Use a split that is not empty")
    weights = sum(weight.numel() for weight in model.parameters()) * 4
    return _per_sample(count, samples, weights, steps / samples)


def _per_sample(count: _OpCounter, samples: int, weight_bytes: float, steps: float) -> Energy:
    layers = []
    for name, sums in count.layers.items():
        rate, macs = sums.values / sums.inputs, sums.macs / samples
        layers.append(
            Layer(name, sums.spiking, rate, macs, rate * macs if sums.spiking else 0.0, sums.exact / samples)
        )
    return Energy(
        layers=tuple(layers),
        attention=count.attention / samples,
        updates=count.updates / samples,
        rates={name: spikes / cells for name, (spikes, cells) in count.spikes.items()},
        weight_bytes=weight_bytes * steps,
        steps=steps,
        samples=samples,
    )


def plot_energy(energy: Energy, path: Path) -> None:
    """Plot the energy of each layer and of the same layer in an artificial network, on a log scale."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8, 1.5 + 0.16 * len(energy.layers)), layout="constrained")
    axis = figure.subplots()
    positions = range(len(energy.layers))
    reference = [MAC_PJ * layer.macs * 1e-9 for layer in energy.layers]
    spiking = [layer.millijoules for layer in energy.layers]
    # Dots: bars on a log scale have an arbitrary length. It has no zero, so a silent layer has none.
    axis.hlines(positions, spiking, reference, color="0.85")
    axis.plot(reference, positions, "o", color="0.6", markersize=3, label="artificial network")
    axis.plot(spiking, positions, "o", color="C0", markersize=3, label="spiking")
    axis.set_yticks(positions, [layer.name for layer in energy.layers], fontsize=5)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("mJ per sample, arithmetic at 45 nm")
    axis.legend()
    figure.savefig(path, dpi=130)
