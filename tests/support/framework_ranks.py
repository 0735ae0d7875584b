"""Frameworks in two ranks: what each rank reads, as JSON. tests/streaming/test_trainers.py runs this script.

One process imports the frameworks, which takes most of the time, opens a dataset, and forks the ranks.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import traceback
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import avdata

Keys = list[str]


def keys(batches: Any) -> Keys:
    return [
        key for batch in batches for key, weight in zip(batch.key, batch.weight, strict=True) if weight
    ]  # fmt: skip


def new_loader(root: str) -> Any:
    return avdata.open(root, shuffle=True).loader(4)


class Model(lightning.LightningModule):
    """Model of one weight that records the keys of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[Keys] = []
        self.validated: Keys = []

    def on_train_epoch_start(self) -> None:
        self.trained.append([])

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.trained[-1] += keys([batch])
        return self.weight.sum() * batch.mel.mean()

    def validation_step(self, batch: Any, number: int) -> None:
        self.validated += keys([batch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run_lightning(loader: Any, val: Any) -> dict[str, Any]:
    model = Model()
    lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, loader, DataLoader(val, batch_size=1, collate_fn=avdata.collate))  # fmt: skip
    return {"trained": model.trained, "validated": model.validated}


def run_fabric(root: str, folder: Path) -> dict[str, Any]:
    fabric = lightning.Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    loader = fabric.setup_dataloaders(new_loader(root).as_dataloader())
    epochs = [keys(loader), keys(islice(loader, 2))]
    fabric.save(folder / "fabric.ckpt", {"loader": loader})
    again = fabric.setup_dataloaders(new_loader(root).as_dataloader())
    fabric.load(folder / "fabric.ckpt", {"loader": again})
    return {"epochs": [epochs[0], epochs[1] + keys(again)], "length": len(loader)}


def run_plain(pickled: bytes) -> list[Keys]:
    """Read a dataset that was opened before the ranks exist, as `mp.spawn` passes it."""
    data = pickle.loads(pickled)
    loader = data.loader(4)
    workers = DataLoader(data, batch_size=None, num_workers=2, collate_fn=lambda sample: sample)
    return [keys(loader), keys(loader), [sample.key for sample in workers if sample.weight]]


def collate(samples: list[Any]) -> dict[str, torch.Tensor]:
    return {"number": torch.tensor([int(sample.key[3:]) for sample in samples])}


def run_accelerate(root: str, dispatch: bool, workers: int = 0) -> dict[str, Any]:
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch))
    data = avdata.open(root, shuffle=True)
    loader = accelerator.prepare(DataLoader(data, batch_size=4, collate_fn=collate, num_workers=workers))
    epochs = [[number for batch in loader for number in batch["number"].tolist()] for _ in range(2)]
    return {"epochs": epochs, "length": len(loader)}


def refusals(root: str) -> list[str]:
    """Return the messages about datasets that accelerate would divide a second time."""
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=False))
    own = avdata.open(root, rank=accelerator.process_index, world_size=2)
    messages = []
    for dataset, size in ((own, 4), (new_loader(root), 1)):
        try:
            next(iter(accelerator.prepare(DataLoader(dataset, batch_size=size, collate_fn=collate))))
        except avdata.UsageError as error:
            messages.append(str(error))
    return messages


def run_accelerate_loader(root: str, folder: Path) -> dict[str, Any]:
    accelerator = Accelerator(cpu=True)
    plain, loader = (
        accelerator.prepare(new_loader(root)),
        accelerator.prepare(new_loader(root).as_dataloader()),
    )
    epochs = [keys(loader), keys(islice(loader, 2))]
    accelerator.save_state(str(folder / "state"))
    accelerator.wait_for_everyone()
    skipping = skip_first_batches(new_loader(root).as_dataloader(), 2)
    # A new accelerator would load the state into the loader that it prepared first.
    accelerator.free_memory()
    again = accelerator.prepare(new_loader(root).as_dataloader())
    accelerator.load_state(str(folder / "state"))
    return {
        "plain": keys(plain), "epochs": [epochs[0], epochs[1] + keys(again)], "skipped": keys(skipping),
    }  # fmt: skip


class Net(torch.nn.Module):
    """Classifier that records the sum of each mel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.seen = torch.nn.Linear(32 * 32, 2), []

    def forward(self, mel: Any = None, labels: Any = None) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen += mel.sum((1, 2, 3, 4)).tolist()
        logits = self.linear(mel.mean((1, 2)).flatten(1))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def run_transformers(root: str, folder: Path) -> dict[str, Any]:
    options = TrainingArguments(
        str(folder / "out"), per_device_train_batch_size=4, num_train_epochs=2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, logging_steps=1000,
    )  # fmt: skip
    net = Net()
    run = Trainer(net, options, train_dataset=avdata.open(root, shuffle=True, as_dict=True))
    run.train()
    measured = run.evaluate(avdata.open(root, "val", as_dict=True))
    return {"seen": net.seen, "steps": run.state.global_step, "eval_loss": measured["eval_loss"]}


def run_rank(rank: int, folder: Path, root: str, port: str, opened: tuple[Any, Any, bytes]) -> None:
    loader, val, pickled = opened
    # The environment of a process that Lightning's own launcher started.
    os.environ |= {
        "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }  # fmt: skip
    found: dict[str, Any] = {"lightning": run_lightning(loader, val), "fabric": run_fabric(root, folder)}
    # The rank is known to torch.distributed alone.
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    found["plain"] = run_plain(pickled)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    found |= {
        "dispatch": run_accelerate(root, True), "shard": run_accelerate(root, False),
        "workers": run_accelerate(root, True, 1), "refused": refusals(root),
        "loader": run_accelerate_loader(root, folder), "transformers": run_transformers(root, folder),
    }  # fmt: skip
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    folder, root, port = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    data = avdata.open(root, shuffle=True)
    opened = (data.loader(4), avdata.open(root, "val"), pickle.dumps(data))
    len(opened[0])
    for rank in range(2):
        if os.fork() == 0:
            try:
                run_rank(rank, folder, root, port, opened)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    return max(os.wait()[1] for _ in range(2))


if __name__ == "__main__":
    sys.exit(bool(main()))
