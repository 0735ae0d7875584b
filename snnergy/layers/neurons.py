"""Spiking neurons over the time axis: stateless, with an exact backward pass, as one torch operator.

For t = 1 … T with v₀ = 0, a leaky neuron integrates h_t = v_{t-1} + (x_t − v_{t-1}) · d, one without leak
h_t = v_{t-1} + x_t. Then s_t = 1[h_t ≥ v_th] and v_t = h_t · (1 − s_t); the reset is not differentiated. The
surrogate derivative of the step is that of a sigmoid of slope 4, or of an arctangent of slope 2. `lif` has
d = 1/τ = 1/2, `plif` learns d = σ(w). These are the neurons of QKFormer (arXiv 2403.16552), and
SpikingJelly's LIFNode, IFNode and ParametricLIFNode with hard and detached reset.

The operator saves only its input. The backward pass recomputes the membranes; the kernels for CPU (`lif_cpu`)
and CUDA (`lif_triton`) do so without extra memory traffic. Without numba or triton, and in float64, the
Python loop below is used. The kernels are tested against it.
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

from snnergy.layers.types import NeuronKind, Surrogate

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
def _fire(current: Tensor, rate: Tensor | None, decay: float, threshold: float, surrogate: str) -> Tensor:
    """Return spikes of a current [T, ...]; `decay` 0 means no leak, `rate` is a learned decay."""
    wide, leaky = _wide(current), decay > 0
    kernels = _kernels(current.device.type) if wide.dtype == torch.float32 else None
    if kernels is not None and current.device.type in ("cpu", "cuda"):
        learned = rate if current.is_cuda or rate is None else float(rate)
        spikes = kernels.forward(wide, threshold, decay if learned is None else learned, leaky=leaky)
        return spikes.to(current.dtype)
    spikes = torch.empty_like(wide)
    membrane = torch.zeros_like(wide[0])
    for t in range(len(wide)):
        h = _integrate(membrane, wide[t], decay if rate is None else rate, leaky)
        torch.ge(h, threshold, out=spikes[t])
        membrane = h.masked_fill(h >= threshold, 0.0)
    return spikes.to(current.dtype)


@_fire.register_fake
def _(current: Tensor, rate: Tensor | None, decay: float, threshold: float, surrogate: str) -> Tensor:
    return _empty_like(current)


@torch.library.custom_op("snnergy::fire_backward", mutates_args=())
def _fire_backward(
    grad: Tensor, current: Tensor, rate: Tensor | None, decay: float, threshold: float, surrogate: str
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the current and of the learned decay (0 without one)."""
    wide, leaky = _wide(current), decay > 0
    kernels = _kernels(current.device.type) if wide.dtype == torch.float32 else None
    if kernels is not None and current.device.type in ("cpu", "cuda"):
        learned = rate if current.is_cuda or rate is None else float(rate)
        out, share = kernels.backward(
            _wide(grad, wide), wide, threshold, decay if learned is None else learned, leaky=leaky,
            steepness=STEEPNESS[surrogate], arctan=surrogate == "atan", learn=rate is not None,
        )  # fmt: skip
        total = torch.as_tensor(share, dtype=wide.dtype, device=wide.device)
    else:
        out, total = _backward_loop(_wide(grad, wide), wide, rate, decay, threshold, surrogate)
    return out.to(current.dtype), total.to(current.dtype if rate is None else rate.dtype)


def _backward_loop(
    grad: Tensor, current: Tensor, rate: Tensor | None, decay: float, threshold: float, surrogate: str
) -> tuple[Tensor, Tensor]:
    leaky, factor = decay > 0, decay if rate is None else rate
    before, membranes = [torch.zeros_like(current[0])], []
    for step in current:
        membranes.append(_integrate(before[-1], step, factor, leaky))
        before.append(membranes[-1].masked_fill(membranes[-1] >= threshold, 0.0))
    out, total = torch.empty_like(current), current.new_zeros(())
    later = torch.zeros_like(current[0])
    for t in reversed(range(len(current))):
        grad_h = _slope(membranes[t] - threshold, surrogate) * grad[t]
        grad_h += later.masked_fill_(membranes[t] >= threshold, 0.0)
        out[t] = grad_h * factor if leaky else grad_h
        later = grad_h * (1 - factor) if leaky else grad_h
        if rate is not None:
            total = total + (grad_h * (current[t] - before[t])).sum()
    return out, total


def _slope(distance: Tensor, surrogate: str) -> Tensor:
    """Return the surrogate derivative of the step at a distance from the threshold."""
    steepness = STEEPNESS[surrogate]
    if surrogate == "atan":
        return steepness / 2 / (1 + (math.pi / 2 * steepness * distance).square())
    height = torch.sigmoid(distance * steepness)
    return height * (1 - height) * steepness


@_fire_backward.register_fake
def _(
    grad: Tensor, current: Tensor, rate: Tensor | None, decay: float, threshold: float, surrogate: str
) -> tuple[Tensor, Tensor]:
    out = _empty_like(current)
    return out, current.new_empty(()) if rate is None else rate.new_empty(())


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    current, rate, *ctx.options = inputs
    ctx.save_for_backward(current, rate)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    current, rate = ctx.saved_tensors
    out, of_rate = torch.ops.snnergy.fire_backward(grad, current, rate, *ctx.options)
    return out, None if rate is None else of_rate, None, None, None


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
        kind: `lif` with τ = 2, `if` without leak, `plif` with a learned leak, initially τ = 2.
        surrogate: derivative used for the step: `sigmoid` (slope 4) or `atan` (slope 2).
        mask: marks neurons whose spikes are an attention mask.
    """

    def __init__(
        self,
        threshold: float = 1.0,
        kind: NeuronKind = "lif",
        surrogate: Surrogate = "sigmoid",
        *,
        mask: bool = False,
    ) -> None:
        super().__init__()
        self.threshold, self.kind, self.surrogate, self.mask = threshold, kind, surrogate, mask
        self.leak = nn.Parameter(torch.tensor(-math.log(TAU - 1))) if kind == "plif" else None

    def forward(self, current: Tensor) -> Tensor:
        """Return spikes (0 or 1) of currents [T, ...], in their dtype.

        The membrane is at least float32: comparing the threshold in bfloat16 would flip spikes.
        """
        # torch.compile cannot trace a context variable; compiled graphs run all steps at once.
        state = None if torch.compiler.is_compiling() else _stream_state.get()
        decay = 0.0 if self.kind == "if" else 1 / TAU
        rate = None if self.leak is None else torch.sigmoid(self.leak)
        if state is not None:
            return self._advance(current, decay if rate is None else rate, *state)
        if torch.compiler.is_exporting():
            # Other runtimes do not have the operator `snnergy::fire`.
            return self._advance(current, decay if rate is None else rate, {}, {})
        return _fire(current, rate, decay, self.threshold, self.surrogate)

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
            spikes.append(h >= self.threshold)
            membrane = h.masked_fill(h >= self.threshold, 0.0)
        after[key] = membrane
        return torch.stack(spikes).to(current.dtype)

    def extra_repr(self) -> str:
        """Return kind and threshold for `repr`."""
        return f"{self.kind}, threshold={self.threshold}"


@dataclass(frozen=True)
class NeuronSpec:
    """Kind of neuron that the layers of a network create."""

    kind: NeuronKind = "lif"
    surrogate: Surrogate = "sigmoid"

    def neuron(self) -> SpikingNeuron:
        """Return a neuron of this kind with threshold 1."""
        return SpikingNeuron(1.0, self.kind, self.surrogate)

    def mask_neuron(self) -> SpikingNeuron:
        """Return a leaky neuron with threshold 0.5 for an attention mask: an OR of summed spikes."""
        return SpikingNeuron(ATTENTION_THRESHOLD, "lif", self.surrogate, mask=True)

    def attention_neuron(self) -> SpikingNeuron:
        """Return a leaky neuron with threshold 0.5 whose spikes are features, not a mask."""
        return SpikingNeuron(ATTENTION_THRESHOLD, "lif", self.surrogate)


DEFAULT_NEURON = NeuronSpec()
