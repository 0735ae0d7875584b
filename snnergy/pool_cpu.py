"""The halving pool's compiled kernels for processors: 3×3, stride 2, padding 1, as `lean.HalvingPool`.

A maximum's place is its number in the window, 0 to 8, in a byte. Of equal values the first, row by row, is
the maximum, as in torch. Pictures lie as channels_last, so that vector instructions take channels; a backward
that asks each pixel for the windows it won writes every pixel once.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from snnergy.fire_cpu import KEPT, fresh, spread

_ZERO = np.float32(0.0)


@numba.njit(nogil=True, cache=KEPT, error_model="numpy")
def _forward(given: Any, out: Any, places: Any, start: int, stop: int) -> None:
    height, width, channels = given.shape[1:]
    for line in range(start, stop):
        number, y = line // out.shape[1], line % out.shape[1]
        for x in range(out.shape[2]):
            best, at = out[number, y, x], places[number, y, x]
            first = True
            for down in range(max(0, 1 - 2 * y), min(3, height - 2 * y + 1)):
                for across in range(max(0, 1 - 2 * x), min(3, width - 2 * x + 1)):
                    pixel = given[number, 2 * y - 1 + down, 2 * x - 1 + across]
                    place = np.uint8(3 * down + across)
                    if first:
                        best[:] = pixel
                        at[:] = place
                        first = False
                        continue
                    for c in range(channels):
                        value, old = pixel[c], best[c]
                        # Not a number beats everything.
                        above = (value > old) | np.isnan(value)
                        best[c] = value if above else old
                        at[c] = place if above else at[c]


@numba.njit(nogil=True, cache=KEPT, error_model="numpy")
def _backward(grad: Any, places: Any, out: Any, start: int, stop: int) -> None:
    height, width, channels = out.shape[1:]
    rows, columns = grad.shape[1:3]
    for line in range(start, stop):
        number, y = line // height, line % height
        for x in range(width):
            made = out[number, y, x]
            made[:] = _ZERO
            # An even row is in the middle of one window, an odd one at the edge of two.
            for row in range(y // 2, min((y + 1) // 2 + 1, rows)):
                for column in range(x // 2, min((x + 1) // 2 + 1, columns)):
                    place = np.uint8(3 * (y - 2 * row + 1) + x - 2 * column + 1)
                    given, at = grad[number, row, column], places[number, row, column]
                    for c in range(channels):
                        made[c] += given[c] if at[c] == place else _ZERO


def _pixels(pictures: Tensor) -> Any:
    return pictures.detach().permute(0, 2, 3, 1).contiguous().numpy()


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima and their places, float32 and uint8 [N, C, ⌈H/2⌉, ⌈W/2⌉] as channels_last, of float32."""
    shape = (x.shape[0], (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2, x.shape[1])
    out, places = fresh(shape), torch.empty(shape, dtype=torch.uint8)
    given, made, at = _pixels(x), out.numpy(), places.numpy()
    lines = shape[0] * shape[1]
    spread(lambda low, high: _forward(given, made, at, low, high), lines, given.size // max(lines, 1))
    return out.permute(0, 3, 1, 2), places.permute(0, 3, 1, 2)


def backward(grad: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """The gradient [N, C, H, W] of what was pooled, of float32 [N, C, ⌈H/2⌉, ⌈W/2⌉]."""
    out = fresh((grad.shape[0], height, width, grad.shape[1]))
    given, at, made = _pixels(grad), _pixels(places), out.numpy()
    lines = grad.shape[0] * height
    spread(lambda low, high: _backward(given, at, made, low, high), lines, made.size // max(lines, 1))
    return out.permute(0, 3, 1, 2)
