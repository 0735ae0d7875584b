"""The smallest set and network that train: 16 × 16 pictures, uneven shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import avdata
from snnergy.training.config import TrainConfig, resolve_config

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


@pytest.fixture
def quick() -> Callable[..., TrainConfig]:
    """Settings of a tiny network with a few changes."""

    def make(**changes: Any) -> TrainConfig:
        return resolve_config(
            "quick", {"model": "nano", "model_options": TINY, "batch_size": 8, "steps": 4}, changes
        )

    return make
