"""Well-formed but wrong checkpoints, run.json and config.json: one sentence each, and no memory for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from avdata.errors import AvdataError, UsageError
from snnergy.models.config import configure
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.network import SNNergy
from snnergy.training.checkpoint import load_network, save, write_json
from snnergy.training.config import TrainConfig

FACTS = DatasetFacts(("a", "b"), None, {}, {}, {}, has_frames=True).dump()


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    SNNergy(configure("nano", num_classes=2)).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = configure("nano", num_classes=2)
    run = {
        "config": TrainConfig().model_dump(), "model": asdict(config), "dataset": "data", "facts": FACTS,
        "processes": 1,
    }  # fmt: skip
    write_json(tmp_path / "run.json", run)
    weights = SNNergy(config).state_dict()
    save(tmp_path / "last.ckpt", {"network": weights, "ema": None, "facts": FACTS, "calibrated": True})
    return tmp_path / "last.ckpt"


SETTINGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "other channels": lambda model: model.update(dims=[32, 64, 128]),
    "huge channels": lambda model: model.update(dims=[2**20, 2**20, 2**20], heads=[1, 1, 1]),
    "endless depth": lambda model: model.update(depths=[10**9, 1, 1]),
    "another fusion": lambda model: model.update(fusion="concat", fusion_stages=[]),
    "an unknown setting": lambda model: model.update(colour="red"),
    "a missing setting": lambda model: model.pop("dims"),
    "a text": lambda model: model.update(dims="abc"),
    "a nested list": lambda model: model.update(dims=[[1], 2, 3]),
    "null": lambda model: model.update(heads=None),
}


def is_one_sentence(error: AvdataError) -> bool:
    return "\n" not in error.message and len(error.message) < 500


@pytest.mark.parametrize("change", SETTINGS)
def test_from_pretrained_refuses_other_settings(change: str, pretrained: Path) -> None:
    path = pretrained / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    SETTINGS[change](config)
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(AvdataError, match="Cannot read network") as caught:
        SNNergy.from_pretrained(pretrained)
    assert is_one_sentence(caught.value)
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000])
def test_from_pretrained_refuses_a_config_that_is_no_object(text: str, pretrained: Path) -> None:
    (pretrained / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(AvdataError, match="Cannot read network") as caught:
        SNNergy.from_pretrained(pretrained)
    assert is_one_sentence(caught.value)


def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"x{name}": tensor for name, tensor in weights.items()}


def reshape(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, next(iter(weights)): torch.zeros(1)}


@pytest.mark.parametrize("change", [rename, reshape, lambda weights: {}])
def test_from_pretrained_refuses_other_weights(change: Callable[..., Any], pretrained: Path) -> None:
    path = pretrained / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)
    with pytest.raises(AvdataError, match="Cannot read network") as caught:
        SNNergy.from_pretrained(pretrained)
    assert is_one_sentence(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0[[[[[[[["])
def test_from_pretrained_refuses_damaged_weights(data: bytes, pretrained: Path) -> None:
    (pretrained / "model.safetensors").write_bytes(data)
    with pytest.raises(AvdataError, match="Cannot read network"):
        SNNergy.from_pretrained(pretrained)


@pytest.mark.parametrize("change", ["other channels", "endless depth", "an unknown setting", "null"])
def test_load_network_refuses_other_settings(change: str, checkpoint: Path) -> None:
    run = json.loads(checkpoint.with_name("run.json").read_text(encoding="utf-8"))
    SETTINGS[change](run["model"])
    write_json(checkpoint.with_name("run.json"), run)
    with pytest.raises(AvdataError, match="Cannot read network") as caught:
        load_network(checkpoint)
    assert is_one_sentence(caught.value)


STATES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no weights": lambda state: {**state, "network": None},
    "a missing key": lambda state: {name: value for name, value in state.items() if name != "ema"},
    "a list": lambda state: {**state, "network": [1]},
    "texts": lambda state: {**state, "network": dict.fromkeys(state["network"], "x")},
    "other names": lambda state: {**state, "network": rename(state["network"])},
    "another shape": lambda state: {**state, "network": reshape(state["network"])},
    "other facts": lambda state: {**state, "facts": 3},
}


@pytest.mark.parametrize("change", STATES)
def test_load_network_refuses_another_state(change: str, checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    save(checkpoint, {**STATES[change](state), "format": state["format"]})
    with pytest.raises(AvdataError, match="Cannot read network") as caught:
        load_network(checkpoint)
    assert is_one_sentence(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("facts", float("nan")), ("config", 3), ("model", None), ("processes", "x")]
)
def test_load_network_refuses_another_run(field: str, value: object, checkpoint: Path) -> None:
    run = json.loads(checkpoint.with_name("run.json").read_text(encoding="utf-8"))
    write_json(checkpoint.with_name("run.json"), {**run, field: value})
    with pytest.raises(AvdataError, match=r"Cannot read .*run\.json") as caught:
        load_network(checkpoint)
    assert is_one_sentence(caught.value)


def test_load_network_reads_what_was_saved(checkpoint: Path, pretrained: Path) -> None:
    assert load_network(checkpoint)[0].config == configure("nano", num_classes=2)
    assert SNNergy.from_pretrained(pretrained).config == configure("nano", num_classes=2)
