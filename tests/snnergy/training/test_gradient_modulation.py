from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric import Fabric

from avdata.streaming.batch import AVBatch
from snnergy.data import Batch
from snnergy.models.network import SNNergy, build
from snnergy.training.config import resolve_config
from snnergy.training.gradient_modulation import OGMGE, gradient_factor
from snnergy.training.train_step import TrainStep


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


def test_ogm_ge_scales_leading_encoder_and_adds_noise_to_both(network: SNNergy, batch: Batch) -> None:
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
    noises: dict[str, torch.Tensor] = {}
    for name, weight in network.named_parameters():
        if name.startswith("encoders") and weight.ndim == 4:
            noises[name] = weight.grad - before[name] * factors[name.split(".")[1]]
            if weight.numel() > 500:
                assert float(noises[name].std()) == pytest.approx(float(before[name].std()), rel=0.2)
                assert float(noises[name].mean().abs()) < 0.2 * float(before[name].std())
        elif name in before:
            assert torch.equal(weight.grad, before[name])
    audio, video = (noises[f"encoders.{name}.1.embedding.main.2.conv.weight"] for name in ("audio", "video"))
    correlation = torch.corrcoef(torch.stack([audio.flatten(), video.flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.1


@pytest.mark.parametrize(("epoch", "is_modified"), [(0, False), (1, True), (2, True), (3, False)])
def test_ogm_ge_is_limited_to_its_epochs(
    epoch: int, is_modified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(OGMGE, "apply", lambda self, seed, reduce: calls.append(seed) or {})
    torch.manual_seed(0)
    config = resolve_config("quick", {"ogm_ge": 0.8, "ogm_ge_epochs": [1, 2]})
    network = build("nano", num_classes=2, fusion="concat", dims=(4, 8, 8), heads=(1, 1, 1))
    step = TrainStep(
        network, config, Fabric(accelerator="cpu", devices=1), schedule=lambda _: 1e-3, repeated=False
    )
    batch = AVBatch(
        mel=torch.randn(4, 2, 1, 16, 16),
        frames=torch.randint(0, 256, (4, 2, 3, 16, 16), dtype=torch.uint8),
        label=torch.arange(4) % 2, key=list("abcd"), weight=torch.ones(4),
        present=torch.ones(4, 2, dtype=torch.bool), step_labels=None,
    )  # fmt: skip
    step([batch], real=4, epoch=epoch)
    assert bool(calls) == is_modified


def test_ogm_ge_ends_after_epoch_50_as_published() -> None:
    assert resolve_config("snnergy").ogm_ge_epochs == (0, 50)
