from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnergy.data import Batch
from snnergy.layers.neurons import SpikingNeuron
from snnergy.models.network import SNNergy, build
from snnergy.training.diagnostics import diagnose, find_non_finite, record_firing_rates
from snnergy.training.evaluation import evaluate_split
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


def test_rates_are_the_shares_of_ones(network: SNNergy, batch: Batch) -> None:
    seen: list[torch.Tensor] = []
    name, layer = next(
        (name, part) for name, part in network.named_modules() if isinstance(part, SpikingNeuron)
    )
    layer.register_forward_hook(lambda module, inputs, spikes: seen.append(spikes))
    with record_firing_rates(network) as rates, torch.no_grad():
        network(batch.audio, batch.video)
    assert rates[name] == pytest.approx(float(seen[0].count_nonzero()) / seen[0].numel())
    assert set(rates) == {n for n, part in network.named_modules() if isinstance(part, SpikingNeuron)}


def test_silent_and_saturated_layers_and_idle_masks_are_told_apart(network: SNNergy) -> None:
    masks = [n for n, p in network.named_modules() if isinstance(p, SpikingNeuron) and p.threshold == 0.5]
    plain = [n for n, p in network.named_modules() if isinstance(p, SpikingNeuron) and p.threshold == 1.0]
    rates = dict.fromkeys([*masks, *plain], 0.3)
    assert diagnose(network, rates) == {}
    rates |= {masks[0]: 0.99, masks[1]: 0.01, plain[0]: 0.0, plain[1]: 0.99}
    found = diagnose(network, rates)
    said = {sentence.split()[0]: layers for sentence, layers in found.items()}
    assert said == {"attention": masks[:2], "silent": [plain[0]], "saturated": [plain[1]]}


def test_the_first_layer_that_is_not_finite_is_named(network: SNNergy, batch: Batch) -> None:
    layer = network.get_submodule("encoders.video.1.blocks.0.attention.query_key.conv")
    layer.register_forward_hook(lambda module, inputs, output: output / 0)
    assert find_non_finite(network, [batch]) == (
        "the layer encoders.video.1.blocks.0.attention.query_key.conv"
    )
    with torch.no_grad():
        network.head.bias[0] = math.nan
    assert find_non_finite(network, [batch]) == "the weight head.bias"


def test_a_batch_that_is_not_finite_is_named(network: SNNergy, batch: Batch) -> None:
    batch.video[0, 0] = math.inf
    assert find_non_finite(network, [batch]) == "the pictures of the batch"


@given(ratio=st.floats(0, 50), alpha=st.floats(0.01, 2))
def test_ogm_ge_slows_the_leader_only(ratio: float, alpha: float) -> None:
    expected = 1.0 if ratio <= 1 else 1 - math.tanh(alpha * ratio)
    assert gradient_factor(ratio, alpha) == pytest.approx(expected, abs=1e-6)


def test_ogm_ge_changes_the_gradients_of_the_leading_encoder_by_its_formula(
    network: SNNergy, batch: Batch
) -> None:
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
    factors = modulation.apply(seed=0, add_up=lambda value: value)
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


def test_padding_is_in_no_figure() -> None:
    """Three samples and a padded fourth that would be wrong: 2 of 3 right."""

    class Given(torch.nn.Module):
        def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])

    class One:
        mel, frames = torch.zeros(4, 2, 1, 16, 16), torch.zeros(4, 2, 3, 16, 16, dtype=torch.uint8)
        label, weight = torch.tensor([0, 1, 1, 1]), torch.tensor([1.0, 1.0, 1.0, 0.0])

    def loader() -> Iterator[One]:
        yield One()

    found = evaluate_split(Given(), loader(), ["a", "b"], "cpu")  # type: ignore[arg-type]
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert (found["accuracy"], found["samples"]) == (pytest.approx(2 / 3, abs=1e-6), 3)
    assert found["loss"] == pytest.approx((2 * right + wrong) / 3, abs=1e-6)
    assert found["confusion"] == [[1, 0], [1, 1]]
    assert found["per_class"] == {"a": 1.0, "b": 0.5}
