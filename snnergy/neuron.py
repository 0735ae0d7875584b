"""The spiking neuron: leaky integrate-and-fire over the time axis, stateless, with an exact backward pass.

For t = 1 … T with v₀ = 0:  h_t = v_{t-1} + (x_t − v_{t-1}) / τ,  s_t = 1[h_t ≥ v_th],
v_t = h_t · (1 − s_t), the reset not differentiated. The derivative of the step is that of a sigmoid of slope
α = 4. This is the neuron of QKFormer (arXiv 2403.16552) and of SpikingJelly's LIFNode with hard reset and
detached reset.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TAU = 2.0
SLOPE = 4.0


class _LeakyIntegrateAndFire(torch.autograd.Function):
    """All time steps in one function: only the membrane before the threshold is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, threshold: float) -> Tensor:
        membranes = torch.empty_like(current)
        spikes = torch.empty_like(current)
        kept = torch.zeros_like(current[0])
        for t in range(len(current)):
            before = torch.add(kept, current[t] - kept, alpha=1 / TAU, out=membranes[t])
            torch.ge(before, threshold, out=spikes[t])
            kept = before.masked_fill(before >= threshold, 0.0)
        ctx.save_for_backward(membranes)
        ctx.threshold = threshold
        return spikes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (membranes,) = ctx.saved_tensors
        slope = torch.sigmoid((membranes - ctx.threshold).mul_(SLOPE))
        slope = slope.mul_(1 - slope).mul_(SLOPE).mul_(grad)
        out = torch.empty_like(membranes)
        later = torch.zeros_like(membranes[0])
        for t in reversed(range(len(membranes))):
            total = slope[t].add_(later.masked_fill_(membranes[t] >= ctx.threshold, 0.0))
            torch.mul(total, 1 / TAU, out=out[t])
            later = total * (1 - 1 / TAU)
        return out, None


class Neuron(nn.Module):
    """Turns currents into spikes over the first axis; keeps nothing from one call to the next.

    >>> Neuron()(torch.full((8, 1), 1.9)).flatten().tolist()
    [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]

    Args:
        threshold: membrane at which it fires: 1.0, and 0.5 in attention, where it makes an OR of spikes.
    """

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, current: Tensor) -> Tensor:
        """Spikes 0 or 1 of currents [T, …], of their type; the membrane is float32 at least.

        A threshold compared in bfloat16 would flip spikes.
        """
        wide = current if current.dtype == torch.float64 else current.float()
        spikes: Tensor = _LeakyIntegrateAndFire.apply(wide, self.threshold)
        return spikes.to(current.dtype)

    def extra_repr(self) -> str:
        """The threshold."""
        return f"threshold={self.threshold}"
