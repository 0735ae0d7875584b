from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.plugins.environments import LightningEnvironment

from avdata.streaming.batch import AVBatch
from snnergy.models.network import build
from snnergy.training.config import TrainConfig
from snnergy.training.distributed import init_fabric
from snnergy.training.train_step import TrainStep

Quick = Callable[..., TrainConfig]

STEPS, STEPS_PER_EPOCH = 9, 3


def learner(config: TrainConfig, fabric: Fabric | None = None, **options: Any) -> TrainStep:
    torch.manual_seed(0)
    network = build("nano", num_classes=2, video_channels=3, dims=(4, 8, 8), heads=(1, 1, 1), **options)
    return TrainStep(
        network, config, fabric or Fabric(accelerator="cpu", devices=1), repeated=False,
        schedule=lambda step: config.rate(step, STEPS, STEPS_PER_EPOCH),
    )  # fmt: skip


def take_step(learn: TrainStep) -> float:
    """Run one step on a batch determined by its number; return the rate that the optimizer applied."""
    generator = torch.Generator().manual_seed(learn.step)
    batch = AVBatch(
        mel=torch.randn(4, 2, 1, 16, 16, generator=generator),
        frames=torch.randint(0, 256, (4, 2, 3, 16, 16), generator=generator, dtype=torch.uint8),
        label=torch.arange(4) % 2, key=list("abcd"), weight=torch.ones(4),
        present=torch.ones(4, 2, dtype=torch.bool), step_labels=None,
    )  # fmt: skip
    applied = {float(group["lr"]) for group in learn._optimizer.param_groups}
    assert applied == {learn.rate}
    learn([batch], real=4, epoch=0)
    return applied.pop()


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in network.parameters()]


def closed_form(step: int, start: float, peak: float, low: float, warmup: float) -> float:
    if step < warmup:
        return start + (peak - start) * step / warmup
    return low + (peak - low) * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup))) / 2


@pytest.mark.parametrize(
    ("settings", "warmup"),
    [
        ({"start_lr": 0.0, "min_lr": 0.0, "warmup_epochs": None}, 0.3 * STEPS),
        ({"start_lr": 1e-4, "min_lr": 1e-5, "warmup_epochs": 0.5}, 0.5 * STEPS_PER_EPOCH),
        ({"start_lr": 1e-4, "min_lr": 1e-5, "warmup_epochs": 0}, 0),
    ],
)
def test_learning_rate_of_every_step_has_closed_form_also_after_resume(
    quick: Quick, settings: dict[str, Any], warmup: float
) -> None:
    config = quick(lr=1e-2, **settings)
    whole = learner(config)
    rates = [take_step(whole) for _ in range(STEPS)]
    expected = [closed_form(step, config.start_lr, 1e-2, config.min_lr, warmup) for step in range(STEPS)]
    assert rates == pytest.approx(expected, rel=1e-12)
    parts = learner(config)
    before = [take_step(parts) for _ in range(4)]
    resumed = learner(config)
    resumed.load_state_dict(parts.state_dict())
    assert before + [take_step(resumed) for _ in range(STEPS - 4)] == rates
    assert all(map(torch.equal, weights(resumed.network), weights(whole.network)))


def test_moving_average_has_closed_form_also_after_resume(quick: Quick) -> None:
    """The decay is 2/11, 3/12, 4/13, ... until it reaches the setting."""
    config = quick(ema=0.28)
    learn = learner(config)
    expected = [weight.double() for weight in weights(learn.average)]
    for step in range(1, 6):
        if step == 4:
            state, learn = learn.state_dict(), learner(config)
            learn.load_state_dict(state)
        take_step(learn)
        decay = min(0.28, (1 + step) / (10 + step))
        expected = [
            decay * average + (1 - decay) * weight.double()
            for average, weight in zip(expected, weights(learn.network), strict=True)
        ]
        for average, value in zip(weights(learn.average), expected, strict=True):
            torch.testing.assert_close(average.double(), value, rtol=1e-5, atol=1e-7)
    assert not torch.equal(learn.average.head.weight, learn.network.head.weight)
    assert not any(weight.requires_grad for weight in learn.average.parameters())


def test_first_step_skipped_by_loss_scaling_gives_no_warning(quick: Quick) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler), LightningEnvironment()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        init_fabric("cpu", "32")
        learn = learner(quick(), Fabric(accelerator="cpu", devices=1, plugins=plugins))
        take_step(learn)
    assert scaler.get_scale() < 2.0**120
    assert learn.step == 1
    assert not [str(warning.message) for warning in caught if "lr_scheduler" in str(warning.message)]


def test_average_without_ema_is_the_network(quick: Quick) -> None:
    learn = learner(quick())
    assert learn.average is learn.network


def test_training_step_reaches_unimodal_heads_and_masks(quick: Quick) -> None:
    config = quick(loss="tet", aux_loss=0.5, augment={"hide": 1.0, "crop": 0.5, "erase": 0.2})
    learn = learner(config, aux_heads=True)
    masks: list[torch.Tensor] = []
    learn.network.register_forward_pre_hook(
        lambda _, args, given: masks.extend(given[name] for name in ("mask_a", "mask_v") if name in given),
        with_kwargs=True,
    )
    before = weights(learn.network.aux_heads)
    take_step(learn)
    take_step(learn)
    assert not any(map(torch.equal, before, weights(learn.network.aux_heads)))
    assert any(not mask.all() for mask in masks)


def test_training_step_is_compiled_on_request_but_not_the_network(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    learn = learner(quick(compile=True))
    assert compiled == [learn.network]
    learner(quick())
    assert len(compiled) == 1


@pytest.mark.exhaustive
def test_compiled_training_step_equals_the_eager_one(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: original(module, backend="eager"))
    results = []
    for compiled in (False, True):
        learn = learner(quick(compile=compiled, model_options={}))
        take_step(learn)
        results.append(weights(learn.network))
        assert not any("_orig_mod" in name for name in learn.state_dict()["network"])
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(*results, strict=True))
