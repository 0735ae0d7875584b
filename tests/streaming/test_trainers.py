"""accelerate and transformers' Trainer, in two processes: every sample once per epoch, in a new order."""

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

SCRIPT = """
import json, sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch
import avdata

def collate(samples):
    return {"number": torch.tensor([int(sample.key[3:]) for sample in samples]), "weight": torch.tensor(
        [sample.weight for sample in samples])}

def accelerate(root, dispatch, workers):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
    data = avdata.open(root, shuffle=True)
    loader = accelerator.prepare(
        torch.utils.data.DataLoader(data, batch_size=4, collate_fn=collate, num_workers=workers)
    )
    epochs = []
    for epoch in range(2):
        epochs.append([number for batch in loader for number in batch["number"].tolist()])
    own = [int(key[3:]) for batch in accelerator.prepare(data.loader(4)) for key in batch.key]
    wrong = accelerator.prepare(torch.utils.data.DataLoader(
        avdata.open(root, rank=accelerator.process_index, world_size=2), batch_size=4, collate_fn=collate))
    message = ""
    if not dispatch:
        try:
            next(iter(wrong))
        except avdata.UsageError as error:
            message = str(error)
    return {"epochs": epochs, "own": own, "length": len(loader), "message": message}

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.seen = torch.nn.Linear(32 * 32, 2), []

    def forward(self, mel=None, labels=None):
        if self.training:
            self.seen += mel.sum((1, 2, 3, 4)).tolist()
        logits = self.linear(mel.mean((1, 2)).flatten(1))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

def trainer(root, folder):
    from transformers import Trainer, TrainingArguments
    options = TrainingArguments(
        folder, per_device_train_batch_size=4, num_train_epochs=2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, logging_steps=1000,
    )
    net = Net()
    run = Trainer(net, options, train_dataset=avdata.open(root, shuffle=True, as_dict=True))
    run.train()
    measured = run.evaluate(avdata.open(root, "val", as_dict=True))
    return {"seen": net.seen, "steps": run.state.global_step, "eval_loss": measured["eval_loss"]}

if __name__ == "__main__":
    folder, root, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    found = {
        "dispatch": accelerate(root, True, 0), "shard": accelerate(root, False, 0),
        "workers": accelerate(root, True, 1), "trainer": trainer(root, str(folder / "out")),
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(synthetic_set: Path, tmp_path_factory: pytest.TempPathFactory, free_port: int) -> list[Any]:
    """What two processes report."""
    folder = tmp_path_factory.mktemp("trainers")
    (folder / "script.py").write_text(SCRIPT)
    variables = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, folder / "script.py", folder, synthetic_set, str(rank)], cwd=folder, text=True,
            env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    messages = [process.communicate(timeout=500)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], messages[0][-3000:] + messages[1][-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def numbers(data: Any, epoch: int) -> list[int]:
    return [int(data.key(number)[3:]) for number in data.order_of(epoch)]


@pytest.mark.parametrize("way", ["dispatch", "shard", "workers"])
def test_accelerate_reads_every_sample_in_a_new_order_each_epoch(
    synthetic_set: Path, ranks: list[Any], way: str
) -> None:
    data = avdata.open(synthetic_set, shuffle=True)
    for epoch in range(2):
        # accelerate hands out batches of one order in turn, and repeats the first samples at the end.
        got = Counter(number for rank in ranks for number in rank[way]["epochs"][epoch])
        assert set(got) == set(numbers(data, epoch))
        assert sum(got.values()) - len(got) < 8
        assert ranks[0][way]["epochs"][epoch][:4] == numbers(data, epoch)[:4]
        assert ranks[1][way]["epochs"][epoch][:4] == numbers(data, epoch)[4:8]
    assert ranks[0][way]["length"] == -(-data.num_samples // 8)


def test_accelerate_leaves_the_loader_as_it_is(synthetic_set: Path, ranks: list[Any]) -> None:
    own = Counter(number for rank in ranks for number in rank["dispatch"]["own"])
    assert set(own) == set(numbers(avdata.open(synthetic_set), 0))


def test_accelerate_refuses_a_dataset_of_one_rank(ranks: list[Any]) -> None:
    for rank, found in enumerate(ranks):
        assert f"Cannot divide rank {rank} of 2 again" in found["shard"]["message"]
        assert "without rank and world_size" in found["shard"]["message"]


def test_transformers_trainer_reads_every_sample_each_epoch(synthetic_set: Path, ranks: list[Any]) -> None:
    data = avdata.open(synthetic_set)
    expected = torch.tensor([float(sample.mel.sum()) for sample in data])
    steps = -(-data.num_samples // 8)
    for epoch in range(2):
        seen = [rank["trainer"]["seen"][epoch * steps * 4 : (epoch + 1) * steps * 4] for rank in ranks]
        apart = (torch.tensor(seen).flatten()[:, None] - expected).abs()
        assert apart.min(1).values.max() < 0.1
        assert apart.min(0).values.max() < 0.1
    assert ranks[0]["trainer"]["steps"] == 2 * steps
    assert ranks[0]["trainer"]["eval_loss"] > 0
