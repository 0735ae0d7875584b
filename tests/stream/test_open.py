"""What `avdata.open` promises a user: typed batches, each sample once, the same order again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.shards import read_info


def keys(root: Path, **options: object) -> list[str]:
    loader = avdata.open(root, "train", shuffle=True, seed=3, **options).loader(batch_size=5)  # type: ignore[arg-type]
    return [key for batch in loader for key, weight in zip(batch.key, batch.weight, strict=True) if weight]


def test_batches_have_their_types_and_shapes(cremad_set: Path) -> None:
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
def test_every_sample_comes_once_and_padding_has_no_weight(synthetic_set: Path, workers: int) -> None:
    data = avdata.open(synthetic_set, "train", shuffle=True)
    loader = data.loader(batch_size=5, num_workers=workers)
    got = list(loader)
    assert len(got) == len(loader)
    real = [key for batch in got for key, weight in zip(batch.key, batch.weight, strict=True) if weight]
    assert Counter(real) == Counter(set(real))
    assert len(real) == len(data) == read_info(synthetic_set)["splits"]["train"]["samples"]


def test_ranks_share_an_epoch_evenly_and_each_sample_is_read_once(synthetic_set: Path) -> None:
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


def test_the_order_is_of_the_seed_and_the_epoch_alone(synthetic_set: Path) -> None:
    assert keys(synthetic_set) == keys(synthetic_set)
    data = avdata.open(synthetic_set, "train", shuffle=True, seed=3)
    data.set_epoch(1)
    other = [key for batch in data.loader(batch_size=5) for key in batch.key]
    assert other[:20] != keys(synthetic_set)[:20]


def test_a_loader_goes_on_where_its_state_was_taken(synthetic_set: Path) -> None:
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


def test_mels_are_normalised_by_the_train_split(synthetic_set: Path) -> None:
    batches = list(avdata.open(synthetic_set, "train").loader(batch_size=8))
    mel = torch.cat([batch.mel[batch.weight > 0] for batch in batches])
    assert abs(float(mel.mean())) < 0.01
    assert float(mel.std()) == pytest.approx(1, abs=0.02)


def test_a_torch_dataloader_over_the_dataset_gives_every_sample(synthetic_set: Path) -> None:
    data = avdata.open(synthetic_set, "test")
    got = [sample.key for sample in DataLoader(data, batch_size=None, num_workers=0)]
    assert sorted(got) == sorted(sample.key for sample in data)
    assert len(got) == len(data)


def test_a_sample_is_found_by_its_key(synthetic_set: Path) -> None:
    data = avdata.open(synthetic_set, "val")
    first = data[0]
    assert np.array_equal(data.find(first.key).mel, first.mel)


def test_steps_have_labels_where_the_dataset_labels_them(ave_set: Path) -> None:
    for batch in avdata.open(ave_set, "train").loader(batch_size=4):
        assert batch.step_labels is not None
        for key, label, steps in zip(batch.key, batch.label, batch.step_labels, strict=True):
            # [start, end) of the mock's rows: 4 … 10 for every third plain row.
            if key.endswith("-000000mock"):
                assert steps.tolist() == [28] * 4 + [int(label)] * 6
            if key.endswith("zerolength0"):
                assert steps.tolist() == [28] * 10


def test_mistakes_are_named(synthetic_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no split 'dev'"):
        avdata.open(synthetic_set, "dev")
    with pytest.raises(AvdataError, match="not a prepared set"):
        avdata.open(tmp_path)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_are_the_same_to_the_bit_whatever_the_number_of_workers(
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
