from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from snnergy.data import Batch
from snnergy.layers.neurons import SpikingNeuron
from snnergy.models.network import SNNergy, build
from snnergy.training.config import AugmentConfig, TrainConfig
from snnergy.training.diagnostics import (
    check_result,
    check_setup,
    diagnose,
    find_non_finite,
    record_firing_rates,
)


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


def test_record_firing_rates_returns_shares_of_ones(network: SNNergy, batch: Batch) -> None:
    seen: list[torch.Tensor] = []
    name, layer = next(
        (name, part) for name, part in network.named_modules() if isinstance(part, SpikingNeuron)
    )
    layer.register_forward_hook(lambda module, inputs, spikes: seen.append(spikes))
    with record_firing_rates(network) as rates, torch.no_grad():
        network(batch.audio, batch.video)
    assert rates[name] == pytest.approx(float(seen[0].count_nonzero()) / seen[0].numel())
    assert set(rates) == {n for n, part in network.named_modules() if isinstance(part, SpikingNeuron)}


def test_diagnose_separates_silent_saturated_and_mask_layers(network: SNNergy) -> None:
    masks = [n for n, p in network.named_modules() if isinstance(p, SpikingNeuron) and p.threshold == 0.5]
    plain = [n for n, p in network.named_modules() if isinstance(p, SpikingNeuron) and p.threshold == 1.0]
    rates = dict.fromkeys([*masks, *plain], 0.3)
    assert diagnose(network, rates) == {}
    rates |= {masks[0]: 0.99, masks[1]: 0.01, plain[0]: 0.0, plain[1]: 0.99}
    found = diagnose(network, rates)
    said = {sentence.split()[0]: layers for sentence, layers in found.items()}
    assert said == {"attention": masks[:2], "silent": [plain[0]], "saturated": [plain[1]]}


def test_find_non_finite_names_first_layer(network: SNNergy, batch: Batch) -> None:
    layer = network.get_submodule("encoders.video.1.blocks.0.attention.query_key.conv")
    layer.register_forward_hook(lambda module, inputs, output: output / 0)
    assert find_non_finite(network, [batch]) == (
        "the layer encoders.video.1.blocks.0.attention.query_key.conv"
    )
    with torch.no_grad():
        network.head.bias[0] = math.nan
    assert find_non_finite(network, [batch]) == "the weight head.bias"


def test_find_non_finite_names_batch(network: SNNergy, batch: Batch) -> None:
    batch.video[0, 0] = math.inf
    assert find_non_finite(network, [batch]) == "the video of the batch"


def info_of(splits: dict[str, Any]) -> dict[str, Any]:
    return {"labels": ["a", "b", "c"], "splits": splits}


def test_setup_without_val_split_or_train_labels_is_warned_about() -> None:
    train = {"labels": {"a": 3, "b": 2, "c": 0}}
    no_val, absent = check_setup(TrainConfig(), info_of({"train": train, "test": {}}))
    assert "no val split" in no_val
    assert "evaluated on test" in no_val
    assert absent == "Labels without samples in the train split: c."
    full = info_of({"train": {"labels": {"a": 1, "b": 1, "c": 1}}, "val": {}})
    assert check_setup(TrainConfig(), full) == []


def test_wide_masks_are_warned_about() -> None:
    full = info_of({"train": {"labels": {"a": 1, "b": 1, "c": 1}}, "val": {}})
    (warning,) = check_setup(TrainConfig(augment=AugmentConfig(bands=0.25, columns=0.3)), full)
    assert "augment.columns=0.3 masks up to 30%" in warning


@pytest.mark.parametrize(
    ("confusion", "parts"),
    [
        ([[4, 0, 0], [2, 0, 0], [2, 0, 0]], ["at chance: accuracy 0.500", "never predicted on val: b, c"]),
        ([[4, 0, 0], [0, 2, 0], [0, 2, 0]], ["never predicted on val: c"]),
        ([[2, 1, 1], [1, 1, 0], [1, 0, 1]], ["at chance"]),
        ([[4, 0, 0], [0, 2, 0], [0, 0, 2]], []),
    ],
)
def test_result_at_chance_or_without_a_label_is_warned_about(
    confusion: list[list[int]], parts: list[str]
) -> None:
    hits = sum(confusion[label][label] for label in range(3))
    measured = {
        "confusion": confusion, "accuracy": hits / 8, "samples": 8, "per_class": dict.fromkeys("abc"),
    }  # fmt: skip
    warnings = check_result(measured, "val")
    assert len(warnings) == len(parts)
    assert all(part in warning for part, warning in zip(parts, warnings, strict=True))
