from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional

import snnergy
from snnergy.data import Batch
from snnergy.training.config import TrainConfig
from snnergy.training.losses import StepLoss, balanced_weights

LABEL, OTHER = torch.tensor([0, 2, 1, 2]), torch.tensor([1, 2, 0, 0])
WEIGHT = torch.tensor([1.0, 1.0, 1.0, 0.0])


def part(present: Tensor | None = None) -> Batch:
    return Batch(torch.zeros(1), torch.zeros(1), LABEL, WEIGHT, present)


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, 4, 3, generator=torch.Generator().manual_seed(seed))


def cross_entropy(values: Tensor, label: Tensor, **options: Any) -> Tensor:
    return functional.cross_entropy(values, label, reduction="none", **options)


def test_loss_is_cross_entropy_of_real_samples() -> None:
    loss = StepLoss(TrainConfig(label_smoothing=0.1))
    assert not loss.needs_heads
    values = logits(0)
    expected = torch.lerp(
        cross_entropy(values, OTHER, label_smoothing=0.1),
        cross_entropy(values, LABEL, label_smoothing=0.1),
        0.7,
    )
    assert torch.allclose(loss(values, {}, part(), OTHER, 0.7), (expected * WEIGHT).sum())


def test_tet_is_the_mean_of_the_losses_of_steps() -> None:
    loss, steps = StepLoss(TrainConfig(loss="tet", label_smoothing=0.0)), logits(1, 5)
    assert loss.needs_heads
    expected = sum((cross_entropy(step, LABEL) * WEIGHT).sum() for step in steps) / 5
    assert torch.allclose(loss(logits(0), {"steps": steps}, part(), LABEL, 1.0), expected)


def test_auxiliary_losses_leave_out_absent_modalities() -> None:
    loss = StepLoss(TrainConfig(aux_loss=0.5, label_smoothing=0.0))
    heads = {"audio": logits(1), "video": logits(2)}
    present = torch.tensor([[True, False], [True, True], [False, True], [True, True]])
    got = loss(logits(0), heads, part(present), LABEL, 1.0)
    each = [cross_entropy(heads[name], LABEL) for name in ("audio", "video")]
    expected = cross_entropy(logits(0), LABEL) + 0.5 * (each[0] * present[:, 0] + each[1] * present[:, 1])
    assert torch.allclose(got, (expected * WEIGHT).sum())


def test_balanced_weights_equal_scikit_learn() -> None:
    labels = ["a", "b", "c"]
    counts = {"a": 5, "b": 1, "c": 14}
    given = np.repeat(labels, list(counts.values()))
    weights = balanced_weights({"labels": labels, "splits": {"train": {"labels": counts}}})
    assert weights.tolist() == pytest.approx(
        compute_class_weight("balanced", classes=np.array(labels), y=given).tolist()
    )
    loss = StepLoss(TrainConfig(label_smoothing=0.0), weights)(logits(0), {}, part(), LABEL, 1.0)
    assert torch.allclose(loss, (cross_entropy(logits(0), LABEL) * weights[LABEL] * WEIGHT).sum())


def test_network_returns_logits_of_steps_and_of_its_own_heads() -> None:
    torch.manual_seed(0)
    model = snnergy.build("nano", num_classes=3, aux_heads=True).eval()
    audio, video = torch.randn(2, 4, 1, 16, 16), torch.randn(2, 4, 3, 16, 16)
    found, heads = model(audio, video, return_heads=True)
    plain, aux = model(audio, video, return_aux=True)
    assert torch.equal(found, plain)
    assert torch.equal(heads["steps"], aux["step_logits"])
    features = aux["features"].split(64, 1)
    for name, feature in zip(("audio", "video"), features, strict=True):
        assert torch.allclose(heads[name], model.aux_heads[name](feature), atol=1e-6)
    assert not snnergy.build("nano", num_classes=3).aux_heads
