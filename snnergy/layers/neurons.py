"""The spiking neuron over the time axis: stateless, with an exact backward pass, as one operator of torch.

For t = 1 … T with v₀ = 0, a leaky neuron integrates h_t = v_{t-1} + (x_t − v_{t-1}) · d, one without leak
h_t = v_{t-1} + x_t; then s_t = 1[h_t ≥ v_th] and v_t = h_t · (1 − s_t), the reset not differentiated. The
step's derivative is that of a sigmoid of slope 4, or of an arctangent of slope 2. `lif` has d = 1/τ = 1/2,
`plif` learns d = σ(w). These are the neurons of QKFormer (arXiv 2403.16552) and of SpikingJelly's LIFNode,
IFNode and ParametricLIFNode with hard and detached reset.

The operator keeps its input and nothing else: the backward computes the membranes again, which on
processors (`fire_cpu`) and on CUDA (`fire_cuda`) costs no memory traffic. Without numba or triton, and in
double precision, it is the loop written below, which is also what the kernels are tested against.
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

# A neuron that two ways of the network share has a membrane for each: its first and its second call's.
Membranes = Mapping[tuple[nn.Module, int], Tensor]

# The membranes of neurons that are run step by step, while they are: as they were, and as they become.
_stream_state: ContextVar[tuple[Membranes, dict[tuple[nn.Module, int], Tensor]] | None] = ContextVar(
    "membranes", default=None
)


@cache
def _kernels(device: str) -> ModuleType | None:
    """The compiled kernels for a kind of device, imported when they are first needed."""
    try:
        if device == "cuda":
            from snnergy.kernels import lif_triton as fire_cuda  # noqa: PLC0415

            return fire_cuda
        from snnergy.kernels import lif_cpu as fire_cpu  # noqa: PLC0415
    except ImportError:
        return None
    return fire_cpu


def _laid_out(current: Tensor) -> Tensor:
    """Memory for a result: laid out as the current is (channels_last, say) where steps lie one by one."""
    like = torch.empty_like(current)
    apart = like.stride(0) * len(like) == like.numel()
    return like if apart else torch.empty_like(current, memory_format=torch.contiguous_format)


def _wide(x: Tensor, like: Tensor | None = None) -> Tensor:
    """As float32 at least, laid out as `_laid_out` says of it, or of `like`."""
    wide = x if x.dtype == torch.float64 else x.float()
    made = _laid_out(wide if like is None else like)
    return wide if wide.stride() == made.stride() else made.copy_(wide)


def _integrate(before: Tensor, given: Tensor, decay: float | Tensor, leaky: bool) -> Tensor:
    return before + (given - before) * decay if leaky else before + given


@torch.library.custom_op("snnergy::fire", mutates_args=())
def _fire(current: Tensor, rate: Tensor | None, decay: float, threshold: float, surrogate: str) -> Tensor:
    """Spikes of a current [T, …], of its type; `decay` 0 is a neuron without leak, `rate` a learned decay."""
    wide, leaky = _wide(current), decay > 0
    kernels = _kernels(current.device.type) if wide.dtype == torch.float32 else None
    if kernels is not None and current.device.type in ("cpu", "cuda"):
        given = rate if current.is_cuda else None if rate is None else float(rate)
        return kernels.forward(wide, threshold, decay if given is None else given, leaky=leaky).to(
            current.dtype
        )
    spikes = torch.empty_like(wide)
    kept = torch.zeros_like(wide[0])
    for t in range(len(wide)):
        h = _integrate(kept, wide[t], decay if rate is None else rate, leaky)
        torch.ge(h, threshold, out=spikes[t])
        kept = h.masked_fill(h >= threshold, 0.0)
    return spikes.to(current.dtype)


@_fire.register_fake
def _(current: Tensor, rate: Tensor | None, decay: float, threshold: float, surrogate: str) -> Tensor:
    return _laid_out(current)


@torch.library.custom_op("snnergy::fire_backward", mutates_args=())
def _fire_backward(
    grad: Tensor, current: Tensor, rate: Tensor | None, decay: float, threshold: float, surrogate: str
) -> tuple[Tensor, Tensor]:
    """Gradients of the current and of the learned decay (zero without one)."""
    wide, leaky = _wide(current), decay > 0
    kernels = _kernels(current.device.type) if wide.dtype == torch.float32 else None
    if kernels is not None and current.device.type in ("cpu", "cuda"):
        given = rate if current.is_cuda else None if rate is None else float(rate)
        out, share = kernels.backward(
            _wide(grad, wide), wide, threshold, decay if given is None else given, leaky=leaky,
            steepness=STEEPNESS[surrogate], arctan=surrogate == "atan", learn=rate is not None,
        )  # fmt: skip
        total = torch.as_tensor(share, dtype=wide.dtype, device=wide.device)
    else:
        out, total = _backward_loop(_wide(grad, wide), wide, rate, decay, threshold, surrogate)
    return out.to(current.dtype), total.to(current.dtype if rate is None else rate.dtype)


def _backward_loop(
    grad: Tensor, current: Tensor, rate: Tensor | None, decay: float, threshold: float, surrogate: str
) -> tuple[Tensor, Tensor]:
    leaky, held = decay > 0, decay if rate is None else rate
    before, membranes = [torch.zeros_like(current[0])], []
    for given in current:
        membranes.append(_integrate(before[-1], given, held, leaky))
        before.append(membranes[-1].masked_fill(membranes[-1] >= threshold, 0.0))
    out, total = torch.empty_like(current), current.new_zeros(())
    later = torch.zeros_like(current[0])
    for t in reversed(range(len(current))):
        reached = _slope(membranes[t] - threshold, surrogate) * grad[t]
        reached += later.masked_fill_(membranes[t] >= threshold, 0.0)
        out[t] = reached * held if leaky else reached
        later = reached * (1 - held) if leaky else reached
        if rate is not None:
            total = total + (reached * (current[t] - before[t])).sum()
    return out, total


def _slope(distance: Tensor, surrogate: str) -> Tensor:
    """The surrogate derivative of the step at a distance from the threshold."""
    steepness = STEEPNESS[surrogate]
    if surrogate == "atan":
        return steepness / 2 / (1 + (math.pi / 2 * steepness * distance).square())
    height = torch.sigmoid(distance * steepness)
    return height * (1 - height) * steepness


@_fire_backward.register_fake
def _(
    grad: Tensor, current: Tensor, rate: Tensor | None, decay: float, threshold: float, surrogate: str
) -> tuple[Tensor, Tensor]:
    out = _laid_out(current)
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
    """Within it neurons take up the membranes given; it yields what becomes of them.

    This is how a stream is evaluated step by step; it has no backward.
    """
    after: dict[tuple[nn.Module, int], Tensor] = {}
    token = _stream_state.set((membranes, after))
    try:
        yield after
    finally:
        _stream_state.reset(token)


class SpikingNeuron(nn.Module):
    """Turns currents into spikes over the first axis; keeps nothing from one call to the next.

    >>> SpikingNeuron()(torch.full((8, 1), 1.9)).flatten().tolist()
    [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]

    Args:
        threshold: membrane at which it fires: 1.0, and 0.5 in attention, where it makes an OR of spikes.
        kind: `lif` with τ = 2, `if` without leak, `plif` with a learned leak that begins at τ = 2.
        surrogate: whose derivative stands for the step's: `sigmoid` (slope 4) or `atan` (slope 2).
        mask: its spikes let others pass or not, and are no message themselves.
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
        """Spikes 0 or 1 of currents [T, …], of their type; the membrane is float32 at least.

        A threshold compared in bfloat16 would flip spikes.
        """
        # A compiled graph has no streams; its tracer cannot look into a context variable.
        held = None if torch.compiler.is_compiling() else _stream_state.get()
        decay = 0.0 if self.kind == "if" else 1 / TAU
        rate = None if self.leak is None else torch.sigmoid(self.leak)
        if held is not None:
            return self._advance(current, decay if rate is None else rate, *held)
        if torch.compiler.is_exporting():
            # Other runtimes do not know the operator.
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
        own = self, sum(neuron is self for neuron, _ in after)
        membrane = before.get(own, torch.zeros_like(wide[0]))
        spikes = []
        for given in wide:
            h = _integrate(membrane, given, decay, self.kind != "if")
            spikes.append(h >= self.threshold)
            membrane = h.masked_fill(h >= self.threshold, 0.0)
        after[own] = membrane
        return torch.stack(spikes).to(current.dtype)

    def extra_repr(self) -> str:
        """Kind and threshold."""
        return f"{self.kind}, threshold={self.threshold}"


@dataclass(frozen=True)
class NeuronSpec:
    """What kind of neuron a network's parts make."""

    kind: NeuronKind = "lif"
    surrogate: Surrogate = "sigmoid"

    def neuron(self) -> SpikingNeuron:
        """A neuron of this kind, with threshold 1."""
        return SpikingNeuron(1.0, self.kind, self.surrogate)

    def mask_neuron(self) -> SpikingNeuron:
        """An attention mask's: leaky with threshold 0.5, an OR of the spikes it sums."""
        return SpikingNeuron(ATTENTION_THRESHOLD, "lif", self.surrogate, mask=True)

    def attention_neuron(self) -> SpikingNeuron:
        """Leaky with threshold 0.5 as a mask's, but what it fires is passed on."""
        return SpikingNeuron(ATTENTION_THRESHOLD, "lif", self.surrogate)


DEFAULT_NEURON = NeuronSpec()
