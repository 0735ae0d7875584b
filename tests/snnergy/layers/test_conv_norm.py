from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from snnergy.layers.conv_norm import ConvNorm, StridedPointwiseConv


@pytest.mark.parametrize("channels", [1, 3, 4, 8, 16, 24])
def test_strided_pointwise_conv_equals_conv2d_and_its_gradients(channels: int) -> None:
    """With fewer than 16 channels torch's own layer crashed in the weight gradient."""
    layer = StridedPointwiseConv(channels, 2 * channels, 1, 2, bias=False)
    exact = copy.deepcopy(layer).double()
    pixels = torch.randn(16, channels, 64, 63).contiguous(memory_format=torch.channels_last)
    given, reference = pixels.clone().requires_grad_(), pixels.double().requires_grad_()
    got = layer(given)
    expected = functional.conv2d(reference, exact.weight, stride=2)
    weights = torch.randn_like(got)
    got.backward(weights)
    expected.backward(weights.double())
    for ours, theirs in (
        (got, expected),
        (given.grad, reference.grad),
        (layer.weight.grad, exact.weight.grad),
    ):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)


def test_conv_norm_uses_the_safe_layer_for_strided_pointwise_convolutions() -> None:
    assert isinstance(ConvNorm(8, 16, 1, 2).conv, StridedPointwiseConv)
    assert type(ConvNorm(8, 16, 3, 2).conv) is torch.nn.Conv2d
