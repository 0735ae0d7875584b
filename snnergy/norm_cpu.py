"""Batch norm of a training and the neuron that it feeds, in one pass: the normalised current is never stored.

The forward normalises what a convolution made while it integrates, y = x·a + b with a and b of a channel. The
backward does so again, and gathers while it goes back in time the two sums that batch norm's gradient needs;
a second pass over memory takes them away. Pictures lie as channels_last: a block is whole pixels, so that
each of its elements has its channel in every block.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from snnergy.fire_cpu import BLOCK, KEPT, _slope, fresh, spread

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


# A compiler proves of a few arrays that they do not overlap, and gives up on more: hence small loops.
@numba.njit(inline="never", nogil=True, cache=KEPT, error_model="numpy")
def _normalise(given: Any, gain: Any, shift: Any, current: Any) -> None:
    for i in range(len(given)):
        current[i] = given[i] * gain[i] + shift[i]


@numba.njit(inline="never", nogil=True, cache=KEPT, error_model="numpy")
def _gather(made: Any, given: Any, mean: Any, total: Any, moment: Any) -> None:
    for i in range(len(made)):
        total[i] += made[i]
        moment[i] += made[i] * (given[i] - mean[i])


@numba.njit(nogil=True, cache=KEPT, error_model="numpy")
def _forward(
    x: Any, spikes: Any, gain: Any, shift: Any, threshold: Any, decay: Any, leaky: Any, start: int, stop: int
) -> None:
    kept, current = np.empty(len(gain), np.float32), np.empty(len(gain), np.float32)
    for low in range(start, stop, len(gain)):
        width = min(len(gain), stop - low)
        kept[:] = _ZERO
        for t in range(x.shape[0]):
            given, fired = x[t, low : low + width], spikes[t, low : low + width]
            _normalise(given, gain, shift, current)
            for i in range(width):
                v = kept[i]
                h = v + (current[i] - v) * decay if leaky else v + current[i]
                over = h >= threshold
                fired[i] = _ONE if over else _ZERO
                kept[i] = _ZERO if over else h


@numba.njit(nogil=True, cache=KEPT, error_model="numpy")
def _backward(
    grad: Any, x: Any, out: Any, gain: Any, shift: Any, mean: Any, threshold: Any, decay: Any, leaky: Any,
    steepness: Any, arctan: Any, start: int, stop: int,
) -> Any:  # fmt: skip
    steps, block = x.shape[0], len(gain)
    membrane = np.empty((steps, block), np.float32)
    kept, later = np.empty(block, np.float32), np.empty(block, np.float32)
    current = np.empty(block, np.float32)
    sums, part = np.zeros((2, block)), np.zeros((2, block), np.float32)
    pass_on = _ONE - decay if leaky else _ONE
    into = decay if leaky else _ONE
    for low in range(start, stop, block):
        width = min(block, stop - low)
        kept[:] = _ZERO
        later[:] = _ZERO
        part[:] = _ZERO
        for t in range(steps):
            given, before = x[t, low : low + width], membrane[t]
            _normalise(given, gain, shift, current)
            for i in range(width):
                v = kept[i]
                h = v + (current[i] - v) * decay if leaky else v + current[i]
                before[i] = h
                kept[i] = _ZERO if h >= threshold else h
        for back in range(steps):
            t = steps - 1 - back
            given, before = x[t, low : low + width], membrane[t]
            above, made = grad[t, low : low + width], out[t, low : low + width]
            for i in range(width):
                h = before[i]
                total = above[i] * _slope(h - threshold, steepness, arctan)
                total += _ZERO if h >= threshold else later[i]
                made[i] = total * into
                later[i] = total * pass_on
            _gather(made, given, mean, part[0], part[1])
        sums += part
    return sums


@numba.njit(nogil=True, cache=KEPT, error_model="numpy")
def _centre(x: Any, out: Any, gain: Any, along: Any, offset: Any, start: int, stop: int) -> None:
    """Take from the gradient what batch norm takes: its mean, and its part along x."""
    for low in range(start, stop, len(gain)):
        width = min(len(gain), stop - low)
        for t in range(x.shape[0]):
            given, made = x[t, low : low + width], out[t, low : low + width]
            for i in range(width):
                made[i] = made[i] * gain[i] - (given[i] * along[i] + offset[i])


def _rows(part: Tensor) -> Any:
    """Each step's pixels [T, B·H·W·C] of [T, B, C, H, W] that lies as channels_last, a view where it does."""
    return part.detach().permute(0, 1, 3, 4, 2).contiguous().view(len(part), -1).numpy()


def _tiled(values: Tensor) -> Any:
    """A number a channel, for each element of a block."""
    return np.tile(values.numpy().astype(np.float32), max(1, BLOCK // len(values)))


def _like(part: Tensor) -> Tensor:
    steps, batch, channels, height, width = part.shape
    return fresh((steps, batch, height, width, channels)).permute(0, 1, 4, 2, 3)


def forward(x: Tensor, gain: Tensor, shift: Tensor, threshold: float, decay: float, *, leaky: bool) -> Tensor:
    """Spikes of x·gain + shift, float32 [T, B, C, H, W], gain and shift one a channel."""
    spikes, each = _like(x), (_tiled(gain), _tiled(shift))
    given, made = _rows(x), _rows(spikes)
    work = partial(_forward, given, made, *each, np.float32(threshold), np.float32(decay), leaky)
    spread(work, given.shape[1], given.shape[0], len(each[0]))
    return spikes


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor, *,
    threshold: float, decay: float, leaky: bool, steepness: float, arctan: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, of the norm's weight and of its bias; `deviation` is 1/√(σ² + ε)."""
    gain = weight * deviation
    each = _tiled(gain), _tiled(bias - mean * gain), _tiled(mean)
    out, block = _like(x), len(each[0])
    above, given, made = _rows(grad), _rows(x), _rows(out)
    options = np.float32(threshold), np.float32(decay), leaky, np.float32(steepness), arctan
    sums = spread(
        partial(_backward, above, given, made, *each, *options), given.shape[1], given.shape[0], block
    )
    total, moment = torch.from_numpy(np.sum(sums, 0)).unflatten(1, (-1, len(gain))).sum(1)
    count = given.size // len(gain)
    along = gain * deviation * deviation * moment / count
    centred = partial(
        _centre, given, made, each[0], _tiled(along), _tiled(gain * total / count - along * mean)
    )
    spread(centred, given.shape[1], given.shape[0], block)
    return out, (moment * deviation).float(), total.float()
