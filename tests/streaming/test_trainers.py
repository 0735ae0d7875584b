"""Lightning, Fabric, plain DDP, accelerate and transformers' Trainer in two processes.

Every sample is read once per epoch, in a new order. One script runs all of them: see `framework_ranks.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import avdata

SCRIPT = Path(__file__).parents[1] / "support" / "framework_ranks.py"


@pytest.fixture(scope="module")
def ranks(synthetic_set: Path, tmp_path_factory: pytest.TempPathFactory, free_port: int) -> list[Any]:
    """What two processes report."""
    folder = tmp_path_factory.mktemp("trainers")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, folder, synthetic_set, str(free_port)], cwd=folder,
        env=variables, text=True, capture_output=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def order(root: Path, epoch: int) -> list[str]:
    data = avdata.open(root, shuffle=True)
    return [data.key(number) for number in data.order_of(epoch)]


def numbers(root: Path, epoch: int) -> list[int]:
    return [int(key[3:]) for key in order(root, epoch)]


def test_lightning_divides_a_dataset_that_was_opened_before_the_ranks(
    synthetic_set: Path, ranks: list[Any]
) -> None:
    for rank, found in enumerate(ranks):
        assert found["lightning"]["trained"] == [order(synthetic_set, epoch)[rank::2] for epoch in range(2)]
    # Lightning validates if `len` is not more than the batches that come.
    validated = Counter(key for found in ranks for key in found["lightning"]["validated"])
    assert validated == Counter(avdata.open(synthetic_set, "val").keys * 2)


def test_fabric_sets_up_the_loader_and_resumes_inside_an_epoch(synthetic_set: Path, ranks: list[Any]) -> None:
    for rank, found in enumerate(ranks):
        expected = [order(synthetic_set, epoch)[rank::2] for epoch in range(2)]
        assert found["fabric"]["epochs"] == expected
        assert found["fabric"]["length"] == -(-len(expected[0]) // 4)


def test_plain_ranks_divide_a_dataset_that_was_pickled_before(synthetic_set: Path, ranks: list[Any]) -> None:
    for rank, found in enumerate(ranks):
        for epoch, keys in enumerate(found["plain"]):
            assert sorted(keys) == sorted(order(synthetic_set, epoch)[rank::2])


@pytest.mark.parametrize("way", ["dispatch", "shard", "workers"])
def test_accelerate_reads_every_sample_in_a_new_order_each_epoch(
    synthetic_set: Path, ranks: list[Any], way: str
) -> None:
    total = avdata.open(synthetic_set).num_samples
    for epoch in range(2):
        # accelerate hands out batches of one order in turn, and repeats the first samples at the end.
        got = Counter(number for rank in ranks for number in rank[way]["epochs"][epoch])
        expected = numbers(synthetic_set, epoch)
        assert set(got) == set(expected)
        assert sum(got.values()) - len(got) < 8
        assert ranks[0][way]["epochs"][epoch][:4] == expected[:4]
        assert ranks[1][way]["epochs"][epoch][:4] == expected[4:8]
    assert ranks[0][way]["length"] == -(-total // 8)


def test_accelerate_returns_the_loader_unchanged_and_skips_and_resumes(
    synthetic_set: Path, ranks: list[Any]
) -> None:
    for rank, found in enumerate(ranks):
        expected = [order(synthetic_set, epoch)[rank::2] for epoch in range(2)]
        assert found["loader"]["plain"] == expected[0]
        assert found["loader"]["epochs"] == expected
        assert found["loader"]["skipped"] == expected[0][8:]


def test_accelerate_refuses_what_is_divided_already(ranks: list[Any]) -> None:
    for rank, found in enumerate(ranks):
        dataset, loader = found["refused"]
        assert f"Cannot divide rank {rank} of 2 again" in dataset
        assert "without rank and world_size" in dataset
        assert "Cannot divide the batches of AVLoader again" in loader
        assert "as_dataloader()" in loader


def test_transformers_trainer_reads_every_sample_each_epoch(synthetic_set: Path, ranks: list[Any]) -> None:
    data = avdata.open(synthetic_set)
    expected = torch.tensor([float(sample.mel.sum()) for sample in data])
    steps = -(-data.num_samples // 8)
    for epoch in range(2):
        seen = [rank["transformers"]["seen"][epoch * steps * 4 : (epoch + 1) * steps * 4] for rank in ranks]
        apart = (torch.tensor(seen).flatten()[:, None] - expected).abs()
        assert apart.min(1).values.max() < 0.1
        assert apart.min(0).values.max() < 0.1
    assert ranks[0]["transformers"]["steps"] == 2 * steps
    assert ranks[0]["transformers"]["eval_loss"] > 0
