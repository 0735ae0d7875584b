"""Every pass that is not a resume is a new epoch: in this process, in workers, and in Lightning."""

from __future__ import annotations

import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import avdata
from avdata.errors import AvdataError, UsageError


def open_train(root: Path) -> Any:
    return avdata.open(root, "train", shuffle=True, seed=2)


def orders(root: Path, count: int = 3) -> list[list[str]]:
    """Return the keys of the first epochs in order."""
    data = open_train(root)
    return [[data.key(number) for number in data.order_of(epoch)] for epoch in range(count)]


def key_of(sample: Any) -> str:
    return str(sample.key)


def batch_keys(batches: Any) -> list[str]:
    return [
        key
        for batch in batches
        for key, weight in zip(batch.key, batch.weight, strict=True)
        if weight
    ]  # fmt: skip


def test_each_pass_over_a_dataset_is_a_new_epoch(synthetic_set: Path) -> None:
    data = open_train(synthetic_set)
    assert [[sample.key for sample in data] for _ in range(3)] == orders(synthetic_set)
    data.set_epoch(1)
    assert [sample.key for sample in islice(data, 5)] == orders(synthetic_set)[1][:5]
    assert [sample.key for sample in data] == orders(synthetic_set)[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_pass_over_a_loader_is_a_new_epoch_also_after_an_interrupted_one(
    synthetic_set: Path, workers: int
) -> None:
    expected = orders(synthetic_set, 4)
    data = open_train(synthetic_set)
    loader = data.loader(4, num_workers=workers)
    assert batch_keys(islice(loader, 2)) == expected[0][:8]
    assert batch_keys(loader) == expected[1]
    # Another loader of the dataset, as of `reload_dataloaders_every_n_epochs`.
    assert batch_keys(data.loader(4)) == expected[2]
    assert batch_keys(loader) == expected[3]


def test_epoch_ends_with_its_last_batch(synthetic_set: Path) -> None:
    data = open_train(synthetic_set)
    loader = data.loader(5)
    batches = iter(loader)
    for _ in range(len(loader)):
        assert loader.state_dict()["epoch"] == data.epoch == 0
        next(batches)
    state = loader.state_dict()
    assert (state["epoch"], state["samples"], data.epoch) == (1, 0, 1)
    again = open_train(synthetic_set).loader(5)
    again.load_state_dict(state)
    assert batch_keys(again) == batch_keys(loader) == orders(synthetic_set)[1]


@pytest.mark.parametrize(
    ("start", "is_persistent", "passes"),
    [
        ("fork", False, 3),
        ("fork", True, 3),
        pytest.param("spawn", False, 2, marks=pytest.mark.exhaustive),
        pytest.param("forkserver", True, 2, marks=pytest.mark.exhaustive),
    ],
)
def test_each_pass_of_dataloader_workers_is_a_new_epoch(
    synthetic_set: Path, start: str, is_persistent: bool, passes: int
) -> None:
    data = open_train(synthetic_set)
    # A new process imports torch, which takes seconds.
    loader = DataLoader(
        data, batch_size=None, num_workers=2 if start == "fork" else 1, collate_fn=key_of,
        persistent_workers=is_persistent, multiprocessing_context=start,
    )  # fmt: skip
    got = []
    for _ in range(passes):
        torch.manual_seed(0)  # the workers' seeds are equal in each pass
        got.append(list(loader))
    assert got == orders(synthetic_set, passes)
    assert data.epoch == passes - 1
    if start == "fork":
        data.set_epoch(1)
        assert list(loader) == orders(synthetic_set)[1]
    assert [sample.key for sample in data] == orders(synthetic_set)[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_dataloader_reads_the_next_epoch_after_a_resumed_one(
    synthetic_set: Path, workers: int
) -> None:
    def loader() -> Any:
        return StatefulDataLoader(
            open_train(synthetic_set), batch_size=None, num_workers=workers, collate_fn=key_of
        )

    first, second = loader(), loader()
    list(first)
    head = list(islice(first, 5))
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    expected = orders(synthetic_set)
    assert head + list(second) == expected[1]
    assert list(second) == expected[2]


class KeyRecorder(lightning.LightningModule):
    """Model of one weight that records the keys of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.keys: dict[int, list[str]] = {}

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.keys.setdefault(self.current_epoch, []).extend(batch_keys([batch]))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Reloaded(lightning.LightningDataModule):
    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> Any:
        return self.data.loader(4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", ["limited", "reloaded", "torch"])
def test_lightning_reads_a_new_epoch_in_each_of_its_epochs(
    synthetic_set: Path, tmp_path: Path, source: str
) -> None:
    data, model = open_train(synthetic_set), KeyRecorder()
    options = {
        "limited": {"limit_train_batches": 3},
        "reloaded": {"reload_dataloaders_every_n_epochs": 1},
        "torch": {},
    }[source]
    trainer = lightning.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=3,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    if source == "reloaded":
        trainer.fit(model, datamodule=Reloaded(data))
    else:
        torch_loader = DataLoader(data, 4, collate_fn=avdata.collate)
        trainer.fit(model, data.loader(4) if source == "limited" else torch_loader)
    expected = orders(synthetic_set)
    assert list(model.keys.values()) == [order[:12] if source == "limited" else order for order in expected]


@pytest.mark.parametrize("epoch", [-1, 1.5, True, "2", None])
def test_set_epoch_refuses_what_is_no_epoch(synthetic_set: Path, epoch: Any) -> None:
    data = open_train(synthetic_set)
    for target in (data, data.loader(4), avdata.mix([data])):
        with pytest.raises(UsageError, match=r"Invalid epoch .*: must be an integer of at least 0"):
            target.set_epoch(epoch)


@pytest.mark.parametrize("change", ["none", "missing", "negative", "text"])
def test_load_state_dict_refuses_incomplete_states(synthetic_set: Path, change: str) -> None:
    loader, samples = open_train(synthetic_set).loader(4), iter(open_train(synthetic_set))
    for target, count in ((loader, "samples"), (samples, "given")):
        state: Any = target.state_dict()
        if change == "missing":
            del state[count]
        elif change != "none":
            state[count] = -1 if change == "negative" else "4"
        with pytest.raises(AvdataError, match=r"Invalid state: "):
            target.load_state_dict(None if change == "none" else state)


def test_open_and_loader_refuse_invalid_options_in_sentences(synthetic_set: Path) -> None:
    data = open_train(synthetic_set)
    for size in (2.5, "4", True, 0, None):
        with pytest.raises(UsageError, match=r"Invalid batch_size=.*: must be an integer of at least 1"):
            data.loader(size)
    with pytest.raises(UsageError, match=r"Invalid num_workers=0\.5: must be an integer of at least 0"):
        data.loader(4, num_workers=0.5)
    with pytest.raises(UsageError, match="Unknown split None"):
        avdata.open(synthetic_set, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Invalid sample number slice\(0, 2, None\)"):
        data[0:2]
    with pytest.raises(UsageError, match="Invalid rank='1'"):
        avdata.open(synthetic_set, rank="1", world_size=2)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Invalid rank 2 of 2 processes"):
        avdata.open(synthetic_set, rank=2, world_size=2)


def test_loader_is_pickled_before_and_after_iteration(synthetic_set: Path) -> None:
    loader = open_train(synthetic_set).loader(4)
    copy = pickle.loads(pickle.dumps(loader))
    assert batch_keys(copy) == batch_keys(loader) == orders(synthetic_set)[0]
    assert batch_keys(pickle.loads(pickle.dumps(loader))) == orders(synthetic_set)[1]
