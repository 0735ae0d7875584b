"""The halving pool's compiled kernels for processors: 3×3, stride 2, padding 1, as `lean.HalvingPool`.

A maximum's place is its number in the window, 0 to 8, in a byte. Of equal values the first, row by row, is
the maximum, as in torch. Columns are compared first, in vector instructions, then every third of them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from snnergy.fire_cpu import fresh, spread

_LOWEST, _ZERO = np.float32(-np.inf), np.float32(0.0)
_NONE = np.uint8(3)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _forward(given: Any, out: Any, places: Any, start: int, stop: int) -> None:
    height, width = given.shape[1:]
    # A column more on either side stands for the padding.
    best, row = np.full(width + 3, _LOWEST, np.float32), np.full(width + 3, _NONE, np.uint8)
    for plane in range(start, stop):
        for y in range(out.shape[1]):
            best[:] = _LOWEST
            row[:] = _NONE
            for down in range(max(0, 1 - 2 * y), min(3, height - 2 * y + 1)):
                line, dy = given[plane, 2 * y - 1 + down], np.uint8(down)
                for x in range(width):
                    value, old = line[x], best[x + 1]
                    # Not a number beats everything; the lowest beats the padding.
                    above = (value > old) | np.isnan(value) | (row[x + 1] == _NONE)
                    best[x + 1] = value if above else old
                    row[x + 1] = dy if above else row[x + 1]
            for x in range(out.shape[2]):
                value, dy, dx = best[2 * x], row[2 * x], 0
                for across in range(1, 3):
                    other, other_dy = best[2 * x + across], row[2 * x + across]
                    above = (other > value) | np.isnan(other) | ((other == value) & (other_dy < dy))
                    value = other if above else value
                    dy = other_dy if above else dy
                    dx = across if above else dx
                out[plane, y, x] = value
                places[plane, y, x] = dy * 3 + dx


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _backward(grad: Any, places: Any, out: Any, start: int, stop: int) -> None:
    for plane in range(start, stop):
        out[plane] = _ZERO
        for y in range(grad.shape[1]):
            for x in range(grad.shape[2]):
                place = places[plane, y, x]
                out[plane, 2 * y - 1 + place // 3, 2 * x - 1 + place % 3] += grad[plane, y, x]


def _planes(part: Tensor) -> Any:
    return part.detach().contiguous().flatten(0, 1).numpy()


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima and their places, float32 and uint8 [N, C, ⌈H/2⌉, ⌈W/2⌉], of float32 [N, C, H, W]."""
    shape = (*x.shape[:2], (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)
    out, places = fresh(shape), torch.empty(shape, dtype=torch.uint8)
    given, made, at = _planes(x), _planes(out), _planes(places)
    spread(lambda low, high: _forward(given, made, at, low, high), len(given), given[0].size)
    return out, places


def backward(grad: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """The gradient [N, C, H, W] of what was pooled, of float32 [N, C, ⌈H/2⌉, ⌈W/2⌉]."""
    out = fresh((*grad.shape[:2], height, width))
    given, at, made = _planes(grad), _planes(places), _planes(out)
    spread(lambda low, high: _backward(given, at, made, low, high), len(given), height * width)
    return out
