"""A layer's batch norm and the neuron behind it as one, where both learn on a processor.

The normalised current is what the neuron would keep for its backward, beside the convolution's result that
batch norm keeps: joined, they keep the latter alone. Everywhere else (in evaluation, recalibration, a
compiled or exported graph, half or double precision, on CUDA, or where the layer is watched) they run apart.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snnergy.neuron import STEEPNESS, TAU, Neuron

if TYPE_CHECKING:
    from snnergy.attention import ConvNorm


@cache
def _kernels() -> ModuleType | None:
    """The compiled kernels, imported when they are first needed."""
    try:
        from snnergy import norm_cpu  # noqa: PLC0415
    except ImportError:
        return None
    return norm_cpu


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, neuron: Neuron
    ) -> Tensor:
        kernels = _kernels()
        assert kernels is not None
        # Counted and averaged as torch does it.
        mean, variance = torch.batch_norm_update_stats(
            x.flatten(0, 1), norm.running_mean, norm.running_var, norm.momentum or 0.0
        )
        deviation = (variance + norm.eps).rsqrt()
        leaky = neuron.kind != "if"
        ctx.options = {"threshold": neuron.threshold, "decay": 1 / TAU, "leaky": leaky}
        ctx.surrogate = neuron.surrogate
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        gain = weight * deviation
        spikes: Tensor = kernels.forward(x, gain, bias - mean * gain, **ctx.options)
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernels = _kernels()
        assert kernels is not None
        how = {"steepness": STEEPNESS[ctx.surrogate], "arctan": ctx.surrogate == "atan"}
        return *kernels.backward(grad, *ctx.saved_tensors, **ctx.options, **how), None, None


def _joins(layer: ConvNorm, neuron: Neuron, x: Tensor) -> bool:
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.dtype == torch.float32):
        return False
    norm = layer.norm
    # Of a single value there are no statistics, which batch norm itself says.
    single = x[:, :, 0].numel() == 1
    apart = single or x.is_cuda or torch.is_autocast_enabled("cpu") or layer.pool is not None
    plain = type(neuron) is Neuron and type(norm) is nn.BatchNorm2d and norm.training
    seen = any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
        for part in (layer, norm, neuron)
    )
    # A cumulative mean is recalibration's, and a leak's gradient the neuron's own business.
    return (
        plain and norm.momentum is not None and neuron.leak is None and not apart and not seen
        and _kernels() is not None
    )  # fmt: skip


def fired(layer: ConvNorm, neuron: Neuron, x: Tensor) -> Tensor:
    """The neuron's spikes of the layer's currents: `neuron(layer(x))`."""
    if not _joins(layer, neuron, x):
        apart: Tensor = neuron(layer(x))
        return apart
    norm = layer.norm
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    made: Tensor = _Joined.apply(layer.convolved(x), norm.weight, norm.bias, norm, neuron)
    return made
