"""Datasets in torch's and torchdata's loaders, Lightning checkpoints, and several processes."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections import Counter
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import lightning
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import avdata
from avdata.errors import AvdataError
from avdata.streaming.dataset import AVDataset


def open_train(root: Path, **options: Any) -> Any:
    return avdata.open(root, "train", shuffle=True, seed=2, **options)


def key_of(samples: list[Any]) -> list[str]:
    return [sample.key for sample in samples]


def keys_and_weights(samples: list[Any]) -> list[tuple[str, float]]:
    return [(sample.key, sample.weight) for sample in samples]


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_dataloader_divides_samples_among_workers(synthetic_set: Path, workers: int) -> None:
    data = open_train(synthetic_set)
    loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=key_of)
    got = [key for keys in loader for key in keys]
    assert Counter(got) == Counter(data.keys)


class Wrapper(IterableDataset[Any]):
    """Dataset of a user that yields the samples of another one."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Any:
        yield from self.data


@pytest.mark.filterwarnings("error:Length of IterableDataset")
@pytest.mark.parametrize(
    ("size", "world", "drop_last", "wrap"),
    [
        (8, 1, False, None),
        (5, 2, False, None),
        (8, 1, True, None),
        (50, 1, False, None),
        (8, 1, False, Wrapper),
    ],
)
def test_batches_of_workers_are_those_without_workers(
    synthetic_set: Path, size: int, world: int, drop_last: bool, wrap: Any
) -> None:
    def loader(workers: int) -> Any:
        data = open_train(synthetic_set, rank=world - 1, world_size=world)
        return DataLoader(
            wrap(data) if wrap else data, size, num_workers=workers, collate_fn=keys_and_weights,
            drop_last=drop_last,
        )  # fmt: skip

    expected, divided = loader(0), loader(2)
    passes = [list(expected), list(expected)]
    assert [list(divided), list(divided)] == passes
    assert wrap or len(divided) == len(passes[0])


def test_workers_divide_batches_of_all_processes_of_accelerate(synthetic_set: Path) -> None:
    data = open_train(synthetic_set)
    parts = []
    for rank in range(2):
        shard = IterableDatasetShard(open_train(synthetic_set), 4, num_processes=2, process_index=rank)
        parts.append(list(DataLoader(shard, 4, num_workers=2, collate_fn=key_of)))
    order = [data.key(number) for number in data.order_of(0)]
    pairs = list(zip(*parts, strict=True))
    assert len(pairs) == -(-len(order) // 8)
    assert [key for pair in pairs for keys in pair for key in keys][: len(order)] == order


def test_workers_divide_single_samples_without_batches(synthetic_set: Path) -> None:
    data = open_train(synthetic_set)
    loader = DataLoader(data, batch_size=None, num_workers=2, collate_fn=attrgetter("key"))
    assert list(loader) == [data.key(number) for number in data.order_of(0)]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_set_epoch_reaches_persistent_workers(synthetic_set: Path, start: str) -> None:
    data, alone = open_train(synthetic_set), open_train(synthetic_set)
    loader = DataLoader(
        data, batch_size=None, num_workers=1, persistent_workers=True, collate_fn=attrgetter("key"),
        multiprocessing_context=start,
    )  # fmt: skip
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        alone.set_epoch(epoch)
        assert list(loader) == [alone.key(number) for number in alone.epoch_order()]


def test_set_epoch_of_an_unpickled_dataset_reaches_its_own_workers(synthetic_set: Path) -> None:
    first = open_train(synthetic_set)
    data = pickle.loads(pickle.dumps(first))
    loader = DataLoader(
        data, batch_size=None, num_workers=1, persistent_workers=True, collate_fn=attrgetter("key")
    )
    passes = [list(loader)]
    data.set_epoch(1)
    passes.append(list(loader))
    assert passes[0] != passes[1]
    assert first.epoch == 0


def test_loader_ignores_pin_memory_without_cuda(synthetic_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loader = open_train(synthetic_set).loader(4, pin_memory=True)
    assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_dataloader_resumes_from_its_state(synthetic_set: Path, workers: int) -> None:
    def loader() -> Any:
        return StatefulDataLoader(
            open_train(synthetic_set), batch_size=3, num_workers=workers, collate_fn=key_of
        )

    expected = list(loader())
    first = loader()
    steps = iter(first)
    head = [next(steps) for _ in range(3)]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = loader()
    second.load_state_dict(state)
    assert head + list(second) == expected


def test_workers_refuse_a_state_of_another_batch_size(synthetic_set: Path) -> None:
    def loader(size: int) -> Any:
        return StatefulDataLoader(open_train(synthetic_set), size, num_workers=2, collate_fn=key_of)

    first, second = loader(3), loader(4)
    next(iter(first))
    second.load_state_dict(first.state_dict())
    with pytest.raises(AvdataError, match="the batch size is 4, the state has 3"):
        list(second)


def test_stateful_dataloader_resumes_without_rereading(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = StatefulDataLoader(open_train(synthetic_set), batch_size=3, collate_fn=key_of)
    steps = iter(first)
    head = [key for _ in range(3) for key in next(steps)]
    second = StatefulDataLoader(open_train(synthetic_set), batch_size=3, collate_fn=key_of)
    second.load_state_dict(first.state_dict())
    read: list[str] = []
    sample = AVDataset.sample

    def recorded(self: AVDataset, number: int, **options: Any) -> Any:
        read.append(self.key(number))
        return sample(self, number, **options)

    monkeypatch.setattr(AVDataset, "sample", recorded)
    rest = [key for keys in second for key in keys]
    assert read == rest
    assert not set(head) & set(rest)


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_dataloader_returns_each_sample_once_over_ranks_of_equal_length(
    synthetic_set: Path, workers: int
) -> None:
    parts = [
        list(
            DataLoader(
                open_train(synthetic_set, rank=rank, world_size=3),
                batch_size=1,
                num_workers=workers,
                collate_fn=lambda samples: [(one.key, one.weight) for one in samples],
            )
        )
        for rank in range(3)
    ]
    assert len({len(batches) for batches in parts}) == 1
    everything = [sample for batches in parts for batch in batches for sample in batch]
    expected = open_train(synthetic_set)
    assert sorted(key for key, weight in everything if weight) == sorted(expected.keys)
    assert len(everything) - len(expected) == -len(expected) % 3 > 0


def test_loader_refuses_a_state_of_other_clips_with_equal_settings(
    synthetic_set: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(synthetic_set, tmp_path / "set")
    index = pq.read_table(other / "index.parquet")
    column = index.column_names.index("sha256")
    reverse = index["sha256"].take(list(reversed(range(len(index)))))
    pq.write_table(index.set_column(column, index.schema.field(column), reverse), other / "index.parquet")
    info = json.loads((other / "dataset.json").read_text())
    content = (other / "index.parquet").read_bytes()
    info["index"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (other / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(AvdataError, match="State mismatch: index"):
        open_train(other).loader(4).load_state_dict(open_train(synthetic_set).loader(4).state_dict())


def test_iterator_refuses_a_state_of_another_world_size(synthetic_set: Path) -> None:
    state = iter(open_train(synthetic_set, rank=0, world_size=2)).state_dict()
    with pytest.raises(AvdataError, match="world_size"):
        iter(open_train(synthetic_set)).load_state_dict(state)


def test_loader_state_is_small_json(synthetic_set: Path) -> None:
    loader = open_train(synthetic_set).loader(4)
    next(iter(loader))
    text = json.dumps(loader.state_dict())
    assert len(text) < 1000
    open_train(synthetic_set).loader(4).load_state_dict(json.loads(text))


class KeyRecorder(lightning.LightningModule):
    """Model of one weight that records the keys of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.keys: list[list[str]] = []

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.keys.append(list(batch.key))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_inside_an_epoch_with_the_next_batch(
    synthetic_set: Path, tmp_path: Path, workers: int
) -> None:
    expected = KeyRecorder()
    trainer(tmp_path, max_epochs=2).fit(expected, open_train(synthetic_set).loader(4, num_workers=workers))
    head = KeyRecorder()
    keeper = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1
    )
    trainer(tmp_path, max_epochs=1, callbacks=[keeper]).fit(
        head, open_train(synthetic_set).loader(4, num_workers=workers)
    )
    rest = KeyRecorder()
    trainer(tmp_path, max_epochs=2).fit(
        rest, open_train(synthetic_set).loader(4, num_workers=workers), ckpt_path=tmp_path / "step=3.ckpt"
    )
    assert len(head.keys) > 3
    assert head.keys[:3] + rest.keys == expected.keys


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_with_all_samples_of_a_torch_loader_with_workers(
    synthetic_set: Path, tmp_path: Path
) -> None:
    data, model = open_train(synthetic_set), KeyRecorder()
    size = next(size for size in range(2, 20) if 0 < data.num_samples % size < size - 1)
    loader = DataLoader(data, size, num_workers=2, collate_fn=avdata.collate)
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(model, loader)
    assert Counter(key for keys in model.keys for key in keys) == Counter(data.keys * 2)
    half = len(model.keys) // 2
    assert model.keys[:half] != model.keys[half:]


def read_rank(root: Path, state: Any, steps: int | None) -> dict[str, Any]:
    """Read at most `steps` batches of this rank, from a state on; return keys, batches and the state."""
    loader = avdata.open(root, "train", shuffle=True, seed=4).loader(2, num_workers=3)
    if state is not None:
        loader.load_state_dict(json.loads(state))
    batches = list(islice(loader, steps))
    keys = [
        key
        for batch in batches
        for key, weight in zip(batch.key, batch.weight, strict=True)
        if weight
    ]  # fmt: skip
    return {"keys": keys, "steps": len(batches), "state": json.dumps(loader.state_dict())}


def test_loader_resumes_mid_epoch_on_fewer_ranks(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ranks(world: int, state: Any, steps: int | None) -> list[dict[str, Any]]:
        # The environment of torchrun on two nodes. The ranks of a loader do not communicate.
        found = []
        for rank in range(world):
            for name, number in (("RANK", rank), ("WORLD_SIZE", world), ("GROUP_WORLD_SIZE", 2)):
                monkeypatch.setenv(name, str(number))
            found.append(read_rank(synthetic_set, state, steps))
        return found

    four = ranks(4, None, steps=2)
    assert len({one["state"] for one in four}) == 1
    two = ranks(2, four[0]["state"], steps=None)
    assert len({one["steps"] for one in two}) == 1
    got = Counter(key for one in four + two for key in one["keys"])
    assert got == Counter(open_train(synthetic_set).keys)
