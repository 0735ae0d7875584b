"""The neuron's kernels for CUDA, in Triton: a lane a neuron, its steps in registers, one pass over memory.

The backward computes the membranes again. Two registers a neuron cannot hold T membranes, so it writes them
where the current's gradient will stand, and reads each back just before it writes over it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024

# A fused multiply-add rounds once where the loop rounds twice, and a spike hangs on the last bit.
EXACT = {"enable_fp_fusion": False}


@triton.jit  # type: ignore[untyped-decorator]
def _integrate(kept, given, share, leaky: tl.constexpr):  # type: ignore[no-untyped-def]
    if leaky:  # noqa: SIM108
        h = kept + (given - kept) * share
    else:
        h = kept + given
    return h


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    current, spikes, decay, threshold, elements, steps, leaky: tl.constexpr, block: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < elements
    share = tl.load(decay)
    kept = tl.zeros((block,), tl.float32)
    place = at  # counted up in 64 bits: a product of step and neurons would be one of 32
    for _ in range(steps):
        given = tl.load(current + place, mask=inside, other=0.0)
        h = _integrate(kept, given, share, leaky)
        tl.store(spikes + place, (h >= threshold).to(tl.float32), mask=inside)
        kept = tl.where(h >= threshold, 0.0, h)
        place += elements


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad, current, out, decay, shares, threshold, steepness, elements, steps,
    leaky: tl.constexpr, arctan: tl.constexpr, learn: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < elements
    share = tl.load(decay)
    kept = tl.zeros((block,), tl.float32)
    place = at
    for _ in range(steps):
        given = tl.load(current + place, mask=inside, other=0.0)
        h = _integrate(kept, given, share, leaky)
        tl.store(out + place, h, mask=inside)
        kept = tl.where(h >= threshold, 0.0, h)
        place += elements
    later = tl.zeros((block,), tl.float32)
    of_decay = tl.zeros((block,), tl.float32)
    for back in range(steps):
        place -= elements
        h = tl.load(out + place, mask=inside, other=0.0)
        above = tl.load(grad + place, mask=inside, other=0.0)
        distance = (h - threshold) * steepness
        if arctan:
            scaled = distance * 1.5707963267948966
            slope = 0.5 * steepness / (1.0 + scaled * scaled)
        else:
            small = tl.exp(-tl.abs(distance))
            slope = steepness * small / ((1.0 + small) * (1.0 + small))
        reached = above * slope + tl.where(h >= threshold, 0.0, later)
        if learn:
            last = tl.load(out + place - elements, mask=inside & (back < steps - 1), other=0.0)
            before = tl.where(last >= threshold, 0.0, last)
            given = tl.load(current + place, mask=inside, other=0.0)
            of_decay += reached * (given - before)
        if leaky:
            tl.store(out + place, reached * share, mask=inside)
            later = reached * (1.0 - share)
        else:
            tl.store(out + place, reached, mask=inside)
            later = reached
    if learn:
        tl.store(shares + tl.program_id(0), tl.sum(tl.where(inside, of_decay, 0.0), axis=0))


def _on_device(decay: float | Tensor, like: Tensor) -> Tensor:
    # A learned decay stays on the device: reading it would wait for everything before.
    return torch.full((), decay, device=like.device) if isinstance(decay, float) else decay.float()


def _grid(current: Tensor) -> tuple[int, tuple[int]]:
    elements = current[0].numel()
    return elements, (triton.cdiv(elements, BLOCK),)


def forward(current: Tensor, threshold: float, decay: float | Tensor, *, leaky: bool) -> Tensor:
    """Spikes of a contiguous float32 current [T, …]."""
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
    """The current's gradient and, with `learn`, the decay's, of contiguous float32 tensors [T, …]."""
    out = torch.empty_like(current)
    elements, grid = _grid(current)
    shares = current.new_zeros(grid[0])
    with torch.cuda.device_of(current):
        _backward[grid](
            grad, current, out, _on_device(decay, current), shares, threshold, steepness, elements,
            len(current), leaky, arctan, learn, BLOCK, **EXACT,
        )  # fmt: skip
    return out, shares.sum()
