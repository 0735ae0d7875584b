"""Convolutions of spikes for processors: a weight row is added for each spike, and nothing for its absence.

A picture of spikes is kept as bits, a pixel's channels side by side. For each pixel of the result the spikes
under the kernel are listed, as numbers of rows of the weights [K·K·C, C']; the forward sums those rows, the
weight's gradient adds the result's gradient to each of them. Of ten channels with one or two spikes that is a
sixth of the dense product's additions. What comes out lies as channels_last, whose pixels are rows too.

numba has no vectors, so the two inner loops are written for LLVM: sixteen channels a vector, up to six of
them in registers while the list is walked. Rows are padded to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from torch import Tensor

from snnergy.fire_cpu import KEPT, fresh, spread

LANES = 16
# A share of ones above which adding them one by one is slower than the dense product.
CROWDED = 0.4

# Its annotations take an intrinsic for the function that builds it.
intrinsic: Any = extending.intrinsic

_ZERO = np.float32(0.0)
# The places of the ones in each byte, and how many there are.
_PLACES = np.zeros((256, 8), np.int8)
_COUNTS = np.array([value.bit_count() for value in range(256)])
for _value in range(256):
    _PLACES[_value, : _COUNTS[_value]] = [place for place in range(8) if _value >> place & 1]

_INDEX, _VECTOR = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)


@intrinsic  # type: ignore[untyped-decorator]
def _address(typing: Any, array: Any, offset: Any) -> Any:
    """Where an array's element `offset`, in memory's order, stands."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.gep(held.data, [arguments[1]])

    pointer: Any = types.CPointer
    return pointer(array.dtype)(array, types.intp), build


@intrinsic  # type: ignore[untyped-decorator]
def _list_byte(typing: Any, listed: Any, count: Any, places: Any, value: Any, base: Any) -> Any:
    """Write the places of the ones of byte `value`, plus `base`, from element `count` of a list.

    It writes eight; what is too much is written over next. Branches on bits as good as random cost more.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held, at, table, byte, more = arguments
        wide, small = ir.VectorType(_INDEX, 8), ir.VectorType(ir.IntType(8), 8)
        row = builder.gep(table, [builder.mul(byte, ir.Constant(_INDEX, 8))])
        found = builder.sext(builder.load(builder.bitcast(row, small.as_pointer()), align=1), wide)
        first = builder.insert_element(ir.Constant(wide, ir.Undefined), more, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
        base_each = builder.shuffle_vector(first, ir.Constant(wide, ir.Undefined), lanes)
        into = builder.bitcast(builder.gep(held, [at]), wide.as_pointer())
        builder.store(builder.add(found, base_each), into, align=8)
        return context.get_dummy_value()

    signature = types.void(listed, types.intp, places, types.intp, types.intp)
    return signature, build


def _vectors(builder: Any, pointer: Any, count: int) -> list[Any]:
    base = builder.bitcast(pointer, _VECTOR.as_pointer())
    return [builder.gep(base, [ir.Constant(_INDEX, number)]) for number in range(count)]


def _row(builder: Any, weights: Any, listed: Any, index: Any, width: Any, count: int) -> list[Any]:
    """`count` vectors of the row that element `index` of the list names."""
    number = builder.load(builder.gep(listed, [index]))
    return _vectors(builder, builder.gep(weights, [builder.mul(number, width)]), count)


def _sum(builder: Any, count: int, weights: Any, width: Any, pixel: Any, listed: Any, many: Any) -> None:
    """The pixel becomes the sum of the rows."""
    held = [cgutils.alloca_once(builder, _VECTOR) for _ in range(count)]  # type: ignore[no-untyped-call]
    for one in held:
        builder.store(ir.Constant(_VECTOR, [0.0] * LANES), one)
    with cgutils.for_range(builder, many) as loop:
        for one, part in zip(held, _row(builder, weights, listed, loop.index, width, count), strict=True):
            builder.store(builder.fadd(builder.load(one), builder.load(part, align=4)), one)
    for one, out in zip(held, _vectors(builder, pixel, count), strict=True):
        builder.store(builder.load(one), out, align=4)


def _give(builder: Any, count: int, weights: Any, width: Any, pixel: Any, listed: Any, many: Any) -> None:
    """The pixel is added to each row."""
    given = [builder.load(part, align=4) for part in _vectors(builder, pixel, count)]
    with cgutils.for_range(builder, many) as loop:
        for one, part in zip(given, _row(builder, weights, listed, loop.index, width, count), strict=True):
            builder.store(builder.fadd(builder.load(part, align=4), one), part, align=4)


def _vectorised(write: Callable[..., None], count: int) -> Any:
    """`count` vectors of a pixel, and of the listed rows of weights, by one of the two loops above."""

    @intrinsic  # type: ignore[untyped-decorator]
    def run(typing: Any, weights: Any, width: Any, pixel: Any, listed: Any, many: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            write(builder, count, *arguments)
            return context.get_dummy_value()

        return types.void(weights, types.intp, pixel, listed, types.intp), build

    return run


_sum_1, _sum_2, _sum_3, _sum_6 = (_vectorised(_sum, count) for count in (1, 2, 3, 6))
_give_1, _give_2, _give_3, _give_6 = (_vectorised(_give, count) for count in (1, 2, 3, 6))


@numba.njit(nogil=True, cache=KEPT, error_model="numpy")
def _list_pixel(
    bits: Any, size: Any, shape: Any, number: int, y: int, x: int, listed: Any, places: Any, counts: Any
) -> int:
    """List the spikes under the kernel at a pixel of the result; how many there are."""
    height, width, channels = size
    kernel, stride, padding = shape
    count, into, table = 0, _address(listed, 0), _address(places, 0)
    for down in range(max(0, padding - y * stride), min(kernel, height + padding - y * stride)):
        line = (number * height + y * stride + down - padding) * width + x * stride - padding
        for across in range(max(0, padding - x * stride), min(kernel, width + padding - x * stride)):
            base = (down * kernel + across) * channels
            for byte in range(bits.shape[1]):
                value = np.intp(bits[line + across, byte])
                _list_byte(into, count, table, value, base)
                count += counts[value]
                base += 8
    return count


@numba.njit(nogil=True, cache=KEPT, error_model="numpy")
def _forward(
    bits: Any, size: Any, shape: Any, weights: Any, out: Any, places: Any, counts: Any, start: int, stop: int
) -> None:
    _, rows, columns, channels = out.shape
    width = weights.shape[1]
    listed, made = np.empty(len(weights) + 8, np.intp), np.empty(width, np.float32)
    at, whole = _address(listed, 0), width == channels
    for line in range(start, stop):
        for x in range(columns):
            many = _list_pixel(bits, size, shape, line // rows, line % rows, x, listed, places, counts)
            low, here = 0, (line * columns + x) * channels
            while low < width:
                left, row = (width - low) // LANES, _address(weights, low)
                pixel = _address(out, here + low) if whole else _address(made, low)
                if left >= 6:
                    _sum_6(row, width, pixel, at, many)
                    low += 6 * LANES
                elif left >= 3:
                    _sum_3(row, width, pixel, at, many)
                    low += 3 * LANES
                elif left == 2:
                    _sum_2(row, width, pixel, at, many)
                    low += 2 * LANES
                else:
                    _sum_1(row, width, pixel, at, many)
                    low += LANES
            if not whole:
                out[line // rows, line % rows, x, :] = made[:channels]


@numba.njit(nogil=True, cache=KEPT, error_model="numpy")
def _of_weights(
    bits: Any, size: Any, shape: Any, grad: Any, weights: Any, places: Any, counts: Any, start: int, stop: int
) -> None:
    _, rows, columns, channels = grad.shape
    width = weights.shape[1]
    listed, given = np.empty(len(weights) + 8, np.intp), np.zeros(width, np.float32)
    at, whole = _address(listed, 0), width == channels
    for line in range(start, stop):
        for x in range(columns):
            many = _list_pixel(bits, size, shape, line // rows, line % rows, x, listed, places, counts)
            if not whole:
                given[:channels] = grad[line // rows, line % rows, x, :]
            low, here = 0, (line * columns + x) * channels
            while low < width:
                left, row = (width - low) // LANES, _address(weights, low)
                pixel = _address(grad, here + low) if whole else _address(given, low)
                if left >= 6:
                    _give_6(row, width, pixel, at, many)
                    low += 6 * LANES
                elif left >= 3:
                    _give_3(row, width, pixel, at, many)
                    low += 3 * LANES
                elif left == 2:
                    _give_2(row, width, pixel, at, many)
                    low += 2 * LANES
                else:
                    _give_1(row, width, pixel, at, many)
                    low += LANES


@numba.njit(nogil=True, cache=KEPT, error_model="numpy")
def _pack(spikes: Any, bits: Any, start: int, stop: int) -> None:
    channels = spikes.shape[1]
    whole = channels // 8
    for pixel in range(start, stop):
        for byte in range(whole):
            value = np.uint8(0)
            for place in range(8):
                value |= np.uint8(spikes[pixel, 8 * byte + place] != _ZERO) << np.uint8(place)
            bits[pixel, byte] = value
        if whole < bits.shape[1]:
            value = np.uint8(0)
            for place in range(channels - 8 * whole):
                value |= np.uint8(spikes[pixel, 8 * whole + place] != _ZERO) << np.uint8(place)
            bits[pixel, whole] = value


def _pixels(pictures: Tensor) -> Any:
    """Pictures [N, C, H, W] as an array [N, H, W, C], a view where they lie as channels_last."""
    return pictures.detach().permute(0, 2, 3, 1).contiguous().numpy()


def pack(spikes: Tensor) -> Tensor:
    """Float32 spikes [N, C, H, W] as bits: uint8 [N·H·W, ⌈C / 8⌉], the first channel in the lowest bit."""
    given = _pixels(spikes).reshape(-1, spikes.shape[1])
    bits = np.empty((len(given), -(-given.shape[1] // 8)), np.uint8)
    spread(lambda low, high: _pack(given, bits, low, high), len(given), given.shape[1])
    return torch.from_numpy(bits)


def crowded(bits: Tensor, shape: Sequence[int]) -> bool:
    """Whether there are so many spikes that the dense product is quicker."""
    return int(_COUNTS[bits.numpy()].sum()) > CROWDED * float(np.prod(shape))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Spikes [N, C, H, W] again, as channels_last."""
    n, channels, height, width = shape
    ones = np.unpackbits(bits.numpy(), axis=1, count=channels, bitorder="little")
    return torch.from_numpy(ones).view(n, height, width, channels).permute(0, 3, 1, 2).float()


def _padded(channels: int) -> int:
    return -(-channels // LANES) * LANES


def result_shape(shape: Sequence[int], weight: Tensor, stride: int, padding: int) -> list[int]:
    """[N, H', W', C'] of spikes [N, C, H, W]."""
    sides = [(side + 2 * padding - weight.shape[2]) // stride + 1 for side in shape[2:]]
    return [shape[0], *sides, weight.shape[0]]


def forward(bits: Tensor, shape: Sequence[int], weight: Tensor, stride: int, padding: int) -> Tensor:
    """The convolution [N, C', H', W'] of packed spikes [N, C, H, W] with a square kernel, channels_last."""
    out = fresh(result_shape(shape, weight, stride, padding))
    kernel, channels = weight.shape[2], weight.shape[0]
    rows = np.zeros((kernel * kernel * shape[1], _padded(channels)), np.float32)
    rows[:, :channels] = weight.detach().permute(2, 3, 1, 0).reshape(-1, channels).numpy()
    size, options = (shape[2], shape[3], shape[1]), (kernel, stride, padding)
    work = partial(_forward, bits.numpy(), size, options, rows, out.numpy(), _PLACES, _COUNTS)
    spread(work, out.shape[0] * out.shape[1], out[0, 0].numel())
    return out.permute(0, 3, 1, 2)


def of_weight(
    bits: Tensor, shape: Sequence[int], grad: Tensor, weight: Tensor, stride: int, padding: int
) -> Tensor:
    """The weight's gradient, of packed spikes [N, C, H, W] and the result's gradient [N, C', H', W']."""
    given, kernel, channels = _pixels(grad), weight.shape[2], weight.shape[0]
    size, options = (shape[2], shape[3], shape[1]), (kernel, stride, padding)

    def work(low: int, high: int) -> Any:
        rows = np.zeros((kernel * kernel * shape[1], _padded(channels)), np.float32)
        _of_weights(bits.numpy(), size, options, given, rows, _PLACES, _COUNTS, low, high)
        return rows

    total = sum(spread(work, given.shape[0] * given.shape[1], given[0, 0].size))
    found = torch.from_numpy(total[:, :channels].copy())
    return found.view(kernel, kernel, shape[1], channels).permute(3, 2, 0, 1).contiguous()
