"""Ranks: found when an iteration starts, from each launcher, and in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import avdata
from avdata.errors import UsageError
from avdata.streaming.distributed import resolve_rank


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}, (5, 8, 4)),
        ({"WORLD_SIZE": "1"}, (0, 1, 1)),
        # Lightning's own launcher, on one node and on several.
        ({"WORLD_SIZE": "2", "NODE_RANK": "0", "LOCAL_RANK": "1"}, (1, 2, 1)),
        ({"WORLD_SIZE": "4", "NODE_RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 4, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (3, 4, 1)),
        (
            {
                "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "8",
                "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2",
            },
            (0, 4, 2),
        ),
        # The shell of `salloc` has the number of tasks, but is none of them.
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, (0, 1, 1)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2, 1)),
        # mpirun inside a Slurm job.
        (
            {
                "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
            },
            (5, 8, 1),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "3"}, (1, 3, 1)),
        # A job script that exports WORLD_SIZE for `init_process_group`.
        ({"WORLD_SIZE": "4", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (2, 4, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_resolve_rank_reads_the_environment_of_launchers(
    variables: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    info = resolve_rank()
    assert (info.rank, info.world_size, info.ranks_per_node) == expected
    assert resolve_rank(1, 3).rank == 1
    assert resolve_rank(1, 3).world_size == 3


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "Invalid environment variable RANK='x'"),
        ({"RANK": "1"}, "sets RANK=1, but not WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "sets WORLD_SIZE=2, but not RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "Invalid rank 2 of 2"),
        ({"LOCAL_RANK": "1"}, "sets LOCAL_RANK, but not WORLD_SIZE"),
        ({"WORLD_SIZE": "4", "NODE_RANK": "1", "LOCAL_RANK": "1"}, "sets WORLD_SIZE=4, but not RANK"),
        ({"SLURM_PROCID": "1"}, "sets SLURM_PROCID, but not SLURM_NTASKS"),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, "srun did not start this process"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "sets OMPI_COMM_WORLD_RANK, but not OMPI_COMM_WORLD_SIZE"),
        ({"WORLD_SIZE": "8", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, "sets WORLD_SIZE=8, but not RANK"),
    ],
    ids=str,
)
def test_iteration_raises_if_the_rank_is_unclear(
    synthetic_set: Path, variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    data = avdata.open(synthetic_set)
    assert "AVDataset" in repr(data)
    for action in (lambda: next(iter(data)), lambda: next(iter(data.loader(4))), lambda: len(data)):
        with pytest.raises(UsageError, match=message) as caught:
            action()
        assert caught.value.hint
        assert "world_size" in caught.value.hint
    assert next(iter(avdata.open(synthetic_set, rank=0, world_size=1))).key == data.keys[0]


def test_rank_is_looked_up_when_iteration_starts(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = avdata.open(synthetic_set)
    loader, total = data.loader(2), data.num_samples
    assert (len(data), len(loader)) == (total, -(-total // 2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    keys: Counter[str] = Counter()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert (data.rank, data.world_size, len(data)) == (rank, 2, -(-total // 2))
        batches = list(loader)
        assert len(batches) == len(loader) == -(-total // 4)
        for batch in batches:
            keys.update(key for key, weight in zip(batch.key, batch.weight, strict=True) if weight)
    assert keys == Counter(data.keys)


def test_len_is_the_number_of_samples_of_the_rank(synthetic_set: Path) -> None:
    parts = [avdata.open(synthetic_set, rank=rank, world_size=3) for rank in range(3)]
    assert [len(part) for part in parts] == [len(list(part)) for part in parts]
    assert {part.num_samples for part in parts} == {len(parts[0].keys)}


def run(script: str, folder: Path, *arguments: object) -> list[Any]:
    """Run a script that starts two ranks; return the content of the files that they write."""
    path = folder / "script.py"
    path.write_text(script)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, path, folder, *map(str, arguments)], env=variables, capture_output=True, text=True,
        check=False, timeout=500, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


SPAWN = """
import json, sys
from pathlib import Path
import torch.distributed as dist, torch.multiprocessing as mp
from torch.utils.data import DataLoader
import avdata

def key(sample):
    return sample.key, sample.weight

def main(rank, data, folder, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    def keys(batches):
        return [key for batch in batches for key, weight in zip(batch.key, batch.weight) if weight]
    def samples(context):
        loader = DataLoader(
            data, batch_size=None, num_workers=2, collate_fn=key, multiprocessing_context=context
        )
        return [key for key, weight in loader if weight]
    loader = data.loader(4)
    found = [keys(loader), keys(loader), samples("fork"), samples("spawn"), samples("fork")]
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()

if __name__ == "__main__":
    folder, root, port = sys.argv[1:]
    mp.spawn(main, args=(avdata.open(root, shuffle=True), folder, port), nprocs=2)
"""


@pytest.mark.exhaustive  # test_trainers.py forks such ranks from one process
def test_ranks_of_spawn_divide_a_dataset_that_was_opened_before(
    synthetic_set: Path, tmp_path: Path, free_port: int
) -> None:
    ranks = run(SPAWN, tmp_path, synthetic_set, free_port)
    data = avdata.open(synthetic_set, shuffle=True)
    for epoch, parts in enumerate(zip(*ranks, strict=True)):
        order = [data.key(number) for number in data.order_of(epoch)]
        # Also of the same epoch: each rank has every second sample of its order.
        for rank, part in enumerate(parts):
            assert sorted(part) == sorted(order[rank::2])


LIGHTNING = """
import json, sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import lightning, torch
import avdata

folder, root = sys.argv[1:]
train = avdata.open(root, "train", shuffle=True)
loader, total = train.loader(4), len(train.keys)
val = torch.utils.data.DataLoader(avdata.open(root, "val"), batch_size=1, collate_fn=avdata.collate)
len(loader)

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.keys, self.validated = torch.nn.Parameter(torch.zeros(1)), [], []

    def training_step(self, batch, number):
        self.keys.append([self.current_epoch, [k for k, w in zip(batch.key, batch.weight) if w]])
        return self.weight.sum() * batch.mel.mean()

    def validation_step(self, batch, number):
        self.validated += [k for k, w in zip(batch.key, batch.weight) if w]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    model = Model()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(model, loader, val)
    Path(folder, f"rank-{trainer.global_rank}.json").write_text(json.dumps([model.keys, model.validated]))
"""


@pytest.mark.exhaustive  # test_trainers.py forks such ranks from one process
def test_ranks_of_lightning_divide_a_dataset_that_was_opened_before(
    synthetic_set: Path, tmp_path: Path
) -> None:
    ranks = run(LIGHTNING, tmp_path, synthetic_set)
    data = avdata.open(synthetic_set, shuffle=True)
    for epoch in range(2):
        order = [data.key(number) for number in data.order_of(epoch)]
        for rank, (steps, _) in enumerate(ranks):
            assert [key for at, keys in steps if at == epoch for key in keys] == order[rank::2]
    # Lightning validates if `len` is not more than the batches that come.
    validated = Counter(key for _, keys in ranks for key in keys)
    assert validated == Counter(avdata.open(synthetic_set, "val").keys * 2)


class Batches(IterableDataset):
    """Dataset of a user around the loader."""

    def __init__(self, root: Path) -> None:
        self.loader = avdata.open(root, shuffle=True).loader(4, num_workers=0)

    def __iter__(self) -> Any:
        for batch in self.loader:
            yield [key for key, weight in zip(batch.key, batch.weight, strict=True) if weight]
        with pytest.raises(UsageError, match="no state in a worker"):
            self.loader.state_dict()


@pytest.mark.parametrize(("start", "is_persistent"), [("fork", False), ("fork", True)])
def test_loader_divides_batches_among_workers_of_a_dataloader(
    synthetic_set: Path, start: str, is_persistent: bool
) -> None:
    data = avdata.open(synthetic_set, shuffle=True)
    loader = DataLoader(
        Batches(synthetic_set), batch_size=None, num_workers=2, multiprocessing_context=start,
        persistent_workers=is_persistent,
    )  # fmt: skip
    for epoch in range(2):
        order = [data.key(number) for number in data.order_of(epoch)]
        assert [key for keys in loader for key in keys] == order
    assert get_worker_info() is None
