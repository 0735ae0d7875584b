"""The smallest set and network that train: 16 × 16 pictures, uneven shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import avdata
from snnergy.settings import TrainConfig, settle

if "PYTEST_XDIST_WORKER" in os.environ:
    # Every worker has a core; threads of their own would wait for those of the others.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

TINY = {"dims": [4, 8, 8], "heads": [1, 1, 1]}
SMALL_PICTURES = {
    "audio": {"n_mels": 16, "hop": 320},
    "video": {"size": 16},
    "shards": {"samples": 5},
}


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory, synthetic_mock: Path) -> Path:
    """32, 4 and 8 samples; the train split in seven shards, the last one of two samples."""
    out = tmp_path_factory.mktemp("sets") / "tiny"
    avdata.prepare("synthetic", source=synthetic_mock, out=out, config=SMALL_PICTURES, workers=0)
    return out


@pytest.fixture
def quick() -> Callable[..., TrainConfig]:
    """Settings of a tiny network with a few changes."""

    def make(**changes: Any) -> TrainConfig:
        return settle("quick", {"model": TINY, "batch_size": 8, "steps": 4}, changes)

    return make
