"""`avdata.open`: types and shapes of batches, one pass over all samples per epoch, deterministic order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.shards.reader import read_info


def keys(root: Path, **options: object) -> list[str]:
    loader = avdata.open(root, "train", shuffle=True, seed=3, **options).loader(batch_size=5)  # type: ignore[arg-type]
    return [key for batch in loader for key, weight in zip(batch.key, batch.weight, strict=True) if weight]


def test_loader_returns_batches_of_documented_types_and_shapes(cremad_set: Path) -> None:
    batch = next(iter(avdata.open(cremad_set, split="train").loader(batch_size=4)))
    assert (batch.mel.dtype, batch.frames.dtype, batch.label.dtype) == (
        torch.float32,
        torch.uint8,
        torch.int64,
    )
    assert batch.mel.shape == (4, 4, 1, 128, 128)
    assert batch.frames.shape == (4, 4, 3, 48, 48)
    assert len(batch.key) == 4


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_loader_returns_every_sample_once_and_padding_with_weight_0(
    synthetic_set: Path, workers: int
) -> None:
    data = avdata.open(synthetic_set, "train", shuffle=True)
    loader = data.loader(batch_size=5, num_workers=workers)
    got = list(loader)
    assert len(got) == len(loader)
    real = [key for batch in got for key, weight in zip(batch.key, batch.weight, strict=True) if weight]
    assert Counter(real) == Counter(set(real))
    assert len(real) == len(data) == read_info(synthetic_set)["splits"]["train"]["samples"]


def test_loader_divides_an_epoch_evenly_among_ranks(synthetic_set: Path) -> None:
    parts = [
        list(avdata.open(synthetic_set, "train", rank=r, world_size=3).loader(batch_size=2)) for r in range(3)
    ]
    assert len({len(part) for part in parts}) == 1
    real = [
        key
        for part in parts
        for batch in part
        for key, weight in zip(batch.key, batch.weight, strict=True)
        if weight
    ]
    assert len(real) == len(set(real)) == len(avdata.open(synthetic_set, "train"))


@pytest.mark.parametrize("ranks_of", [(2, 2), (4, 2), (2, 1, 3)])
def test_open_accepts_nodes_with_different_numbers_of_ranks(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch, ranks_of: tuple[int, ...]
) -> None:
    got: list[str] = []
    for node, local in enumerate(ranks_of):
        for rank in range(sum(ranks_of[:node]), sum(ranks_of[: node + 1])):
            told = {"RANK": rank, "WORLD_SIZE": sum(ranks_of), "LOCAL_WORLD_SIZE": local}
            for name, value in {**told, "GROUP_WORLD_SIZE": len(ranks_of)}.items():
                monkeypatch.setenv(name, str(value))
            data = avdata.open(synthetic_set, "train")
            got += [
                data.key(number)
                for number in data.epoch_order()[data.rank_info().plan_rank :: data.world_size]
            ]
    assert sorted(got) == sorted(avdata.open(synthetic_set, "train", rank=0, world_size=1).keys)


def test_open_assigns_the_same_spans_to_ranks_of_a_node(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seats = []
    for rank in range(4):
        told = {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 2}
        for name, value in told.items():
            monkeypatch.setenv(name, str(value))
        seats.append(avdata.open(synthetic_set, "train").rank_info().plan_rank)
    assert seats == [0, 2, 1, 3]


def test_loader_repeats_a_pass_that_ended_at_its_last_batch(synthetic_set: Path) -> None:
    loader = avdata.open(synthetic_set, "train", shuffle=True).loader(batch_size=5)
    passes = []
    for _ in range(2):
        loader.set_epoch(0)
        # `zip` does not ask the loader for what comes after its last batch.
        passes.append([batch.key for _, batch in zip(range(len(loader)), loader, strict=False)])
    assert passes[0] == passes[1]


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seed": 0.5}, {"block": 0}, {"canonical_nodes": -1}, {"block": 2.5}]
)
def test_open_refuses_invalid_order_options(synthetic_set: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        avdata.open(synthetic_set, "train", shuffle=True, **wrong)


def test_getitem_of_a_local_dataset_does_not_reread_the_index(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = avdata.open(synthetic_set, "train")
    monkeypatch.setattr("avdata.streaming.shard_reader.index_batches", None)
    assert data[0].key == data.keys[0]


def test_order_depends_only_on_seed_and_epoch(synthetic_set: Path) -> None:
    assert keys(synthetic_set) == keys(synthetic_set)
    data = avdata.open(synthetic_set, "train", shuffle=True, seed=3)
    data.set_epoch(1)
    other = [key for batch in data.loader(batch_size=5) for key in batch.key]
    assert other[:20] != keys(synthetic_set)[:20]


def test_loader_resumes_from_its_state(synthetic_set: Path) -> None:
    def loader() -> object:
        return avdata.open(synthetic_set, "train", shuffle=True, seed=1).loader(batch_size=4, num_workers=2)

    whole = [batch.key for batch in loader()]  # type: ignore[attr-defined]
    first = loader()
    iterator = iter(first)  # type: ignore[call-overload]
    head = [next(iterator).key for _ in range(3)]
    state = first.state_dict()  # type: ignore[attr-defined]
    second = loader()
    second.load_state_dict(state)  # type: ignore[attr-defined]
    assert head + [batch.key for batch in second] == whole  # type: ignore[attr-defined]


def test_loader_state_is_independent_of_other_loaders(synthetic_set: Path) -> None:
    data = avdata.open(synthetic_set, "train", shuffle=True)
    loader = data.loader(batch_size=5)
    batches = iter(loader)
    head = [next(batches).key]
    list(data.loader(batch_size=5))
    state = loader.state_dict()
    rest = [batch.key for batch in batches]
    again = avdata.open(synthetic_set, "train", shuffle=True).loader(batch_size=5)
    again.load_state_dict(state)
    # A pass of a third one, between loading and going on.
    list(again.dataset.loader(batch_size=7))
    assert [batch.key for batch in again] == rest
    assert head + rest == [
        batch.key for batch in avdata.open(synthetic_set, "train", shuffle=True).loader(batch_size=5)
    ]
    # The passes of the first loader and of the second.
    assert data.epoch == 2


def test_open_normalizes_mels_by_the_train_split(synthetic_set: Path) -> None:
    batches = list(avdata.open(synthetic_set, "train").loader(batch_size=8))
    mel = torch.cat([batch.mel[batch.weight > 0] for batch in batches])
    assert abs(float(mel.mean())) < 0.01
    assert float(mel.std()) == pytest.approx(1, abs=0.02)


def test_torch_dataloader_returns_every_sample(synthetic_set: Path) -> None:
    data = avdata.open(synthetic_set, "test")
    got = [sample.key for sample in DataLoader(data, batch_size=None, num_workers=0)]
    assert sorted(got) == sorted(sample.key for sample in data)
    assert len(got) == len(data)


def test_find_returns_the_sample_of_a_key(synthetic_set: Path) -> None:
    data = avdata.open(synthetic_set, "val")
    first = data[0]
    assert np.array_equal(data.find(first.key).mel, first.mel)


def test_loader_returns_step_labels(ave_set: Path) -> None:
    for batch in avdata.open(ave_set, "train").loader(batch_size=4):
        assert batch.step_labels is not None
        for key, label, steps in zip(batch.key, batch.label, batch.step_labels, strict=True):
            # [start, end) of the mock's rows: 4 … 10 for every third plain row.
            if key.endswith("-000000mock"):
                assert steps.tolist() == [28] * 4 + [int(label)] * 6
            if key.endswith("zerolength0"):
                assert steps.tolist() == [28] * 10


def test_open_names_unknown_splits_and_folders(synthetic_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown split 'dev'"):
        avdata.open(synthetic_set, "dev")
    with pytest.raises(AvdataError, match="not a prepared dataset"):
        avdata.open(tmp_path)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_loader_returns_identical_batches_for_any_number_of_workers(
    synthetic_set: Path, cremad_set: Path, workers: int
) -> None:
    for root in (synthetic_set, cremad_set):  # arrays, and strips
        data = avdata.open(root, "train", shuffle=True, seed=3)
        alone = list(data.loader(5, num_workers=0))
        data.set_epoch(0)
        for one, other in zip(alone, data.loader(5, num_workers=workers), strict=True):
            assert one.key == other.key
            assert torch.equal(one.mel, other.mel)
            assert torch.equal(one.frames, other.frames)
