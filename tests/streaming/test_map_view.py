"""`AVDataset.as_map`: samples by number, slice, list and key, under torch's samplers and workers."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.dataset_servers import Site
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    Subset,
    WeightedRandomSampler,
    random_split,
)

import avdata
from avdata.errors import UsageError
from avdata.streaming.batch import AVBatch, AVSample


def keys_of(loader: Any) -> list[str]:
    return [key for batch in loader for key in batch.key]


def draw(sample: AVSample, generator: torch.Generator) -> tuple[str, float]:
    return sample.key, float(torch.rand((), generator=generator))


def unchanged(items: list[Any]) -> list[Any]:
    return items


def test_view_returns_samples_by_number_and_key(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set, shuffle=True)
    view, last = dataset.as_map(), dataset.num_rows - 1
    assert len(view) == dataset.num_rows
    assert view.keys == dataset.keys
    for index, number in (
        (3, 3), (-1, last), (np.int64(2), 2), (torch.tensor(4), 4), (dataset.keys[5], 5), (-len(view), 0),
    ):  # fmt: skip
        sample = view[index]
        assert sample.key == dataset.keys[number]
        assert torch.equal(sample.mel, dataset[number].mel)
        assert torch.equal(sample.frames, dataset[number].frames)
    assert [sample.key for sample in view] == dataset.keys


@pytest.mark.parametrize(
    "index",
    [slice(2, 6), slice(None, None, -3), slice(-4, None), [3, 1, -1], np.array([2, 0]), torch.tensor([1, 1])],
    ids=str,
)
def test_view_returns_lists_as_numpy_selects_them(synthetic_set: Path, index: Any) -> None:
    view = avdata.open(synthetic_set).as_map()
    assert [sample.key for sample in view[index]] == np.array(view.keys)[index].tolist()


def test_view_returns_lists_of_keys_in_their_order(synthetic_set: Path) -> None:
    view = avdata.open(synthetic_set).as_map()
    keys = view.keys[5:2:-1]
    assert [sample.key for sample in view[keys]] == keys
    assert [sample.key for sample in view[np.array(keys)]] == keys


def test_view_refuses_what_is_no_sample(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set)
    view = dataset.as_map()
    for index in (len(view), -len(view) - 1):
        with pytest.raises(IndexError, match=f"{len(view)} samples"):
            view[index]
    for index in (1.0, True, None, [True, False], {"key": 1}):
        with pytest.raises(UsageError, match="Invalid sample number"):
            view[index]
    with pytest.raises(UsageError, match="Unknown sample 'nothing'"):
        view["nothing"]
    with pytest.raises(UsageError, match=r"as_map\(\) accepts slices"):
        dataset[0:2]


@pytest.mark.parametrize("workers", [0, 2])
def test_dataloader_shuffles_the_view(synthetic_set: Path, workers: int) -> None:
    view = avdata.open(synthetic_set).as_map()
    loader = DataLoader(view, batch_size=4, shuffle=True, num_workers=workers)
    first, second = list(loader), list(loader)
    assert isinstance(first[0], AVBatch)
    assert sorted(keys_of(first)) == sorted(keys_of(second)) == sorted(view.keys)
    assert keys_of(first) != keys_of(second)


@pytest.mark.exhaustive
def test_dataloader_reads_the_view_in_spawned_workers(synthetic_set: Path) -> None:
    view = avdata.open(synthetic_set).as_map()
    loader = DataLoader(view, batch_size=4, num_workers=2, multiprocessing_context="spawn")
    assert keys_of(loader) == view.keys


def test_view_can_be_pickled(synthetic_set: Path) -> None:
    view = avdata.open(synthetic_set, filter="label == 1").as_map()
    view[0]
    copy = pickle.loads(pickle.dumps(view))
    assert [sample.key for sample in copy] == view.keys
    assert torch.equal(copy[1].mel, view[1].mel)


def test_view_works_with_wrappers_and_samplers_of_torch(synthetic_set: Path, synthetic_other: Path) -> None:
    dataset = avdata.open(synthetic_set, weights="label")
    view, other = dataset.as_map(), avdata.open(synthetic_other).as_map()
    both = ConcatDataset([view, other])
    assert keys_of(DataLoader(both, batch_size=4)) == view.keys + other.keys
    assert [sample.key for sample in Subset(view, [4, 0])] == [view.keys[4], view.keys[0]]
    parts = random_split(view, [0.75, 0.25], torch.Generator().manual_seed(0))
    assert Counter(key for part in parts for key in keys_of(DataLoader(part, 4))) == Counter(view.keys)
    weighted = WeightedRandomSampler(dataset.weights, len(view))
    assert set(keys_of(DataLoader(view, batch_size=4, sampler=weighted))) <= set(view.keys)
    ranks = [DistributedSampler(view, num_replicas=2, rank=rank) for rank in range(2)]
    got = [key for sampler in ranks for key in keys_of(DataLoader(view, batch_size=4, sampler=sampler))]
    assert set(got) == set(view.keys)


def test_view_reads_all_samples_of_a_rank_and_a_repeated_dataset(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set, rank=0, world_size=2, epoch_size=5)
    assert len(dataset.as_map()) == len(dataset.repeat(2).as_map()) == dataset.num_rows


def test_set_epoch_of_the_view_reaches_persistent_workers(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set, "val", transform=draw)
    view = dataset.as_map()
    options: Any = {"batch_size": 4, "num_workers": 1, "persistent_workers": True}
    loader = DataLoader(view, collate_fn=unchanged, **options)
    for epoch in range(3):
        view.set_epoch(epoch)
        got = [item for batch in loader for item in batch]
        assert got == list(view) == list(dataset)
    with pytest.raises(UsageError, match="Invalid epoch -1"):
        view.set_epoch(-1)


def test_view_returns_dicts_and_substitutes_damaged_samples(synthetic_set: Path, tmp_path: Path) -> None:
    root = shutil.copytree(synthetic_set, tmp_path / "set")
    dataset = avdata.open(root, "val", on_error="skip", as_dict=True)
    shard = next(root.glob("val/*.tar"))
    with shard.open("r+b") as stream:
        stream.write(bytes(512))
    items = dataset.as_map()[:2]
    assert [item["key"] for item in items] == [dataset.keys[1]] * 2
    assert [item["weight"] for item in items] == [0.0, 1.0]


def test_view_of_a_remote_dataset_fetches_each_shard_once(site: Site, tmp_path: Path) -> None:
    view = avdata.open(site.url, "train", cache=tmp_path).as_map()
    assert sorted(keys_of(DataLoader(view, batch_size=4, shuffle=True))) == sorted(view.keys)
    fetched = [shard for shard, *_ in site.asked_for(".tar")]
    assert len(fetched) == len(set(fetched)) == len(view.dataset.info["splits"]["train"]["shards"])
