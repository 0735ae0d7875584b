"""Convolution with batch norm over time and batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def merge_time_batch(spikes: Tensor) -> Tensor:
    """Return [T, B, ...] as [T·B, ...]."""
    return spikes.flatten(0, 1)


def to_channels_last(images: Tensor) -> Tensor:
    """Return [N, C, H, W] in channels_last layout, which is faster on CPUs for the layers that follow.

    `Tensor.to(memory_format=...)` does not set the strides of one-channel images, so that the following
    layers would use the other layout.
    """
    if torch.compiler.is_exporting():
        return images
    n, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(-1)
    return rows.view(n, height, width, channels).permute(0, 3, 1, 2)


class StridedPointwiseConv(nn.Conv2d):
    """1×1 convolution with a stride, computed as a 1×1 convolution of every stride-th pixel.

    The result is the same. oneDNN (torch 2.14) corrupts the heap in the weight gradient of a strided 1×1
    convolution of fewer than 16 channels in channels_last layout.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return [N, C', H/stride, W/stride] for [N, C, H, W]."""
        rows, columns = self.stride
        return functional.conv2d(input[:, :, ::rows, ::columns], self.weight, self.bias)


class ConvNorm(nn.Module):
    """Convolution and batch norm on the folded T·B axis.

    Args:
        inputs: channels C.
        outputs: channels C'.
        kernel: side length of the kernel.
        stride: stride of the convolution.
        pool: halve the grid after the norm by 3×3 max pooling.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        pool: bool = False,
    ) -> None:
        super().__init__()
        convolution = StridedPointwiseConv if kernel == 1 and stride > 1 else nn.Conv2d
        self.conv = convolution(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        """Return real-valued [T, B, C', H', W'] for [T, B, C, H, W]."""
        y: Tensor = self.norm(
            self.conv(merge_time_batch(x) if x.is_cuda else to_channels_last(merge_time_batch(x)))
        )
        y = y if self.pool is None else self.pool(y)
        return y.unflatten(0, x.shape[:2])
