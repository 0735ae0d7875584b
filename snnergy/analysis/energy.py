"""What an inference costs in additions and joules, counted on real samples (QKFormer, app. 7.6; 45 nm).

A layer that is fed spikes adds a weight for each spike and each of its targets: a synaptic operation (SOP)
of 0.9 pJ. A layer fed real values multiplies and adds (MAC, 4.6 pJ; Horowitz 2014): the first convolution of
each modality and the linear head. Norms and α fold into weights, masks are ANDs, and cost nothing; sums and
products of attention count their spikes. SOPs are given twice: `rate`, dense operations times the mean spike
count, and `exact`, where a spike at a border has fewer targets.

Joules of arithmetic are not joules of a chip. The estimate with memory adds 24.96 pJ a byte for weights, read
at every step, and membranes, read and written at every step; it is larger by far, and an artificial network
pays for memory too. Claim no savings of hardware from the ratio of 0.9 to 4.6 alone (arXiv 2409.08290).
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
from snnergy.layers.attention import TokenSumMask
from snnergy.layers.conv_norm import merge_time_batch
from snnergy.layers.monitor import record_spikes
from snnergy.layers.neurons import SpikingNeuron
from snnergy.models.network import SNNergy

MAC_PJ, AC_PJ, BYTE_PJ = 4.6, 0.9, 24.96


@dataclass(frozen=True)
class Layer:
    """One layer's cost of one sample, all steps.

    Attributes:
        name: of the layer.
        spiking: it is fed spikes.
        rate: mean of its input; of spikes, the firing rate (with `sew` also above one).
        macs: dense operations.
        sops_rate: operations by rate.
        sops_exact: operations by counting.
    """

    name: str
    spiking: bool
    rate: float
    macs: float
    sops_rate: float
    sops_exact: float

    @property
    def millijoules(self) -> float:
        """Energy of its arithmetic, SOPs counted exactly."""
        return (AC_PJ * self.sops_exact if self.spiking else MAC_PJ * self.macs) * 1e-9


@dataclass(frozen=True)
class Energy:
    """A network's cost of one sample, the mean over those measured.

    Attributes:
        layers: convolutions and the head, in the order in which they ran.
        attention: additions of attention's sums and products.
        updates: membranes updated; not in the headline.
        rates: firing rate of each neuron layer.
        weight_bytes: of weights read, each at every step.
        steps: T.
        samples: that were measured.
    """

    layers: tuple[Layer, ...]
    attention: float
    updates: float
    rates: dict[str, float]
    weight_bytes: float
    steps: float
    samples: int

    def sops(self, mode: str = "exact") -> float:
        """Synaptic operations of all layers and of attention, `exact` or by `rate`."""
        return self.attention + sum(
            layer.sops_exact if mode == "exact" else layer.sops_rate for layer in self.layers if layer.spiking
        )

    def millijoules(self, mode: str = "exact") -> float:
        """Energy of all arithmetic, `exact` or by `rate`."""
        macs = sum(layer.macs for layer in self.layers if not layer.spiking)
        return (AC_PJ * self.sops(mode) + MAC_PJ * macs) * 1e-9

    def totals(self) -> dict[str, float]:
        """All sums: operations, and millijoules of a sample."""
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
        """Energy of an artificial network of the same layers, run at every step."""
        return MAC_PJ * sum(layer.macs for layer in self.layers) * 1e-9

    @property
    def millijoules_with_memory(self) -> float:
        """Arithmetic, and traffic of weights and membranes (float32, read and written)."""
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


class _Products(TorchFunctionMode):
    """Counts what attention's products of spikes add: the sum of a product of counts is that number."""

    def __init__(self, count: _OpCounter) -> None:
        super().__init__()
        self._count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
            self._count.attention += float(result.double().sum())
        return result


def _count_conv(count: _OpCounter, name: str, conv: Any, given: tuple[Tensor], out: Tensor) -> None:
    x, sums = count.events.pop(name, given[0]), count.layers.setdefault(name, _Sums())
    per_output = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
    sums.macs += out.numel() * per_output
    sums.values += float(x.double().sum())
    sums.inputs += x.numel()
    if name.endswith("embed.0.conv"):
        sums.spiking = False
        return
    kernel = torch.ones(1, 1, *conv.kernel_size, dtype=torch.float64, device=x.device)
    events = x.double().sum(1, keepdim=True)
    reached = functional.conv2d(events, kernel, stride=conv.stride, padding=conv.padding)
    sums.exact += float(reached.sum()) * conv.out_channels


def _count_linear(count: _OpCounter, name: str, linear: Any, given: tuple[Tensor], out: Tensor) -> None:
    sums = count.layers.setdefault(name, _Sums(spiking=False))
    sums.macs += out.numel() * linear.in_features
    sums.values += float(given[0].double().sum())
    sums.inputs += given[0].numel()


def _count_both_streams(model: SNNergy, count: _OpCounter) -> list[Any]:
    """With `sew` a fused stream x + α·Z is two of spikes, fed to W and to α·W: a spike is one event.

    These are the next stage's first convolutions, and the fusion's MLP where there is one.
    """
    hooks = []
    for stage, exchange in model.fusions.items():
        held: dict[str, Tensor] = {}
        hooks.append(exchange.register_forward_pre_hook(partial(_keep_inputs, held)))
        for name in model.encoders:
            embedding = f"encoders.{name}.{stage}.embedding"
            fed = [f"{embedding}.main.0.conv", f"{embedding}.shortcut.conv"]
            alpha = getattr(exchange, f"to_{name}").alpha
            message = fed
            if exchange.mlp:
                message = [f"fusions.{stage}.mlp.{name}.layers.0.conv"]
                own = partial(_add_events, count, held, name, None, fed)
                last = model.get_submodule(f"fusions.{stage}.mlp.{name}.exit")
                hooks.append(last.register_forward_hook(own))
            sent = partial(_add_events, count, held, name, alpha, message)
            hooks.append(getattr(exchange, f"{name}_exit").register_forward_hook(sent))
    return hooks


def _keep_inputs(held: dict[str, Tensor], exchange: nn.Module, given: tuple[Any, ...]) -> None:
    held.update(given[0])


def _add_events(
    count: _OpCounter, held: dict[str, Tensor], name: str, alpha: Tensor | None, fed: list[str],
    part: nn.Module, given: Any, spikes: Tensor,
) -> None:  # fmt: skip
    held[name] = held[name] + (spikes if alpha is None else spikes * (alpha != 0))
    count.events.update(dict.fromkeys(fed, merge_time_batch(held[name])))


@contextmanager
def _count_ops(model: SNNergy, count: _OpCounter) -> Iterator[None]:
    def fired(name: str, neuron: SpikingNeuron, spikes: Tensor) -> None:
        seen = count.spikes.setdefault(name, [0.0, 0.0])
        seen[0] += float(spikes.double().sum())
        seen[1] += spikes.numel()
        count.updates += spikes.numel()

    def summed(part: nn.Module, given: tuple[Any, ...]) -> None:
        count.attention += float(given[0].double().sum())

    weighted = model.config.residual == "sew" and model.config.fusion_output == "stream"
    hooks = _count_both_streams(model, count) if weighted else []
    within = {id(part.neuron) for part in model.modules() if isinstance(part, TokenSumMask)}
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d):
            hooks.append(part.register_forward_hook(partial(_count_conv, count, name)))
        elif isinstance(part, nn.Linear):
            hooks.append(part.register_forward_hook(partial(_count_linear, count, name)))
        elif isinstance(part, TokenSumMask) or (
            isinstance(part, SpikingNeuron) and part.mask and id(part) not in within
        ):
            hooks.append(part.register_forward_pre_hook(summed))
    try:
        with ExitStack() as stack:
            stack.enter_context(record_spikes(model, fired))
            stack.enter_context(_Products(count))
            yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def measure_energy(model: SNNergy, batches: Iterable[tuple[Tensor, Tensor]]) -> Energy:
    """Cost of an inference, the mean over samples of a set.

    Firing rates are those of a trained network on data that it has not seen, or they mean nothing.

    Args:
        model: the network, in evaluation mode.
        batches: (audio, video) as `SNNergy.forward` takes them; static inputs are convolved once.

    Raises:
        UsageError: the network is in training mode, or there are no samples.
    """
    if model.training:
        msg = "the energy of a network in training mode is not that of an inference"
        raise UsageError(msg, hint="call model.eval() first")
    count, samples, steps = _OpCounter(), 0, 0
    with _count_ops(model, count):
        for audio, video in batches:
            size = audio.shape[1] if audio.ndim == 5 else audio.shape[0]
            timed = [len(part) for part in (audio, video) if part.ndim == 5]
            steps += size * (timed[0] if timed else model.config.steps)
            model(audio, video)
            samples += size
    if not samples:
        msg = "there are no samples to measure energy on"
        raise UsageError(msg, hint="give a split that is not empty")
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
    """Draw each layer's energy beside that of the same layer in an artificial network, on a log scale."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8, 1.5 + 0.16 * len(energy.layers)), layout="constrained")
    axis = figure.subplots()
    places = range(len(energy.layers))
    reference = [MAC_PJ * layer.macs * 1e-9 for layer in energy.layers]
    axis.barh(places, reference, color="0.85", label="artificial network")
    axis.barh(places, [layer.millijoules for layer in energy.layers], height=0.5, label="spiking")
    axis.set_yticks(places, [layer.name for layer in energy.layers], fontsize=5)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("mJ a sample, arithmetic at 45 nm")
    axis.legend()
    figure.savefig(path, dpi=130)
