from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor, nn
from torch.nn import functional

import snnergy
from snnergy import attention, lean
from snnergy.lean import HalvingPool, SpikeConv2d, pack, passed, unpack

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def spikes_of(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randint(0, 2, shape, device=device).to(dtype)


def made_plain(model: nn.Module) -> nn.Module:
    """The same network of torch's own layers."""
    for part in model.modules():
        if isinstance(part, SpikeConv2d):
            part.__class__ = nn.Conv2d  # type: ignore[assignment]
        for name, child in part.named_children():
            if isinstance(child, HalvingPool):
                setattr(part, name, nn.MaxPool2d(3, 2, 1))
    return model


def gradients(call: Any, *given: Tensor) -> list[Tensor]:
    """The result of a call and the gradients of what it was given."""
    inputs = [part.detach().clone().requires_grad_() for part in given]
    out = call(*inputs)
    # Whole numbers: their sums are exact in every order.
    weight = (torch.arange(out.numel(), device=out.device) % 17 - 8).view(out.shape)
    (out * weight).sum().backward()
    return [out.detach(), *(part.grad for part in inputs if part.grad is not None)]


def kept(call: Any) -> int:
    sizes: list[int] = []

    def note(saved: Tensor) -> Tensor:
        sizes.append(saved.nbytes)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        call()
    return sum(sizes)


@given(some.lists(some.integers(0, 7), max_size=4), some.sampled_from([torch.float64, torch.bfloat16]))
@settings(max_examples=30)
@pytest.mark.parametrize("device", DEVICES)
def test_spikes_survive_as_bits(device: str, shape: list[int], dtype: torch.dtype) -> None:
    spikes = spikes_of(*shape, dtype=dtype, device=device)
    bits = pack(spikes)
    assert bits.nbytes == -(-spikes.numel() // 8)
    again = unpack(bits, shape, dtype)
    assert again.dtype == dtype
    assert torch.equal(again, spikes)


def test_the_operators_keep_torchs_contract() -> None:
    spikes = spikes_of(3, 5, 7)
    torch.library.opcheck(pack, (spikes,))
    torch.library.opcheck(unpack, (pack(spikes), [3, 5, 7], torch.float32))
    pictures, weight, ops = spikes_of(2, 5, 7, 6), torch.randn(4, 5, 3, 3), torch.ops.snnergy
    bits, shape = ops.pack_pixels(pictures), list(pictures.shape)
    torch.library.opcheck(ops.pack_pixels, (pictures,))
    torch.library.opcheck(ops.convolve, (bits, shape, weight, 1, 1))
    torch.library.opcheck(ops.convolve_backward, (bits, shape, torch.randn(2, 4, 7, 6), weight, 1, 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 7), (16, 32), (24, 96), (9, 112)])
def test_a_convolution_of_spikes_is_torchs_to_the_bit(
    kernel: int, stride: int, inputs: int, outputs: int, dtype: torch.dtype, device: str
) -> None:
    torch.backends.cudnn.deterministic = True
    conv = SpikeConv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False).to(device, dtype)
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-8, 9, conv.weight.shape))
    x = spikes_of(3, inputs, 17, 13, dtype=dtype, device=device)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return conv._conv_forward(x, weight, None)

    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x, weight, None, stride, kernel // 2)

    for got, expected in zip(gradients(ours, x, conv.weight), gradients(theirs, x, conv.weight), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("rate", [0.0, 0.15, 1.0])
def test_a_convolution_of_spikes_is_as_right_as_torchs_however_many_there_are(rate: float) -> None:
    torch.manual_seed(0)
    conv, x = SpikeConv2d(40, 24, 3, padding=1, bias=False), (torch.rand(2, 40, 9, 11) < rate).float()

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return conv._conv_forward(x, weight, None)

    def truth(x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x.double(), weight.double(), None, 1, 1)

    for got, expected in zip(gradients(ours, x, conv.weight), gradients(truth, x, conv.weight), strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_threads_and_layouts_change_no_result_of_a_convolution() -> None:
    conv, threads = SpikeConv2d(16, 48, 3, padding=1, bias=False), torch.get_num_threads()
    x, found = spikes_of(4, 16, 65, 64), []
    try:
        for count, given in ((1, x), (2, x.to(memory_format=torch.channels_last)), (3, x)):
            torch.set_num_threads(count)
            found.append(conv(given).detach())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_a_convolution_of_spikes_keeps_a_bit_of_each() -> None:
    conv = SpikeConv2d(8, 4, 3, padding=1, bias=False)
    x = spikes_of(2, 8, 16, 16).requires_grad_()
    assert kept(lambda: conv(x)) == x.numel() // 8 + conv.weight.nbytes
    conv.weight.requires_grad_(False)
    assert kept(lambda: conv(x)) == conv.weight.nbytes


def test_under_autocast_a_convolution_of_spikes_is_torchs() -> None:
    conv, x = SpikeConv2d(8, 8, 3, padding=1, bias=False), spikes_of(2, 8, 12, 12)

    def run(module: nn.Module) -> list[Tensor]:
        module.zero_grad()
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = module(given)
        out.float().square().sum().backward()
        assert module.weight.grad is not None
        assert given.grad is not None
        return [out.detach(), module.weight.grad.clone(), given.grad]

    for got, expected in zip(run(conv), run(made_plain(conv)), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (7, 10), (16, 16), (64, 37)])
def test_pooling_is_torchs_to_the_bit(grid: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    # Rounded values have ties, of which the first must take the gradient.
    x = (torch.randn(2, 3, *grid, device=device) * 2).round().to(dtype)
    x[0, 0, : grid[0] // 2] = -torch.inf
    for pooled in (x, x.transpose(2, 3), x.to(memory_format=torch.channels_last)):
        for got, expected in zip(
            gradients(HalvingPool(), pooled), gradients(nn.MaxPool2d(3, 2, 1), pooled), strict=True
        ):
            assert torch.equal(got, expected)


def test_without_kernels_pooling_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 9, 12).round()
    expected = gradients(HalvingPool(), x)
    monkeypatch.setattr(lean, "_pool_kernels", lambda: None)
    for got, known in zip(gradients(HalvingPool(), x), expected, strict=True):
        assert torch.equal(got, known)


def test_threads_do_not_change_a_pooled_bit() -> None:
    x, threads = torch.randn(5, 7, 128, 96), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(gradients(HalvingPool(), x))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(got, known) for got, known in zip(other, found[0], strict=True))


def test_pooling_keeps_a_byte_of_each_window() -> None:
    x = torch.randn(1, 2, 32, 32, requires_grad=True)
    assert kept(lambda: HalvingPool()(x)) == x.numel() // 4


@pytest.mark.parametrize("learning", [True, False])
def test_nan_reaches_what_is_pooled(learning: bool) -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 3] = torch.nan
    expected = functional.max_pool2d(x, 3, 2, 1)
    assert torch.equal(HalvingPool()(x.requires_grad_(learning)).isnan(), expected.isnan())


@pytest.mark.parametrize("mask", [(3, 1, 1, 4), (3, 2, 5, 1), (3, 2, 5, 4), (1, 1, 1, 1)])
def test_what_passes_a_mask_is_the_product(mask: tuple[int, ...]) -> None:
    given = spikes_of(*mask), spikes_of(3, 2, 5, 4)
    for got, expected in zip(gradients(passed, *given), gradients(torch.mul, *given), strict=True):
        assert torch.equal(got, expected)
    wide = [part.requires_grad_() for part in given]
    assert kept(lambda: passed(*wide)) == sum(-(-part.numel() // 8) for part in given)


SMALL: dict[str, Any] = {"dims": (4, 8, 16), "heads": (1, 2, 2)}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"residual": "sew"},
    {"residual": "sew", "fusion_output": "spike"},
    {"branches": "o"},
    {"combine": "or"},
    {"combine": "sum"},
    {"stage3": "ssa"},
    {"fusion": "ccssa"},
    {"fusion": "sca", "residual": "sew"},
    {"fusion_mlp": True, "checkpoint": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_kept_as_bits_is_bits(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def binary(*given: Tensor) -> None:
        seen.extend(bool(((part == 0) | (part == 1)).all()) for part in given)

    def watched(mask: Tensor, key: Tensor) -> Tensor:
        binary(mask, key)
        return passed(mask, key)

    monkeypatch.setattr(attention, "passed", watched)
    model = snnergy.build("nano", num_classes=3, **SMALL, **options)
    for part in model.modules():
        if isinstance(part, SpikeConv2d):
            part.register_forward_pre_hook(lambda _, given: binary(*given))
    model(torch.randn(3, 2, 1, 16, 16) * 3, torch.randn(3, 2, 3, 16, 16) * 3)
    assert len(seen) > 20
    assert all(seen)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_network_learns_as_one_of_torchs_layers_does(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    # In double precision, where a sum's order flips no spike.
    audio, video = (torch.randn(3, 2, channels, 16, 16, dtype=torch.float64) for channels in (1, 3))
    model = snnergy.build("nano", num_classes=3, **SMALL, **options).double()
    found = []
    for ours in (True, False):
        model.zero_grad()
        if not ours:
            made_plain(model)
            monkeypatch.setattr(attention, "passed", torch.mul)
        logits = model(audio, video)
        logits.square().sum().backward()
        found.append([logits.detach(), *(w.grad for w in model.parameters() if w.grad is not None)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
