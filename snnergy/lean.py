"""Layers that keep a bit where autograd's own keep a float, with the same results and gradients.

A convolution keeps its input for its weight's gradient, and a product its factors for one another's: of
spikes a bit each is enough. Max pooling keeps its input, of which its backward needs only the shape, and
where each maximum stood, as an int64, where a byte says which of its window it was. All is the same to the
bit, but for a convolution of float32 on processors: it adds up the weights of the spikes that are there
(`conv_cpu`), in an order of its own.

What is compiled, packed or unpacked is an operator of torch, so that a compiled graph holds it whole; all
else is written with autograd functions, whose saved tensors other hooks (checkpoints, offloading) see.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


@torch.library.custom_op("snnergy::pack", mutates_args=())
def pack(spikes: Tensor) -> Tensor:
    """Zeros and ones of any type and shape as bits: uint8 [⌈n / 8⌉], the first in the highest bit."""
    flat = spikes.bool().reshape(-1)
    if not flat.is_cuda:
        return torch.from_numpy(np.packbits(flat.numpy()))
    rows = functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    return (rows * _places(flat.device)).sum(1, dtype=torch.uint8)


@pack.register_fake
def _(spikes: Tensor) -> Tensor:
    return spikes.new_empty(((spikes.numel() + 7) // 8,), dtype=torch.uint8)


@torch.library.custom_op("snnergy::unpack", mutates_args=())
def unpack(bits: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What `pack` was given, contiguous, of a type."""
    count = int(np.prod(shape, dtype=np.int64))
    if bits.is_cuda:
        flat = (bits[:, None] & _places(bits.device)).ne(0).view(-1)[:count]
    else:
        flat = torch.from_numpy(np.unpackbits(bits.numpy(), count=count))
    return flat.to(dtype, copy=True).view(list(shape))


@unpack.register_fake
def _(bits: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return bits.new_empty(shape, dtype=dtype)


def _places(device: torch.device) -> Tensor:
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_conv_kernels() -> bool:
    # A compiler's tracer asks once, and does not look into the cache.
    return _conv_kernels() is not None


@cache
def _conv_kernels() -> ModuleType | None:
    """The compiled convolutions, imported when they are first needed."""
    try:
        from snnergy import conv_cpu  # noqa: PLC0415
    except ImportError:
        return None
    return conv_cpu


def _by_events(spikes: Tensor, weight: Tensor) -> bool:
    """Whether the compiled convolution, which adds up weights where spikes are, can take these."""
    plain = spikes.device.type == "cpu" and spikes.dtype == weight.dtype == torch.float32
    return plain and weight.shape[2] == weight.shape[3] and _has_conv_kernels()


def _compiled() -> ModuleType:
    kernels = _conv_kernels()
    assert kernels is not None
    return kernels


@torch.library.custom_op("snnergy::pack_pixels", mutates_args=())
def _pack_pixels(spikes: Tensor) -> Tensor:
    """Spikes [N, C, H, W] as bits by pixel: uint8 [N·H·W, ⌈C / 8⌉]."""
    bits: Tensor = _compiled().pack(spikes)
    return bits


@_pack_pixels.register_fake
def _(spikes: Tensor) -> Tensor:
    n, channels, height, width = spikes.shape
    return spikes.new_empty((n * height * width, (channels + 7) // 8), dtype=torch.uint8)


@torch.library.custom_op("snnergy::convolve", mutates_args=())
def _convolve(bits: Tensor, shape: Sequence[int], weight: Tensor, stride: int, padding: int) -> Tensor:
    """The convolution of packed spikes [N, C, H, W], as channels_last."""
    kernels = _compiled()
    if kernels.crowded(bits, shape):
        dense = functional.conv2d(kernels.unpack(bits, shape), weight, None, stride, padding)
        return dense.contiguous(memory_format=torch.channels_last)
    made: Tensor = kernels.forward(bits, shape, weight, stride, padding)
    return made


@_convolve.register_fake
def _(bits: Tensor, shape: Sequence[int], weight: Tensor, stride: int, padding: int) -> Tensor:
    height, width = ((side + 2 * padding - weight.shape[2]) // stride + 1 for side in shape[2:])
    return weight.new_empty((shape[0], height, width, weight.shape[0])).permute(0, 3, 1, 2)


@torch.library.custom_op("snnergy::convolve_backward", mutates_args=())
def _convolve_backward(
    bits: Tensor, shape: Sequence[int], grad: Tensor, weight: Tensor, stride: int, padding: int
) -> Tensor:
    """The weight's gradient, from packed spikes and the result's gradient."""
    kernels = _compiled()
    if kernels.crowded(bits, shape):
        options = [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1, [False, True, False]
        given = grad, kernels.unpack(bits, shape), weight, None
        return torch.ops.aten.convolution_backward(*given, *options)[1].contiguous()
    made: Tensor = kernels.of_weight(bits, shape, grad, weight, stride, padding)
    return made


@_convolve_backward.register_fake
def _(bits: Tensor, shape: Sequence[int], grad: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _untouched(shape: Sequence[int], like: Tensor) -> Tensor:
    """Memory laid out as pictures are that nobody reads, and that is therefore never there."""
    n, channels, height, width = shape
    if not like.is_contiguous(memory_format=torch.channels_last):
        return like.new_empty(shape)
    return like.new_empty((n, height, width, channels)).permute(0, 3, 1, 2)


class _SpikeConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.shape, ctx.dtype, ctx.options = list(spikes.shape), spikes.dtype, (stride, padding)
        ctx.events, learns = _by_events(spikes, weight), ctx.needs_input_grad[1]
        if ctx.events:
            bits = _pack_pixels(spikes)
            out = _convolve(bits, ctx.shape, weight, stride, padding)
        else:
            bits = pack(spikes) if learns else None
            out = functional.conv2d(spikes, weight, None, stride, padding)
        ctx.save_for_backward(bits if learns else None, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bits, weight = ctx.saved_tensors
        stride, padding = ctx.options
        of_spikes, of_weight, needed = None, None, list(ctx.needs_input_grad[:2])
        if ctx.events and needed[1]:
            of_weight, needed[1] = _convolve_backward(bits, ctx.shape, grad, weight, stride, padding), False
        if ctx.events and needed[0] and stride == weight.shape[2] == 1:
            # A product of matrices, where the pixels' channels lie side by side.
            of_spikes = (grad.permute(0, 2, 3, 1) @ weight.flatten(1)).permute(0, 3, 1, 2)
            needed[0] = False
        if any(needed):
            # Without the weight's gradient only its shape and layout matter.
            spikes = unpack(bits, ctx.shape, ctx.dtype) if needed[1] else _untouched(ctx.shape, grad)
            options = [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1
            found = torch.ops.aten.convolution_backward(
                grad, spikes, weight, None, *options, [*needed, False]
            )
            of_spikes, of_weight = (
                mine if mine is not None else theirs
                for mine, theirs in zip((of_spikes, of_weight), found[:2], strict=True)
            )
        return of_spikes, of_weight, None, None


class SpikeConv2d(nn.Conv2d):
    """A convolution without bias that is fed zeros and ones, and keeps a bit of each for its backward.

    On processors it adds up the weights of the spikes that are there. Fed anything else it is wrong.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Norms folded into it for inference give it a bias.
        recorded = torch.is_grad_enabled() or _by_events(x, weight)
        if bias is not None or not recorded or torch.compiler.is_exporting():
            return super()._conv_forward(x, weight, bias)
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            # An autograd function is a closed box to autocast, which would cast within it.
            x, weight = (part.to(torch.get_autocast_dtype(kind)) for part in (x, weight))
        out: Tensor = _SpikeConvolution.apply(x, weight, self.stride[0], int(self.padding[0]))
        return out


def _order(x: Tensor) -> list[int]:
    """Dimensions from the widest stride to the narrowest: in this order memory is read as it lies."""
    return sorted(range(x.ndim), key=x.stride, reverse=True)


def _back(order: list[int]) -> list[int]:
    return [order.index(dimension) for dimension in range(len(order))]


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mask: Tensor, key: Tensor) -> Tensor:
        ctx.held = [(list(part.shape), _order(part), part.dtype) for part in (mask, key)]
        ctx.save_for_backward(*(pack(part.permute(_order(part))) for part in (mask, key)))
        # A product lies as its first factor does.
        return key * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        mask, key = (
            unpack(bits, [shape[d] for d in order], dtype).permute(_back(order))
            for bits, (shape, order, dtype) in zip(ctx.saved_tensors, ctx.held, strict=True)
        )
        return (key * grad).sum_to_size(mask.shape), (grad * mask).sum_to_size(key.shape)


def passed(mask: Tensor, key: Tensor) -> Tensor:
    """The spikes of `key` that `mask`, which is spikes too and broadcasts to it, lets through.

    >>> passed(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return key * mask
    out: Tensor = _Passed.apply(mask, key)
    return out


@cache
def _pool_kernels() -> ModuleType | None:
    """The compiled pool, imported when it is first needed."""
    try:
        from snnergy import pool_cpu  # noqa: PLC0415
    except ImportError:
        return None
    return pool_cpu


def _kernels_for(x: Tensor) -> ModuleType | None:
    return _pool_kernels() if x.device.type == "cpu" and x.dtype == torch.float32 else None


class _Pooled(torch.autograd.Function):
    """Maxima, and their places in their windows, 0 to 8."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        kernels = _kernels_for(x)
        if kernels is not None:
            maxima: tuple[Tensor, Tensor] = kernels.forward(x)
            return maxima
        out, index = functional.max_pool2d_with_indices(x, (3, 3), (2, 2), (1, 1))
        width = x.shape[-1]
        rows, columns = (2 * torch.arange(n, device=x.device) - 1 for n in out.shape[-2:])
        down = index.div(width, rounding_mode="floor") - rows[:, None]
        return out, (down * 3 + index.remainder(width) - columns).to(torch.uint8)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.shape = list(inputs[0].shape)
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:
        (places,) = ctx.saved_tensors
        height, width = ctx.shape[-2:]
        kernels = _kernels_for(grad)
        if kernels is not None:
            made: Tensor = kernels.backward(grad, places, height, width)
            return made
        wide = places.long()
        rows, columns = (2 * torch.arange(n, device=grad.device) - 1 for n in grad.shape[-2:])
        down = wide.div(3, rounding_mode="floor") + rows[:, None]
        index = down * width + wide.remainder(3) + columns
        # It looks at the input's shape only, and memory that nobody touches is never there.
        like, options = grad.new_empty(ctx.shape), ([3, 3], [2, 2], [1, 1], [1, 1], False)
        of_x: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(grad, like, *options, index)
        return of_x


class HalvingPool(nn.Module):
    """Max pooling of 3×3, stride 2, to half the grid, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, ⌈H/2⌉, ⌈W/2⌉]."""
        # A compiler keeps bytes by itself.
        if torch.compiler.is_compiling() or not (x.requires_grad or _kernels_for(x)):
            return functional.max_pool2d(x, 3, 2, 1)
        out: Tensor = _Pooled.apply(x)[0]
        return out
