"""Samples of a dataset and of an epoch: splits, slices, take, filter, repeat, epoch_size."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.shards.reader import read_index
from avdata.streaming.splits import SplitPart, parse_split


def indexed(root: Path, split: str) -> list[str]:
    return [row["key"] for row in read_index(root).to_pylist() if row["split"] == split]


def delivered(loader: Any) -> list[str]:
    return [key for batch in loader for key, weight in zip(batch.key, batch.weight, strict=True) if weight]


# -- splits ----------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.none() | st.integers(-310, 310), st.none() | st.integers(-310, 310))
def test_slice_of_a_split_is_that_of_python(length: int, start: int | None, stop: int | None) -> None:
    text = f"train[{'' if start is None else start}:{'' if stop is None else stop}]"
    (part,) = parse_split(text, {"train": length}, "out")
    assert list(part.rows(length)) == list(range(length))[start:stop]


@given(st.integers(0, 1000), st.lists(st.integers(0, 100), min_size=1, max_size=5))
def test_percentages_divide_a_split_without_overlap(length: int, cuts: list[int]) -> None:
    bounds = [f"{cut}%" for cut in sorted(cuts)]
    parts = [SplitPart("train", pair) for pair in zip(["", *bounds], [*bounds, ""], strict=True)]
    assert [row for part in parts for row in part.rows(length)] == list(range(length))


def test_percentages_select_the_samples_of_datasets() -> None:
    import datasets

    for length in (7, 44, 146, 1000):
        for text in ("train[:10%]", "train[10%:55%]", "train[-5%:]", "train[1:5]", "train[-3:]"):
            (expected,) = datasets.ReadInstruction.from_spec(text).to_absolute({"train": length})
            (part,) = parse_split(text, {"train": length}, "out")
            assert part.rows(length) == range(expected.from_, expected.to), (text, length)


def test_open_reads_several_splits_and_slices_in_the_order_of_the_name(synthetic_set: Path) -> None:
    train, val, test = (indexed(synthetic_set, split) for split in ("train", "val", "test"))
    tenth = round(len(train) / 10)
    for split, expected in {
        "val+train": val + train,
        "train[:10%]": train[:tenth],
        "train[10%:] + validation": train[tenth:] + val,
        "train[-3:]+test[1:3]+train[2:4]": train[-3:] + test[1:3] + train[2:4],
        "validation": val,
    }.items():
        dataset = avdata.open(synthetic_set, split)
        assert dataset.keys == [sample.key for sample in dataset] == expected
        assert len(dataset) == dataset.num_samples == len(expected)
    assert avdata.open(synthetic_set, "validation").split == "val"


@pytest.mark.parametrize(
    "split", ["train[5]", "train[1:2:3]", "train[", "", "train+", "train[1.5:]", "+val", "train[a:]"]
)
def test_open_refuses_invalid_splits(synthetic_set: Path, split: str) -> None:
    with pytest.raises(UsageError, match="Invalid split") as caught:
        avdata.open(synthetic_set, split)
    assert "train[:10%]" in str(caught.value)


@pytest.mark.parametrize("split", ["train+train", "train[:10]+train[5:8]", "train[50%:]+val+train[:60%]"])
def test_open_refuses_a_sample_in_two_parts(synthetic_set: Path, split: str) -> None:
    with pytest.raises(UsageError, match="selects samples of train twice"):
        avdata.open(synthetic_set, split)


def test_several_splits_divide_among_ranks_and_resume(synthetic_set: Path) -> None:
    def loader(rank: int, world: int) -> Any:
        options = {"shuffle": True, "rank": rank, "world_size": world}
        return avdata.open(synthetic_set, "train[:50%]+val", **options).loader(2)  # type: ignore[arg-type]

    whole = Counter(delivered(loader(0, 1)))
    assert sum(whole.values()) == len(whole) == avdata.open(synthetic_set, "train[:50%]+val").num_samples
    first = loader(0, 1)
    batches = iter(first)
    head = [key for _ in range(3) for key in next(batches).key]
    rest = []
    for rank in range(2):
        other = loader(rank, 2)
        other.load_state_dict(first.state_dict())
        rest += delivered(other)
    assert Counter(head + rest) == whole


def test_html_of_several_splits_counts_their_labels(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set, "val+test")
    rows = [row for row in read_index(synthetic_set).to_pylist() if row["split"] in ("val", "test")]
    label, count = Counter(row["label_name"] for row in rows).most_common(1)[0]
    html = dataset._repr_html_()
    assert f"{label} {count:,}" in html
    assert f"of {len({row['group'] for row in rows})} group" in html


# -- take and filter -------------------------------------------------------------------------------------


def test_take_returns_the_first_samples_of_the_index_in_every_epoch(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set, shuffle=True).take(7)
    expected = indexed(synthetic_set, "train")[:7]
    for _ in range(2):
        assert sorted(delivered(dataset.loader(3))) == sorted(expected)
    assert dataset.keys == expected
    assert dataset.take(100).keys == expected
    assert dataset[-1].key == dataset.find(expected[-1]).key == expected[-1]


def test_filter_selects_by_a_condition_or_a_function(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set, shuffle=True)
    rows = [row for row in read_index(synthetic_set).to_pylist() if row["split"] == "train"]
    expected = [row["key"] for row in rows if row["label"] != 1 and row["window_end"] > 0.5]
    text = dataset.filter("label != 1").filter("window_end > 0.5")
    function = dataset.filter(lambda row: row["label"] != 1 and row["window_end"] > 0.5)
    opened = avdata.open(synthetic_set, shuffle=True, filter=lambda row: row["label"] != 1).filter(
        "window_end > 0.5"
    )
    assert text.keys == function.keys == opened.keys == expected
    assert text.condition == "(label != 1) and (window_end > 0.5)"
    assert sorted(delivered(text.loader(4))) == sorted(expected)
    assert len(dataset.keys) == len(rows)  # unchanged
    with pytest.raises(UsageError, match="Unknown column 'lable'"):
        dataset.filter("lable == 1")


def test_filter_keeps_weights_of_the_remaining_samples(synthetic_set: Path) -> None:
    rows = [row for row in read_index(synthetic_set).to_pylist() if row["split"] == "train"]
    weights = [float(number) for number in range(len(rows))]
    dataset = avdata.open(synthetic_set, weights=weights).filter("label == 1")
    assert dataset.weights.tolist() == [number for number, row in enumerate(rows) if row["label"] == 1]
    few = avdata.open(synthetic_set, weights="label").take(5)
    per_label = Counter(row["label"] for row in rows[:5])
    assert few.weights.tolist() == pytest.approx([1 / per_label[row["label"]] for row in rows[:5]])


def test_state_belongs_to_the_selected_samples(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set)
    count = len(dataset.filter("label != 1"))
    state = dataset.filter("label != 1").loader(2).state_dict()
    avdata.open(synthetic_set, filter="label != 1").loader(2).load_state_dict(state)
    for other in (dataset.take(count), dataset.filter(lambda row: row["label"] != 0), dataset.repeat(2)):
        with pytest.raises(AvdataError, match="State mismatch"):
            other.loader(2).load_state_dict(state)
    state = dataset.take(5).loader(2).state_dict()
    with pytest.raises(AvdataError, match="State mismatch: rows"):
        dataset.filter(lambda row: row["key"] in dataset.keys[5:10]).loader(2).load_state_dict(state)
    state = dataset.filter(lambda row: row["label"] != 1).loader(2).state_dict()
    dataset.filter(lambda row: row["label"] not in (1,)).loader(2).load_state_dict(state)


def test_selected_dataset_can_be_pickled(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set).filter(lambda row: row["label"] == 0).take(3).repeat(2)
    copy = pickle.loads(pickle.dumps(dataset))
    assert [sample.key for sample in copy] == [sample.key for sample in dataset]


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3"])
def test_take_and_repeat_refuse_invalid_counts(synthetic_set: Path, count: Any) -> None:
    dataset = avdata.open(synthetic_set)
    for method in (dataset.take, dataset.repeat):
        with pytest.raises(UsageError, match="at least 1"):
            method(count)
    with pytest.raises(UsageError, match="epoch_size"):
        avdata.open(synthetic_set, epoch_size=count)
    with pytest.raises(UsageError, match="Cannot take"):
        dataset.repeat(2).take(3)


# -- repeat and epoch_size -------------------------------------------------------------------------------


def test_repeat_returns_each_sample_several_times_per_epoch_in_new_orders(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set, "val", shuffle=True, canonical_nodes=1).repeat(3)
    count = dataset.num_rows
    assert len(dataset) == dataset.num_samples == 3 * count
    got = delivered(dataset.loader(4))
    assert Counter(got) == Counter(3 * dataset.keys)
    passes = [got[start : start + count] for start in range(0, 3 * count, count)]
    assert all(sorted(keys) == sorted(dataset.keys) for keys in passes)
    assert passes[0] != passes[1] != passes[2]
    assert delivered(dataset.loader(4))[:count] not in passes  # the next epoch


@pytest.mark.parametrize("size", [5, 22, 100])
def test_epoch_size_continues_where_the_last_epoch_ended(synthetic_set: Path, size: int) -> None:
    dataset = avdata.open(synthetic_set, shuffle=True, epoch_size=size)
    loader, seen = dataset.loader(4), Counter[str]()
    assert len(dataset) == size
    assert len(loader) == -(-size // 4)
    for _ in range(7):
        keys = delivered(loader)
        assert len(keys) == size
        seen.update(keys)
    complete = 7 * size // dataset.num_rows
    assert {complete, complete + 1} >= {seen[key] for key in dataset.keys}


def test_epoch_size_divides_among_ranks_and_resumes(synthetic_set: Path) -> None:
    def loader(rank: int, world: int) -> Any:
        options = {"shuffle": True, "epoch_size": 50, "rank": rank, "world_size": world}
        dataset = avdata.open(synthetic_set, **options)  # type: ignore[arg-type]
        assert len(dataset) == -(-50 // world)
        return dataset.loader(4)

    alone = loader(0, 1)
    delivered(alone)
    whole = Counter(delivered(alone))  # of epoch 1
    parts = [loader(rank, 4) for rank in range(4)]
    for part in parts:
        part.set_epoch(1)
    batches = [iter(part) for part in parts]
    head = [key for part in batches for key in next(part).key]
    rest = []
    for rank in range(2):
        other = loader(rank, 2)
        other.load_state_dict(parts[0].state_dict())
        rest += delivered(other)
    assert Counter(head + rest) == whole
    assert sum(whole.values()) == 50


def test_epoch_size_bounds_iteration_by_sample(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set, epoch_size=9, rank=1, world_size=2)
    assert len([sample for sample in dataset if sample.weight]) == 4
    assert len(list(dataset)) == len(dataset) == 5
