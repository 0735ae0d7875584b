"""Layers that keep a bit where autograd's own keep a float, with the same results and gradients to the bit.

A convolution keeps its input for its weight's gradient, and a product its factors for one another's: of
spikes a bit each is enough. Max pooling keeps its input, of which its backward needs only the shape, and
where each maximum stood, as an int64, where a byte says which of its window it was.

`pack` and `unpack` are operators of torch, so that a compiled graph holds them whole; all else is written
with autograd functions, whose saved tensors other hooks (checkpoints, offloading) see.
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
    flat = spikes.reshape(-1).bool()
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


class _SpikeConvolution(torch.autograd.Function):
    @staticmethod
    def forward(spikes: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
        return functional.conv2d(spikes, weight, None, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        spikes, weight, ctx.stride, ctx.padding = inputs
        ctx.shape, ctx.dtype = list(spikes.shape), spikes.dtype
        ctx.save_for_backward(pack(spikes) if weight.requires_grad else None, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bits, weight = ctx.saved_tensors
        spikes = grad.new_empty(ctx.shape) if bits is None else unpack(bits, ctx.shape, ctx.dtype)
        needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        of_spikes, of_weight, _ = torch.ops.aten.convolution_backward(
            grad, spikes, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, needed
        )
        return of_spikes, of_weight, None, None


class SpikeConv2d(nn.Conv2d):
    """A convolution without bias that is fed zeros and ones, and keeps a bit of each for its backward.

    Fed anything else its results are right and its weight's gradient is not.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Norms folded into it for inference give it a bias.
        if bias is not None or not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return super()._conv_forward(x, weight, bias)
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            # An autograd function is a closed box to autocast, which would cast within it.
            x, weight = (part.to(torch.get_autocast_dtype(kind)) for part in (x, weight))
        out: Tensor = _SpikeConvolution.apply(x, weight, list(self.stride), list(self.padding))
        return out


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(mask: Tensor, key: Tensor) -> Tensor:
        return mask * key

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        mask, key = inputs
        ctx.shapes, ctx.dtypes = (list(mask.shape), list(key.shape)), (mask.dtype, key.dtype)
        ctx.save_for_backward(pack(mask), pack(key))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        mask, key = (
            unpack(bits, shape, dtype)
            for bits, shape, dtype in zip(ctx.saved_tensors, ctx.shapes, ctx.dtypes, strict=True)
        )
        return (grad * key).sum_to_size(mask.shape), (grad * mask).sum_to_size(key.shape)


def passed(mask: Tensor, key: Tensor) -> Tensor:
    """The spikes of `key` that `mask`, which is spikes too and broadcasts to it, lets through.

    >>> passed(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return mask * key
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
