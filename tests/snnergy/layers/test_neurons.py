from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

from snnergy.layers import neurons as rooms
from snnergy.layers.neurons import SpikingNeuron

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
NODES = {"lif": sj_neuron.LIFNode, "if": sj_neuron.IFNode, "plif": sj_neuron.ParametricLIFNode}
SURROGATES = {"sigmoid": lambda: sj_surrogate.Sigmoid(4.0), "atan": lambda: sj_surrogate.ATan(2.0)}
TIME = {"lif": {"tau": 2.0}, "if": {}, "plif": {"init_tau": 2.0}}


def reference(kind: str, surrogate: str, threshold: float) -> Any:
    return NODES[kind](
        v_threshold=threshold,
        v_reset=0.0,
        detach_reset=True,
        step_mode="m",
        surrogate_function=SURROGATES[surrogate](),
        **TIME[kind],
    )


def differentiated(neuron: nn.Module, current: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    given = current.clone().requires_grad_()
    spikes = neuron(given)
    (spikes * weight).sum().backward()
    assert given.grad is not None
    return spikes.detach(), given.grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("surrogate", ["sigmoid", "atan"])
@pytest.mark.parametrize("kind", ["lif", "if", "plif"])
def test_neuron_equals_spikingjelly(kind: Any, surrogate: Any, threshold: float, device: str) -> None:
    torch.manual_seed(0)
    current, weight = torch.randn(6, 3, 700, device=device) * 2, torch.randn(6, 3, 700, device=device) / 4
    ours = SpikingNeuron(threshold, kind, surrogate).to(device)
    theirs = reference(kind, surrogate, threshold).to(device)
    got, slope = differentiated(ours, current, weight)
    expected, expected_slope = differentiated(theirs, current, weight)
    assert torch.equal(got, expected)
    assert (slope - expected_slope).abs().max() < 1e-6
    if ours.leak is not None:
        assert ours.leak.grad is not None
        assert torch.allclose(ours.leak.grad, theirs.w.grad, rtol=1e-4)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", ["lif", "if", "plif"])
def test_neuron_options_equal_those_of_spikingjelly(kind: Any, soft: bool) -> None:
    torch.manual_seed(0)
    current, weight = torch.randn(6, 3, 200, dtype=torch.float64) * 2, torch.randn(6, 3, 200).double()
    ours = SpikingNeuron(0.8, kind, "atan", tau=3.0, reset="soft" if soft else "hard", slope=3.0).double()
    times = {"lif": {"tau": 3.0}, "if": {}, "plif": {"init_tau": 3.0}}
    theirs = NODES[kind](
        v_threshold=0.8,
        v_reset=None if soft else 0.0,
        detach_reset=True,
        step_mode="m",
        surrogate_function=sj_surrogate.ATan(3.0),
        **times[kind],
    ).double()
    got, slope = differentiated(ours, current, weight)
    expected, expected_slope = differentiated(theirs, current, weight)
    assert torch.equal(got, expected)
    assert (slope - expected_slope).abs().max() < 1e-9
    if ours.leak is not None:
        assert ours.leak.grad is not None
        assert torch.allclose(ours.leak.grad, theirs.w.grad, rtol=1e-6)


@settings(max_examples=25)
@given(
    some.integers(1, 9),
    some.integers(1, 1300),
    some.sampled_from(["lif", "if", "plif"]),
    some.sampled_from(["sigmoid", "atan"]),
    some.integers(0, 9),
)
def test_kernel_equals_python_loop(steps: int, width: int, kind: Any, surrogate: Any, seed: int) -> None:
    torch.manual_seed(seed)
    current, weight = torch.randn(steps, width) * 3, torch.randn(steps, width)
    neuron = SpikingNeuron(1.0, kind, surrogate)
    got, slope = differentiated(neuron, current, weight)
    exact, exact_slope = differentiated(neuron.double(), current.double(), weight.double())
    # Where rounding moves a membrane over the threshold the two may part; they part nowhere else.
    same = (got == exact).all(0)
    assert same.float().mean() > 0.99
    # Without leak gradients of many steps add up, and their rounding with them.
    off = (slope - exact_slope)[:, same].abs() / exact_slope[:, same].abs().clamp(min=1)
    assert off.max() < 5e-6


def test_kernel_result_does_not_depend_on_threads() -> None:
    current, weight = torch.randn(4, 100_003) * 2, torch.randn(4, 100_003)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(differentiated(SpikingNeuron(), current, weight))
    finally:
        torch.set_num_threads(before)
    for spikes, slope in results[1:]:
        assert torch.equal(spikes, results[0][0])
        assert torch.equal(slope, results[0][1])


def test_neuron_saves_only_the_current() -> None:
    kept: list[Tensor] = []
    current = torch.randn(4, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda x: x):
        SpikingNeuron()(current)
    assert [saved.data_ptr() for saved in kept] == [current.data_ptr()]


@pytest.mark.parametrize("kind", ["lif", "plif"])
def test_operator_passes_opcheck(kind: Any) -> None:
    rate = torch.tensor(0.4, requires_grad=True) if kind == "plif" else None
    current = torch.randn(4, 30, requires_grad=True)
    torch.library.opcheck(rooms._fire, (current, rate, 0.5, 1.0, "sigmoid", 4.0, kind == "lif"))


def test_neuron_works_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    current, weight = torch.randn(4, 3, 500) * 2, torch.randn(4, 3, 500)
    fast, fast_slope = differentiated(SpikingNeuron(), current, weight)
    monkeypatch.setattr(rooms, "_kernels", lambda device: None)
    plain, plain_slope = differentiated(SpikingNeuron(), current, weight)
    assert torch.equal(fast, plain)
    assert (fast_slope - plain_slope).abs().max() < 2e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["lif", "if", "plif"])
def test_half_precision_compares_in_float32(kind: Any, device: str) -> None:
    current = (torch.randn(5, 2000, device=device) * 2).bfloat16()
    neuron = SpikingNeuron(1.0, kind).to(device)
    spikes = neuron(current)
    assert spikes.dtype == torch.bfloat16
    assert torch.equal(spikes.float(), neuron(current.float()))


def test_kernel_handles_transposed_currents_and_gradients() -> None:
    current, weight = torch.randn(7, 4, 3) * 2, torch.randn(7, 4, 3)
    turned, turned_slope = differentiated(SpikingNeuron(), current.transpose(0, 1), weight.transpose(0, 1))
    straight, straight_slope = differentiated(
        SpikingNeuron(), current.transpose(0, 1).contiguous(), weight.transpose(0, 1).contiguous()
    )
    assert torch.equal(turned, straight)
    assert torch.equal(turned_slope, straight_slope)


def test_kernels_compile_without_writable_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import caching

    from snnergy.kernels import lif_cpu as fire_cpu

    assert fire_cpu._can_cache()
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert not fire_cpu._can_cache()
