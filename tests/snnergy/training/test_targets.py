"""AVE's task: each second is classified, as one of the events or as background."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import avdata
from avdata.errors import AvdataError, UsageError
from snnergy.models.network import build
from snnergy.training.checkpoint import load_network
from snnergy.training.config import TrainConfig
from snnergy.training.evaluation import evaluate
from snnergy.training.targets import class_names, has_step_targets, target_loss
from snnergy.training.trainer import train

Quick = Callable[..., TrainConfig]

AVE = {"background": "Background", "labels": ["Bark", "Horn"], "name": "ave"}


@pytest.fixture(scope="module")
def ave_set(once: Callable[..., Path], ave_mock: Path) -> Path:
    settings = {"audio": {"n_mels": 16, "hop_length": 640}, "video": {"size": 16}}
    return once(
        "ave-tiny",
        lambda out: avdata.prepare("ave", source=ave_mock, output=out, config=settings, workers=0),
    )


@pytest.fixture(scope="module")
def ave_run(ave_set: Path, tmp_path_factory: pytest.TempPathFactory, quick: Quick) -> Path:
    run = tmp_path_factory.mktemp("ave") / "run"
    train(ave_set, run, quick(steps=1, batch_size=2), device="cpu")
    return run


def test_accuracy_counts_steps_with_background(ave_set: Path, ave_run: Path) -> None:
    result = json.loads((ave_run / "result.json").read_text())
    split = "test" if "test" in result else "val"
    network, _ = load_network(ave_run / result["chosen"])
    assert result["labels"][-1] == "Background"
    assert network.config.num_classes == len(result["labels"]) == 29
    labels = [step for sample in avdata.open(ave_set, split=split) for step in sample.metadata["step_labels"]]
    assert len(labels) == result[split]["samples"]
    rows = [sum(row) for row in result[split]["confusion"]]
    assert rows == [labels.count(index) for index in range(29)]
    correct = sum(row[index] for index, row in enumerate(result[split]["confusion"]))
    assert result[split]["accuracy"] == pytest.approx(correct / len(labels), abs=1e-6)


def test_evaluate_reproduces_the_result_of_steps(ave_set: Path, ave_run: Path) -> None:
    result = json.loads((ave_run / "result.json").read_text())
    found = evaluate(ave_run / result["chosen"], ave_set, device="cpu")
    for split in {"val", "test"} & set(result):
        assert found[split] == result[split]


def test_network_of_steps_refuses_a_dataset_without_them(
    ave_run: Path, tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snnergy.models.dataset_facts.DatasetFacts.check_settings", lambda *given: None)
    with pytest.raises(AvdataError, match="no labels of steps"):
        evaluate(ave_run / "best.ckpt", tiny_set, device="cpu")


def test_per_step_logits_are_those_of_the_steps() -> None:
    network = build("nano", dims=[4, 8, 8], heads=[1, 1, 1], num_classes=3).eval()
    audio, video = torch.rand(4, 2, 1, 16, 16), torch.rand(4, 2, 3, 16, 16)
    with torch.no_grad():
        steps = network(audio, video, per_step=True)
        _, aux = network(audio, video, return_aux=True)
    assert torch.equal(steps, aux["step_logits"])


def test_target_loss_of_steps_is_their_mean() -> None:
    logits, label = torch.randn(4, 2, 3), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
    chances = logits.softmax(-1)
    for sample in (0, 1):
        expected = -sum(chances[t, sample, label[sample, t]].log() for t in range(4)) / 4
        torch.testing.assert_close(target_loss(logits, label)[sample], expected)
    torch.testing.assert_close(target_loss(logits[0], label[:, 0]), target_loss(logits[:1], label[:, :1]))


@pytest.mark.parametrize(
    ("settings", "info", "expected"),
    [
        ({}, AVE, True),
        ({}, {**AVE, "background": None}, False),
        ({"targets": "clip"}, AVE, False),
        ({"targets": "clip", "ogm_ge": 0.8}, AVE, False),
    ],
)
def test_targets_follow_the_dataset(settings: dict[str, Any], info: dict[str, Any], expected: bool) -> None:
    assert has_step_targets(TrainConfig(**settings), info) is expected
    names = ("Bark", "Horn", "Background") if expected else ("Bark", "Horn")
    assert class_names(info, per_step=expected) == names


@pytest.mark.parametrize(
    ("settings", "info", "message"),
    [
        ({"targets": "step"}, {**AVE, "background": None}, "has none"),
        ({"ogm_ge": 0.8}, AVE, "ogm_ge requires one label per clip"),
        ({"augment": {"shift": 1}}, AVE, r"augment\.shift requires one label per clip"),
    ],
)
def test_settings_that_contradict_the_targets_are_refused(
    settings: dict[str, Any], info: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        has_step_targets(TrainConfig(**settings), info)
