"""Spiking neurons over the time axis: stateless, with an exact backward pass, as one torch operator.

For t = 1 … T with v₀ = 0, a leaky neuron integrates h_t = v_{t-1} + (x_t − v_{t-1}) · d, one without leak
h_t = v_{t-1} + x_t. Then s_t = 1[h_t ≥ v_th] and v_t = h_t · (1 − s_t), or with a soft reset
v_t = h_t − v_th · s_t; the reset is not differentiated. The surrogate derivative of the step is that of a
sigmoid of slope 4, or of an arctangent of slope 2, by default. `lif` has d = 1/τ, by default 1/2, `plif`
learns d = σ(w). These are the neurons of QKFormer (arXiv 2403.16552), and
SpikingJelly's LIFNode, IFNode and ParametricLIFNode with detached reset.

The operator saves only its input. The backward pass recomputes the membranes; the kernels for CPU (`lif_cpu`)
and CUDA (`lif_triton`) do so without extra memory traffic. Without numba or triton, in float64, and
with a soft reset, the Python loop below is used. The kernels are tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from snnergy.layers.types import NeuronKind, Reset, Surrogate

TAU = 2.0

ATTENTION_THRESHOLD = 0.5

STEEPNESS = {"sigmoid": 4.0, "atan": 2.0}

# The number counts the calls of a neuron within one step: a shared neuron has one membrane per call.
Membranes = Mapping[tuple[nn.Module, int], Tensor]

# Membranes before and after the current step, while `stateful` is active.
_stream_state: ContextVar[tuple[Membranes, dict[tuple[nn.Module, int], Tensor]] | None] = ContextVar(
    "membranes", default=None
)


@cache
def _kernels(device: str) -> ModuleType | None:
    """Import and return the compiled kernels for a device type, or None if they are not available."""
    try:
        if device == "cuda":
            from snnergy.kernels import lif_triton  # noqa: PLC0415

            return lif_triton
        from snnergy.kernels import lif_cpu  # noqa: PLC0415
    except ImportError:
        return None
    return lif_cpu


def _empty_like(current: Tensor) -> Tensor:
    """Return uninitialized memory in the layout of `current` if its steps are contiguous blocks."""
    like = torch.empty_like(current)
    is_stepwise = like.stride(0) * len(like) == like.numel()
    return like if is_stepwise else torch.empty_like(current, memory_format=torch.contiguous_format)


def _wide(x: Tensor, like: Tensor | None = None) -> Tensor:
    """Return `x` as float32 or float64, in the layout of `_empty_like`."""
    wide = x if x.dtype == torch.float64 else x.float()
    target = _empty_like(wide if like is None else like)
    return wide if wide.stride() == target.stride() else target.copy_(wide)


def _integrate(before: Tensor, current: Tensor, decay: float | Tensor, leaky: bool) -> Tensor:
    return before + (current - before) * decay if leaky else before + current


@torch.library.custom_op("snnergy::fire", mutates_args=())
def _fire(
    current: Tensor,
    rate: Tensor | None,
    decay: float,
    threshold: float,
    surrogate: str,
    slope: float,
    soft: bool,
) -> Tensor:
    """Return spikes of a current [T, ...]; `decay` 0 means no leak, `rate` is a learned decay."""
    wide, leaky = _wide(current), decay > 0
    kernels = _kernels(current.device.type) if wide.dtype == torch.float32 and not soft else None
    if kernels is not None and current.device.type in ("cpu", "cuda"):
        learned = rate if current.is_cuda or rate is None else float(rate)
        spikes = kernels.forward(wide, threshold, decay if learned is None else learned, leaky=leaky)
        return spikes.to(current.dtype)
    spikes = torch.empty_like(wide)
    membrane = torch.zeros_like(wide[0])
    for t in range(len(wide)):
        h = _integrate(membrane, wide[t], decay if rate is None else rate, leaky)
        torch.ge(h, threshold, out=spikes[t])
        membrane = _reset(h, spikes[t], threshold, soft)
    return spikes.to(current.dtype)


def _reset(h: Tensor, spikes: Tensor, threshold: float, soft: bool) -> Tensor:
    """Return the membrane after spikes: 0, or with a soft reset reduced by the threshold."""
    return h - threshold * spikes if soft else h.masked_fill(spikes > 0, 0.0)


@_fire.register_fake
def _(
    current: Tensor,
    rate: Tensor | None,
    decay: float,
    threshold: float,
    surrogate: str,
    slope: float,
    soft: bool,
) -> Tensor:
    return _empty_like(current)


@torch.library.custom_op("snnergy::fire_backward", mutates_args=())
def _fire_backward(
    grad: Tensor,
    current: Tensor,
    rate: Tensor | None,
    decay: float,
    threshold: float,
    surrogate: str,
    slope: float,
    soft: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the current and of the learned decay (0 without one)."""
    wide, leaky = _wide(current), decay > 0
    kernels = _kernels(current.device.type) if wide.dtype == torch.float32 and not soft else None
    if kernels is not None and current.device.type in ("cpu", "cuda"):
        learned = rate if current.is_cuda or rate is None else float(rate)
        out, share = kernels.backward(
            _wide(grad, wide), wide, threshold, decay if learned is None else learned, leaky=leaky,
            steepness=slope, arctan=surrogate == "atan", learn=rate is not None,
        )  # fmt: skip
        total = torch.as_tensor(share, dtype=wide.dtype, device=wide.device)
    else:
        out, total = _backward_loop(_wide(grad, wide), wide, rate, decay, threshold, surrogate, slope, soft)
    return out.to(current.dtype), total.to(current.dtype if rate is None else rate.dtype)


def _backward_loop(
    grad: Tensor,
    current: Tensor,
    rate: Tensor | None,
    decay: float,
    threshold: float,
    surrogate: str,
    slope: float,
    soft: bool,
) -> tuple[Tensor, Tensor]:
    leaky, factor = decay > 0, decay if rate is None else rate
    before, membranes = [torch.zeros_like(current[0])], []
    for step in current:
        membranes.append(_integrate(before[-1], step, factor, leaky))
        spikes = (membranes[-1] >= threshold).to(current.dtype)
        before.append(_reset(membranes[-1], spikes, threshold, soft))
    out, total = torch.empty_like(current), current.new_zeros(())
    later = torch.zeros_like(current[0])
    for t in reversed(range(len(current))):
        grad_h = _derivative(membranes[t] - threshold, surrogate, slope) * grad[t]
        # The reset is not differentiated: after a soft one the membrane depends on the one before it.
        grad_h += later if soft else later.masked_fill_(membranes[t] >= threshold, 0.0)
        out[t] = grad_h * factor if leaky else grad_h
        later = grad_h * (1 - factor) if leaky else grad_h
        if rate is not None:
            total = total + (grad_h * (current[t] - before[t])).sum()
    return out, total


def _derivative(distance: Tensor, surrogate: str, slope: float) -> Tensor:
    """Return the surrogate derivative of the step at a distance from the threshold."""
    if surrogate == "atan":
        return slope / 2 / (1 + (math.pi / 2 * slope * distance).square())
    height = torch.sigmoid(distance * slope)
    return height * (1 - height) * slope


@_fire_backward.register_fake
def _(
    grad: Tensor,
    current: Tensor,
    rate: Tensor | None,
    decay: float,
    threshold: float,
    surrogate: str,
    slope: float,
    soft: bool,
) -> tuple[Tensor, Tensor]:
    out = _empty_like(current)
    return out, current.new_empty(()) if rate is None else rate.new_empty(())


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    current, rate, *ctx.options = inputs
    ctx.save_for_backward(current, rate)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    current, rate = ctx.saved_tensors
    out, of_rate = torch.ops.snnergy.fire_backward(grad, current, rate, *ctx.options)
    return out, None if rate is None else of_rate, None, None, None, None, None


_fire.register_autograd(_differentiate, setup_context=_keep)


@contextmanager
def stateful(membranes: Membranes) -> Iterator[Membranes]:
    """Let neurons start from `membranes`; yield the membranes after the step.

    Used to evaluate a stream step by step. It does not support the backward pass.
    """
    after: dict[tuple[nn.Module, int], Tensor] = {}
    token = _stream_state.set((membranes, after))
    try:
        yield after
    finally:
        _stream_state.reset(token)


class SpikingNeuron(nn.Module):
    """Spiking neuron over the first axis. It has no state between calls.

    >>> SpikingNeuron()(torch.full((8, 1), 1.9)).flatten().tolist()
    [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]

    Args:
        threshold: membrane potential at which it spikes: 1.0, and 0.5 in attention, where sums of spikes
            become an OR.
        kind: `lif` with time constant τ, `if` without leak, `plif` with a learned leak, initially τ.
        surrogate: derivative used for the step: `sigmoid` or `atan`.
        mask: marks neurons whose spikes are an attention mask.
        tau: time constant τ in steps.
        reset: membrane after a spike: 0 (`hard`), or reduced by the threshold (`soft`), which is slower.
        slope: slope of the surrogate; None: that of `STEEPNESS`.
    """

    def __init__(
        self,
        threshold: float = 1.0,
        kind: NeuronKind = "lif",
        surrogate: Surrogate = "sigmoid",
        *,
        mask: bool = False,
        tau: float = TAU,
        reset: Reset = "hard",
        slope: float | None = None,
    ) -> None:
        super().__init__()
        self.threshold, self.kind, self.surrogate, self.mask = threshold, kind, surrogate, mask
        self.tau, self.reset, self.slope = tau, reset, STEEPNESS[surrogate] if slope is None else slope
        self.leak = nn.Parameter(torch.tensor(-math.log(tau - 1))) if kind == "plif" else None

    def forward(self, current: Tensor) -> Tensor:
        """Return spikes (0 or 1) of currents [T, ...], in their dtype.

        The membrane is at least float32: comparing the threshold in bfloat16 would flip spikes.
        """
        # torch.compile cannot trace a context variable; compiled graphs run all steps at once.
        state = None if torch.compiler.is_compiling() else _stream_state.get()
        decay = 0.0 if self.kind == "if" else 1 / self.tau
        rate = None if self.leak is None else torch.sigmoid(self.leak)
        if state is not None:
            return self._advance(current, decay if rate is None else rate, *state)
        if torch.compiler.is_exporting():
            # Other runtimes do not have the operator `snnergy::fire`.
            return self._advance(current, decay if rate is None else rate, {}, {})
        soft = self.reset == "soft"
        return _fire(current, rate, decay, self.threshold, self.surrogate, self.slope, soft)

    def _advance(
        self,
        current: Tensor,
        decay: float | Tensor,
        before: Membranes,
        after: dict[tuple[nn.Module, int], Tensor],
    ) -> Tensor:
        wide = _wide(current)
        key = self, sum(neuron is self for neuron, _ in after)
        membrane = before.get(key, torch.zeros_like(wide[0]))
        spikes = []
        for step in wide:
            h = _integrate(membrane, step, decay, self.kind != "if")
            spikes.append((h >= self.threshold).to(h.dtype))
            membrane = _reset(h, spikes[-1], self.threshold, self.reset == "soft")
        after[key] = membrane
        return torch.stack(spikes).to(current.dtype)

    def extra_repr(self) -> str:
        """Return kind and threshold for `repr`."""
        soft = ", soft reset" if self.reset == "soft" else ""
        return f"{self.kind}, threshold={self.threshold}{soft}"


@dataclass(frozen=True)
class NeuronSpec:
    """Kind of neuron that the layers of a network create.

    Attributes:
        kind: see `SpikingNeuron`.
        surrogate: see `SpikingNeuron`.
        artificial: make activations of an artificial network instead: ReLU, and a sigmoid for masks.
        threshold: see `SpikingNeuron`; not for attention, whose OR needs a threshold of 0.5 and τ = 2.
        tau: see `SpikingNeuron`; not for attention.
        reset: see `SpikingNeuron`; not for attention.
        slope: see `SpikingNeuron`.
    """

    kind: NeuronKind = "lif"
    surrogate: Surrogate = "sigmoid"
    artificial: bool = False
    threshold: float = 1.0
    tau: float = TAU
    reset: Reset = "hard"
    slope: float | None = None

    def neuron(self) -> nn.Module:
        """Return a neuron of this kind."""
        if self.artificial:
            return nn.ReLU()
        options: dict[str, Any] = {"tau": self.tau, "reset": self.reset, "slope": self.slope}
        return SpikingNeuron(self.threshold, self.kind, self.surrogate, **options)

    def mask_neuron(self) -> nn.Module:
        """Return a leaky neuron with threshold 0.5 for an attention mask: an OR of summed spikes."""
        if self.artificial:
            return nn.Sigmoid()
        return SpikingNeuron(ATTENTION_THRESHOLD, "lif", self.surrogate, mask=True, slope=self.slope)

    def attention_neuron(self) -> nn.Module:
        """Return a leaky neuron with threshold 0.5 whose spikes are features, not a mask."""
        if self.artificial:
            return nn.ReLU()
        return SpikingNeuron(ATTENTION_THRESHOLD, "lif", self.surrogate, slope=self.slope)


DEFAULT_NEURON = NeuronSpec()
