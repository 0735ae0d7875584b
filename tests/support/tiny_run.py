"""The smallest set and network that train: 16 × 16 pictures, uneven shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import avdata
from snnergy.training.config import TrainConfig, resolve_config
from snnergy.training.trainer import train

TINY = {"dims": [4, 8, 8], "heads": [1, 1, 1]}
SMALL_PICTURES = {
    "audio": {"n_mels": 16, "hop_length": 320, "flac": True},
    "video": {"size": 16},
    "shards": {"samples_per_shard": 5},
}


@pytest.fixture(scope="session")
def tiny_set(once: Callable[..., Path], synthetic_mock: Path) -> Path:
    """32, 4 and 8 samples; the train split in seven shards, the last one of two samples."""
    return once(
        "tiny",
        lambda out: avdata.prepare(
            "synthetic", source=synthetic_mock, output=out, config=SMALL_PICTURES, workers=0
        ),
    )


@pytest.fixture(scope="session")
def tiny_run(once: Callable[..., Path], tiny_set: Path, quick: Callable[..., TrainConfig]) -> Path:
    """Finished run of two epochs of two steps, with a moving average of the weights; no test writes to it."""
    config = quick(batch_size=16, eval_every=1, ema=0.9)
    return once("tiny-run", lambda out: train(tiny_set, out, config, device="cpu"))


@pytest.fixture
def charts() -> None:
    """Requested by the tests that need the charts of a training: see `no_charts`."""


@pytest.fixture(autouse=True)
def no_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train without charts, which take a quarter of the time of a run of four steps."""
    if "charts" not in request.fixturenames:
        for name in ("plot_curves", "plot_confusion"):
            monkeypatch.setattr(f"snnergy.training.run_result.{name}", lambda *given: None)


@pytest.fixture(scope="session")
def quick() -> Callable[..., TrainConfig]:
    """Settings of a tiny network with a few changes, on one thread."""

    def make(**changes: Any) -> TrainConfig:
        tiny = {"model": "nano", "model_options": TINY, "batch_size": 8, "steps": 4, "threads": 1}
        return resolve_config("quick", tiny, changes)

    return make
