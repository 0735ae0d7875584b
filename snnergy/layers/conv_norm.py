"""Conv norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def merge_time_batch(spikes: Tensor) -> Tensor:
    """[T, B, …] as [T·B, …]."""
    return spikes.flatten(0, 1)


def to_channels_last(pictures: Tensor) -> Tensor:
    """Pictures [N, C, H, W] laid out as channels_last, on processors the quicker way for all that follows.

    Of one channel torch does not say so by itself, and would go on in the other layout.
    """
    if torch.compiler.is_exporting():
        return pictures
    n, channels, height, width = pictures.shape
    rows = pictures.permute(0, 2, 3, 1).reshape(-1)
    return rows.view(n, height, width, channels).permute(0, 3, 1, 2)


class StridedPointwiseConv(nn.Conv2d):
    """1×1 convolution with a stride, computed as a 1×1 convolution of every stride-th pixel.

    The result is the same. oneDNN (torch 2.14) corrupts the heap in the weight gradient of a strided 1×1
    convolution of fewer than 16 channels in channels_last layout.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return [N, C', H/stride, W/stride] of [N, C, H, W]."""
        rows, columns = self.stride
        return functional.conv2d(input[:, :, ::rows, ::columns], self.weight, self.bias)


class ConvNorm(nn.Module):
    """Convolution and batch norm on the folded T·B axis: [T, B, C, H, W] to [T, B, C', H', W'].

    Args:
        inputs: channels C.
        outputs: channels C'.
        kernel: side of the convolution's.
        stride: of the convolution.
        pool: halve the grid after the norm, by max pooling.
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
        """The normalized (and pooled) result, real-valued."""
        y: Tensor = self.norm(
            self.conv(merge_time_batch(x) if x.is_cuda else to_channels_last(merge_time_batch(x)))
        )
        y = y if self.pool is None else self.pool(y)
        return y.unflatten(0, x.shape[:2])
