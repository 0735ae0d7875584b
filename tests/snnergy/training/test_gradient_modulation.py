from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnergy.data import Batch
from snnergy.models.network import SNNergy, build
from snnergy.training.gradient_modulation import OGMGE, gradient_factor


@pytest.fixture
def network() -> SNNergy:
    torch.manual_seed(0)
    return build("nano", num_classes=2, fusion="concat")


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(2, 4, 1, 16, 16, generator=generator)
    video = torch.randn(2, 4, 3, 16, 16, generator=generator)
    return Batch(audio, video, torch.tensor([0, 1, 0, 1]), torch.ones(4))


@given(ratio=st.floats(0, 50), alpha=st.floats(0.01, 2))
def test_gradient_factor_reduces_leader_only(ratio: float, alpha: float) -> None:
    expected = 1.0 if ratio <= 1 else 1 - math.tanh(alpha * ratio)
    assert gradient_factor(ratio, alpha) == pytest.approx(expected, abs=1e-6)


def test_ogm_ge_scales_gradients_of_leading_encoder(network: SNNergy, batch: Batch) -> None:
    modulation = OGMGE(network, alpha=0.5)
    half = network.head.in_features // 2
    seen: list[torch.Tensor] = []
    network.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    network.train()
    torch.nn.functional.cross_entropy(network(batch.audio, batch.video), batch.label).backward()
    modulation.count(batch.label, batch.weight)
    # The published formula, written out.
    scores = []
    for part, weight in zip(seen[0].split(half, 1), network.head.weight.detach().split(half, 1), strict=True):
        logits = part @ weight.T + network.head.bias.detach() / 2
        scores.append(float(logits.softmax(1)[torch.arange(4), batch.label].sum()))
    before = {name: w.grad.clone() for name, w in network.named_parameters() if w.grad is not None}
    factors = modulation.apply(seed=0, reduce=lambda value: value)
    ratio = max(scores) / min(scores)
    leader, follower = ("audio", "video") if scores[0] > scores[1] else ("video", "audio")
    assert factors[leader] == pytest.approx(1 - math.tanh(0.5 * ratio), rel=1e-5)
    assert factors[follower] == 1.0
    for name, weight in network.named_parameters():
        led = name.startswith(f"encoders.{leader}") and weight.ndim == 4
        if led:
            rest = weight.grad - before[name] * factors[leader]
            if rest.numel() > 500:
                assert float(rest.std()) == pytest.approx(float(before[name].std()), rel=0.2)
        elif name in before:
            assert torch.equal(weight.grad, before[name])
