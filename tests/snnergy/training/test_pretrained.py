from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hub_fixtures import hub, slept
from support.hub_server import TOKEN, Fault, HubServer, Repo
from typer.testing import CliRunner

import avdata
import snnergy
from avdata.errors import AvdataError, UsageError
from snnergy.cli import app
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.training.checkpoint import load
from snnergy.training.config import TrainConfig
from snnergy.training.pretrained import initialize, load_trained
from snnergy.training.trainer import train

__all__ = ["hub", "slept"]

SMALL: dict[str, Any] = {"dims": (4, 8, 8), "heads": (1, 1, 1)}


@pytest.fixture
def stored(tiny_set: Path, tmp_path: Path) -> tuple[snnergy.SNNergy, Path]:
    """Network with the labels c, a and 0, and its folder."""
    torch.manual_seed(1)
    model = snnergy.build("nano", num_classes=3, **SMALL)
    facts = DatasetFacts.of(avdata.open(tiny_set, "train").info)
    model.dataset = replace(facts, labels=("c", "a", "0"))
    model.save_pretrained(tmp_path / "stored")
    return model, tmp_path / "stored"


def test_initialize_copies_weights_and_the_rows_of_shared_labels(
    stored: tuple[snnergy.SNNergy, Path],
) -> None:
    source, folder = stored
    fresh = snnergy.build("nano", num_classes=4, surrogate="atan", **SMALL)
    own = fresh.head.weight.detach().clone()
    assert initialize(fresh, folder, ("a", "b", "c", "d")) == ["a", "c"]
    for name, value in source.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(value, fresh.state_dict()[name])
    assert torch.equal(fresh.head.weight[[0, 2]], source.head.weight[[1, 0]])
    assert torch.equal(fresh.head.weight[[1, 3]], own[[1, 3]])


def test_initialize_refuses_other_layers(stored: tuple[snnergy.SNNergy, Path]) -> None:
    other = snnergy.build("nano", num_classes=3, **{**SMALL, "heads": (2, 1, 1)}, residual="sew")
    with pytest.raises(UsageError, match=r"heads is \(1, 1, 1\), requested \(2, 1, 1\), residual is"):
        initialize(other, stored[1], ("a",))


def test_training_starts_from_the_initial_network(
    stored: tuple[snnergy.SNNergy, Path], tiny_set: Path, tmp_path: Path, quick: Callable[..., TrainConfig]
) -> None:
    source, folder = stored
    config = quick(steps=1, lr=1e-9, start_lr=0.0, init=str(folder))
    train(tiny_set, tmp_path / "run", config, device="cpu")
    state = load((tmp_path / "run" / "last.ckpt").read_bytes(), "last.ckpt")["network"]
    weights = dict(source.named_parameters())
    assert all(
        torch.allclose(state[name], weight, atol=1e-6)
        for name, weight in weights.items()
        if not name.startswith("head")
    )


def test_training_starts_from_a_repository_on_the_hub(
    stored: tuple[snnergy.SNNergy, Path], hub: HubServer, tiny_set: Path, tmp_path: Path
) -> None:
    source, folder = stored
    files = {name: ("regular", (folder / name).read_bytes()) for name in ("config.json", "model.safetensors")}
    hub.repos["user/network"] = Repo(private=True)
    hub.repos["user/network"].commit("main", files)
    words = [
        "train", tiny_set, "--init", "user/network", "--output", tmp_path / "run", "--model", "nano",
        "--steps", 1, "--batch-size", 4, "--device", "cpu", "--threads", 1, "--lr", 1e-9, "--quiet",
        "--set", "start_lr=0", "--set", "model_options={dims: [4, 8, 8], heads: [1, 1, 1]}",
    ]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    state = load((tmp_path / "run" / "last.ckpt").read_bytes(), "last.ckpt")["network"]
    name = "encoders.audio.0.embedding.main.0.conv.weight"
    assert torch.allclose(state[name], source.get_parameter(name), atol=1e-6)
    # Each file is downloaded once, of one commit.
    downloads = [request for request in hub.requests if request.startswith("GET /user/")]
    assert len(downloads) == len(set(downloads)) == 2


def test_a_network_that_the_hub_lacks_is_named_in_one_sentence(hub: HubServer) -> None:
    with pytest.raises(AvdataError, match="runs/cremda: no such folder, and no such repository"):
        load_trained("runs/cremda")
    hub.repos["user/empty"] = Repo(private=False)
    hub.repos["user/empty"].commit("main", {})
    with pytest.raises(AvdataError, match="user/empty on the Hub has no network"):
        load_trained("user/empty")


def test_errors_of_the_hub_are_reported_without_the_token(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["user/network"] = Repo(private=True)
    hub.repos["user/network"].commit("main", {"config.json": ("regular", b"{}")})
    hub.faults.append(Fault("HEAD", status=403, times=9))
    with pytest.raises(AvdataError, match="user/network: no such folder, and the Hub answers 403") as raised:
        load_trained("user/network")
    assert TOKEN not in str(raised.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AvdataError, match="user/network: no such folder, and the Hub does not respond"):
        load_trained("user/network")
