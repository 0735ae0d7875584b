"""The neuron's compiled kernels for processors: one pass over memory, blocks of neurons that stay in cache.

The forward reads the current and writes spikes. The backward reads the current and the gradient, computes
the membrane again block by block, and writes the current's gradient: nothing but the current is kept.
numba compiles at the first call (some seconds, once; it keeps the result on disk where it may write) and is
imported then.
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

# Below this many elements a second thread costs more than it brings.
MIN_SHARE = 1 << 16

_ONE, _ZERO, _HALF, _MINUS_LIMIT = (np.float32(value) for value in (1.0, 0.0, 0.5, -80.0))

_LOG2E, _LN2_HIGH, _LN2_LOW = (np.float32(value) for value in (1.44269504, 0.693359375, -2.12194440e-4))

# Added to a small float, this leaves its nearest integer in the lowest bits.
_MAGIC = np.float32(12582912.0)

_C5, _C4, _C3, _C2, _C1 = (
    np.float32(value) for value in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665795e-2, 1.6666665e-1)
)


def _can_cache() -> bool:
    """Whether there is a place for what is compiled: the package's folder, or one of the user's."""
    try:
        numba.njit(cache=True)(_can_cache)
    except RuntimeError:
        return False
    return True


CACHE_COMPILED = _can_cache()


@intrinsic
def _times_power_of_two(typing: Any, value: Any, shifted: Any) -> Any:
    """`value` × 2ⁿ, n the integer in the lowest bits of `shifted`: an addition to the exponent."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(32)
        bits, power = (builder.bitcast(argument, integer) for argument in arguments)
        moved = builder.add(bits, builder.shl(power, ir.Constant(integer, 23)))
        return builder.bitcast(moved, ir.FloatType())

    return types.float32(types.float32, types.float32), build


@numba.njit(inline="always")
def _exponential(x: Any) -> Any:
    """e^x of −80 ≤ x ≤ 0, right to float32's last bit or so (Cephes' polynomial), in vector instructions."""
    shifted = x * _LOG2E + _MAGIC
    whole = shifted - _MAGIC
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    poly = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _HALF
    return _times_power_of_two(poly * r * r + r + _ONE, shifted)  # type: ignore[call-arg]


@numba.njit(inline="always")
def _slope(distance: Any, steepness: Any, arctan: Any) -> Any:
    """The surrogate derivative of the step at `distance` from the threshold."""
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
    kept = np.empty(BLOCK, np.float32)
    for low in range(start, stop, BLOCK):
        width = min(BLOCK, stop - low)
        kept[:] = _ZERO
        for t in range(current.shape[0]):
            given, fired = current[t, low : low + width], spikes[t, low : low + width]
            for i in range(width):
                h = _integrate(kept[i], given[i], decay, leaky)
                over = h >= threshold
                fired[i] = _ONE if over else _ZERO
                kept[i] = _ZERO if over else h


@numba.njit(nogil=True, cache=CACHE_COMPILED, error_model="numpy")
def _backward(
    grad: Any, current: Any, out: Any, threshold: Any, decay: Any, leaky: Any, steepness: Any, arctan: Any,
    learn: Any, start: int, stop: int,
) -> float:  # fmt: skip
    steps = current.shape[0]
    membrane = np.empty((steps, BLOCK), np.float32)
    kept, later = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    of_decay = 0.0
    pass_on = _ONE - decay if leaky else _ONE
    into = decay if leaky else _ONE
    for low in range(start, stop, BLOCK):
        width = min(BLOCK, stop - low)
        kept[:] = _ZERO
        later[:] = _ZERO
        for t in range(steps):
            given, before = current[t, low : low + width], membrane[t]
            for i in range(width):
                h = _integrate(kept[i], given[i], decay, leaky)
                before[i] = h
                kept[i] = _ZERO if h >= threshold else h
        for back in range(steps):
            t = steps - 1 - back
            above, made, before = grad[t, low : low + width], out[t, low : low + width], membrane[t]
            for i in range(width):
                h = before[i]
                total = above[i] * _slope(h - threshold, steepness, arctan)
                total += _ZERO if h >= threshold else later[i]
                made[i] = total * into
                later[i] = total * pass_on
            if learn:
                of_decay += _decay_share(current, made, membrane, t, low, width, threshold, decay)
    return of_decay


@numba.njit(inline="never", nogil=True, cache=CACHE_COMPILED)
def _decay_share(
    current: Any, made: Any, membrane: Any, t: int, low: int, width: int, threshold: Any, decay: Any
) -> float:
    """Σ ∂L/∂h · (x − v) of a block at one step."""
    summed = 0.0
    for i in range(width):
        last = membrane[t - 1, i] if t else _ZERO
        v = _ZERO if last >= threshold else last
        summed += made[i] / decay * (current[t, low + i] - v)
    return summed


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="snnergy-fire")


def _parallel_for(work: Callable[[int, int], Any], count: int, cost: int, block: int = 1) -> list[Any]:
    """Call `work(start, stop)` on ranges that make up `count`, in as many threads as torch may use.

    Args:
        work: may run beside itself, without the interpreter's lock.
        count: of things to do.
        cost: elements that one of them reads.
        block: ranges begin at multiples of it.
    """
    threads = max(1, min(torch.get_num_threads(), count * cost // MIN_SHARE))
    if threads == 1:
        return [work(0, count)]
    width = -(-count // (threads * block)) * block
    ranges = [(low, min(low + width, count)) for low in range(0, count, width)]
    *others, last = ranges
    waiting = [_pool(torch.get_num_threads()).submit(work, *one) for one in others]
    return [work(*last), *(one.result() for one in waiting)]


def _empty_output(shape: Sequence[int]) -> Tensor:
    """Memory for a result; numpy asks for huge pages, without which page faults cost more than the kernel."""
    return torch.from_numpy(np.empty(shape, np.float32))


def _rows(part: Tensor) -> Any:
    """Each step's elements as they lie in memory: one step lies behind the other."""
    steps, each = part.shape[0], part[0].numel()
    return part.detach().as_strided((steps, each), (each, 1)).numpy()


def forward(current: Tensor, threshold: float, decay: float, *, leaky: bool) -> Tensor:
    """Spikes of a dense float32 current [T, …], laid out as it is."""
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
    """The current's gradient and, with `learn`, the decay's, of dense float32 [T, …] of one layout."""
    out = _empty_output((current.numel(),)).as_strided(current.shape, current.stride())
    g, x, o = _rows(grad), _rows(current), _rows(out)
    options = np.float32(threshold), np.float32(decay), leaky, np.float32(steepness), arctan, learn
    work = partial(_backward, g, x, o, *options)
    shares = _parallel_for(work, x.shape[1], x.shape[0], BLOCK)
    return out, float(sum(shares))
