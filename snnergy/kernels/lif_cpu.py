"""LIF kernels for CPUs, compiled by numba: one pass over memory, in blocks of neurons that fit in cache.

The forward pass reads the current and writes spikes. The backward pass reads the current and the gradient,
recomputes the membrane block by block, and writes the current's gradient. numba compiles on the first call
(some seconds) and caches the result on disk if it can write there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

BLOCK = 512

# With fewer elements per thread, a second thread costs more time than it saves.
MIN_SHARE = 1 << 16

_ONE, _ZERO, _HALF, _MINUS_LIMIT = (np.float32(value) for value in (1.0, 0.0, 0.5, -80.0))

_LOG2E, _LN2_HIGH, _LN2_LOW = (np.float32(value) for value in (1.44269504, 0.693359375, -2.12194440e-4))

# Adding this to a small float leaves its nearest integer in the lowest bits.
_MAGIC = np.float32(12582912.0)

_C5, _C4, _C3, _C2, _C1 = (
    np.float32(value) for value in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665795e-2, 1.6666665e-1)
)


def _can_cache() -> bool:
    """Return whether numba can write its cache: next to the package, or in the user's cache folder."""
    try:
        numba.njit(cache=True)(_can_cache)
    except RuntimeError:
        return False
    return True


CACHE_COMPILED = _can_cache()


@intrinsic
def _times_power_of_two(typing: Any, value: Any, shifted: Any) -> Any:
    """Return `value` × 2ⁿ, with n in the lowest bits of `shifted`, by adding to the exponent."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(32)
        bits, power = (builder.bitcast(argument, integer) for argument in arguments)
        scaled = builder.add(bits, builder.shl(power, ir.Constant(integer, 23)))
        return builder.bitcast(scaled, ir.FloatType())

    return types.float32(types.float32, types.float32), build


@numba.njit(inline="always")
def _exponential(x: Any) -> Any:
    """Return e^x for −80 ≤ x ≤ 0, to about the last bit of float32 (Cephes' polynomial), vectorizable."""
    shifted = x * _LOG2E + _MAGIC
    n = shifted - _MAGIC
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    poly = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _HALF
    return _times_power_of_two(poly * r * r + r + _ONE, shifted)  # type: ignore[call-arg]


@numba.njit(inline="always")
def _slope(distance: Any, steepness: Any, arctan: Any) -> Any:
    """Return the surrogate derivative of the step at `distance` from the threshold."""
    if arctan:
        scaled = steepness * np.float32(np.pi / 2) * distance
        return steepness * _HALF / (_ONE + scaled * scaled)
    small = _exponential(max(-abs(steepness * distance), _MINUS_LIMIT))
    return steepness * small / ((_ONE + small) * (_ONE + small))


@numba.njit(inline="always")
def _integrate(v: Any, given: Any, decay: Any, leaky: Any) -> Any:
    """Return the membrane after one step, before the reset."""
    return v + (given - v) * decay if leaky else v + given


@numba.njit(nogil=True, cache=CACHE_COMPILED, error_model="numpy")
def _forward(
    current: Any, spikes: Any, threshold: Any, decay: Any, leaky: Any, start: int, stop: int
) -> None:
    membrane = np.empty(BLOCK, np.float32)
    for low in range(start, stop, BLOCK):
        width = min(BLOCK, stop - low)
        membrane[:] = _ZERO
        for t in range(current.shape[0]):
            x, s = current[t, low : low + width], spikes[t, low : low + width]
            for i in range(width):
                h = _integrate(membrane[i], x[i], decay, leaky)
                over = h >= threshold
                s[i] = _ONE if over else _ZERO
                membrane[i] = _ZERO if over else h


@numba.njit(nogil=True, cache=CACHE_COMPILED, error_model="numpy")
def _backward(
    grad: Any, current: Any, out: Any, threshold: Any, decay: Any, leaky: Any, steepness: Any, arctan: Any,
    learn: Any, start: int, stop: int,
) -> float:  # fmt: skip
    steps = current.shape[0]
    membranes = np.empty((steps, BLOCK), np.float32)
    membrane, later = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    decay_grad = 0.0
    to_previous = _ONE - decay if leaky else _ONE
    to_current = decay if leaky else _ONE
    for low in range(start, stop, BLOCK):
        width = min(BLOCK, stop - low)
        membrane[:] = _ZERO
        later[:] = _ZERO
        for t in range(steps):
            x, before_reset = current[t, low : low + width], membranes[t]
            for i in range(width):
                h = _integrate(membrane[i], x[i], decay, leaky)
                before_reset[i] = h
                membrane[i] = _ZERO if h >= threshold else h
        for back in range(steps):
            t = steps - 1 - back
            grad_s, grad_x, before_reset = grad[t, low : low + width], out[t, low : low + width], membranes[t]
            for i in range(width):
                h = before_reset[i]
                total = grad_s[i] * _slope(h - threshold, steepness, arctan)
                total += _ZERO if h >= threshold else later[i]
                grad_x[i] = total * to_current
                later[i] = total * to_previous
            if learn:
                decay_grad += _decay_share(current, grad_x, membranes, t, low, width, threshold, decay)
    return decay_grad


@numba.njit(inline="never", nogil=True, cache=CACHE_COMPILED)
def _decay_share(
    current: Any, grad_x: Any, membranes: Any, t: int, low: int, width: int, threshold: Any, decay: Any
) -> float:
    """Return Σ ∂L/∂h · (x − v) of a block at one step."""
    summed = 0.0
    for i in range(width):
        last = membranes[t - 1, i] if t else _ZERO
        v = _ZERO if last >= threshold else last
        summed += grad_x[i] / decay * (current[t, low + i] - v)
    return summed


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="snnergy-fire")


def _parallel_for(work: Callable[[int, int], Any], count: int, cost: int, block: int = 1) -> list[Any]:
    """Call `work(start, stop)` on ranges that cover `count` items, in up to torch's number of threads.

    Args:
        work: a thread-safe function that releases the GIL.
        count: number of items.
        cost: elements that one item reads.
        block: ranges start at multiples of it.

    Returns:
        The results of all ranges.
    """
    threads = max(1, min(torch.get_num_threads(), count * cost // MIN_SHARE))
    if threads == 1:
        return [work(0, count)]
    width = -(-count // (threads * block)) * block
    ranges = [(low, min(low + width, count)) for low in range(0, count, width)]
    *others, last = ranges
    waiting = [_pool(torch.get_num_threads()).submit(work, *bounds) for bounds in others]
    return [work(*last), *(future.result() for future in waiting)]


def _empty_output(shape: Sequence[int]) -> Tensor:
    """Return uninitialized memory from numpy, which requests huge pages.

    With small pages, page faults cost more than the kernel.
    """
    return torch.from_numpy(np.empty(shape, np.float32))


def _rows(part: Tensor) -> Any:
    """Return a view [T, N] of a tensor whose steps are contiguous blocks, in memory order."""
    steps, each = part.shape[0], part[0].numel()
    return part.detach().as_strided((steps, each), (each, 1)).numpy()


def forward(current: Tensor, threshold: float, decay: float, *, leaky: bool) -> Tensor:
    """Return spikes of a dense float32 current [T, ...], in its memory layout."""
    spikes = _empty_output((current.numel(),)).as_strided(current.shape, current.stride())
    x, s = _rows(current), _rows(spikes)
    options = np.float32(threshold), np.float32(decay), leaky
    _parallel_for(lambda low, high: _forward(x, s, *options, low, high), x.shape[1], x.shape[0], BLOCK)
    return spikes


def backward(
    grad: Tensor,
    current: Tensor,
    threshold: float,
    decay: float,
    *,
    leaky: bool,
    steepness: float,
    arctan: bool,
    learn: bool,
) -> tuple[Tensor, float]:
    """Return the gradients of current and decay (0 without `learn`).

    `grad` and `current` are dense float32 [T, ...] of the same memory layout.
    """
    out = _empty_output((current.numel(),)).as_strided(current.shape, current.stride())
    g, x, o = _rows(grad), _rows(current), _rows(out)
    options = np.float32(threshold), np.float32(decay), leaky, np.float32(steepness), arctan, learn
    work = partial(_backward, g, x, o, *options)
    shares = _parallel_for(work, x.shape[1], x.shape[0], BLOCK)
    return out, float(sum(shares))
