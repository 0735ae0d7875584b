"""LIF kernels for CUDA, in Triton: one lane per neuron, state in registers, one pass over memory.

The backward pass recomputes the membranes. Registers cannot hold T membranes per neuron, so it stores them in
the output tensor and reads each one back just before the gradient overwrites it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024

# A fused multiply-add rounds once, the Python loop twice; the last bit can decide about a spike.
EXACT = {"enable_fp_fusion": False}


@triton.jit  # type: ignore[untyped-decorator]
def _integrate(membrane, x, factor, leaky: tl.constexpr):  # type: ignore[no-untyped-def]
    if leaky:  # noqa: SIM108
        h = membrane + (x - membrane) * factor
    else:
        h = membrane + x
    return h


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    current, spikes, decay, threshold, elements, steps, leaky: tl.constexpr, block: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < elements
    factor = tl.load(decay)
    membrane = tl.zeros((block,), tl.float32)
    place = at  # incremented in 64 bits: the product of step and neurons would overflow 32 bits
    for _ in range(steps):
        x = tl.load(current + place, mask=inside, other=0.0)
        h = _integrate(membrane, x, factor, leaky)
        tl.store(spikes + place, (h >= threshold).to(tl.float32), mask=inside)
        membrane = tl.where(h >= threshold, 0.0, h)
        place += elements


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad, current, out, decay, shares, threshold, steepness, elements, steps,
    leaky: tl.constexpr, arctan: tl.constexpr, learn: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < elements
    factor = tl.load(decay)
    membrane = tl.zeros((block,), tl.float32)
    place = at
    for _ in range(steps):
        x = tl.load(current + place, mask=inside, other=0.0)
        h = _integrate(membrane, x, factor, leaky)
        tl.store(out + place, h, mask=inside)
        membrane = tl.where(h >= threshold, 0.0, h)
        place += elements
    later = tl.zeros((block,), tl.float32)
    decay_grad = tl.zeros((block,), tl.float32)
    for back in range(steps):
        place -= elements
        h = tl.load(out + place, mask=inside, other=0.0)
        grad_s = tl.load(grad + place, mask=inside, other=0.0)
        distance = (h - threshold) * steepness
        if arctan:
            scaled = distance * 1.5707963267948966
            slope = 0.5 * steepness / (1.0 + scaled * scaled)
        else:
            small = tl.exp(-tl.abs(distance))
            slope = steepness * small / ((1.0 + small) * (1.0 + small))
        grad_h = grad_s * slope + tl.where(h >= threshold, 0.0, later)
        if learn:
            last = tl.load(out + place - elements, mask=inside & (back < steps - 1), other=0.0)
            before = tl.where(last >= threshold, 0.0, last)
            x = tl.load(current + place, mask=inside, other=0.0)
            decay_grad += grad_h * (x - before)
        if leaky:
            tl.store(out + place, grad_h * factor, mask=inside)
            later = grad_h * (1.0 - factor)
        else:
            tl.store(out + place, grad_h, mask=inside)
            later = grad_h
    if learn:
        tl.store(shares + tl.program_id(0), tl.sum(tl.where(inside, decay_grad, 0.0), axis=0))


def _on_device(decay: float | Tensor, like: Tensor) -> Tensor:
    # A learned decay stays on the device: reading it would synchronize with all previous kernels.
    return torch.full((), decay, device=like.device) if isinstance(decay, float) else decay.float()


def _grid(current: Tensor) -> tuple[int, tuple[int]]:
    elements = current[0].numel()
    return elements, (triton.cdiv(elements, BLOCK),)


def forward(current: Tensor, threshold: float, decay: float | Tensor, *, leaky: bool) -> Tensor:
    """Return spikes of a contiguous float32 current [T, ...]."""
    spikes = torch.empty_like(current)
    elements, grid = _grid(current)
    with torch.cuda.device_of(current):
        _forward[grid](
            current, spikes, _on_device(decay, current), threshold, elements, len(current), leaky, BLOCK,
            **EXACT,
        )  # fmt: skip
    return spikes


def backward(
    grad: Tensor,
    current: Tensor,
    threshold: float,
    decay: float | Tensor,
    *,
    leaky: bool,
    steepness: float,
    arctan: bool,
    learn: bool,
) -> tuple[Tensor, Any]:
    """Return the gradients of current and decay (0 without `learn`) for contiguous float32 [T, ...]."""
    out = torch.empty_like(current)
    elements, grid = _grid(current)
    shares = current.new_zeros(grid[0])
    with torch.cuda.device_of(current):
        _backward[grid](
            grad, current, out, _on_device(decay, current), shares, threshold, steepness, elements,
            len(current), leaky, arctan, learn, BLOCK, **EXACT,
        )  # fmt: skip
    return out, shares.sum()
