"""Epochs of mixtures: where they end, and batches of one dataset each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.streaming.batch import AVSample
from avdata.streaming.mixture import _counts

shares = st.lists(st.tuples(st.integers(1, 300), st.floats(0, 5)), min_size=1, max_size=5).filter(
    lambda pairs: sum(share for _, share in pairs) > 0.1
)


def opened(root: Path, other: Path, **options: Any) -> list[Any]:
    sets = [avdata.open(root, "train", shuffle=True, **options)]
    return [*sets, avdata.open(other, "train", shuffle=True, seed=9, **options)]


def delivered(loader: Any) -> list[str]:
    return [key for batch in loader for key, weight in zip(batch.key, batch.weight, strict=True) if weight]


# -- stopping --------------------------------------------------------------------------------------------


@given(shares)
def test_stopping_strategy_completes_the_first_or_all_datasets(pairs: list[tuple[int, float]]) -> None:
    lengths, weights = [length for length, _ in pairs], [share if share > 1e-3 else 0.0 for _, share in pairs]
    used = [number for number, weight in enumerate(weights) if weight]
    first = _counts(lengths, weights, "first_exhausted", None)
    every = _counts(lengths, weights, "all_exhausted", None)
    assert all(first[number] <= lengths[number] for number in used)
    assert any(first[number] == lengths[number] for number in used)
    assert all(every[number] >= lengths[number] for number in used)
    assert any(every[number] == lengths[number] for number in used)


def test_stopping_strategies_keep_the_shares() -> None:
    assert _counts([60, 40], [3, 1], "first_exhausted", None) == [60, 20]
    assert _counts([60, 40], [3, 1], "all_exhausted", None) == [120, 40]
    assert _counts([60, 40], [1, 0], "all_exhausted", None) == [60, 0]


def test_stopping_strategies_have_the_counts_of_datasets() -> None:
    import datasets

    lengths = [10, 25, 40]
    parts = [datasets.Dataset.from_dict({"set": [number] * length}) for number, length in enumerate(lengths)]
    for strategy in ("first_exhausted", "all_exhausted"):
        # Without probabilities, its datasets take turns.
        turns = Counter(datasets.interleave_datasets(parts, stopping_strategy=strategy)["set"])
        expected = [turns[number] for number in range(3)]
        got = _counts(lengths, [1, 1, 1], strategy, None)
        assert all(abs(count - other) <= 1 for count, other in zip(got, expected, strict=True))


def test_mix_ends_an_epoch_with_the_first_exhausted_dataset(
    synthetic_set: Path, synthetic_other: Path
) -> None:
    sets = opened(synthetic_set, synthetic_other)
    mixed = avdata.mix(sets, [1, 1], stopping_strategy="first_exhausted")
    small = min(dataset.num_samples for dataset in sets)
    assert (len(mixed), mixed.counts) == (2 * small, [small, small])
    loader = mixed.loader(4)
    assert len(loader) == -(-2 * small // 4)
    order = mixed.order_of(0)
    assert len(set(order.tolist())) == len(order)
    assert len(delivered(loader)) == 2 * small


def test_mix_ends_an_epoch_when_all_datasets_are_exhausted(
    synthetic_set: Path, synthetic_other: Path
) -> None:
    sets = opened(synthetic_set, synthetic_other)
    mixed = avdata.mix(sets, [1, 1], stopping_strategy="all_exhausted")
    large = max(dataset.num_samples for dataset in sets)
    assert mixed.counts == [large, large]
    assert set(mixed.order_of(3).tolist()) == set(range(mixed.num_rows))


def test_mix_has_the_epoch_size(synthetic_set: Path, synthetic_other: Path) -> None:
    sets = opened(synthetic_set, synthetic_other)
    mixed = avdata.mix(sets, [2, 1], epoch_size=30)
    assert mixed.counts == [20, 10]
    assert len(delivered(mixed.loader(4))) == len(mixed) == 30
    total = sum(dataset.num_samples for dataset in sets)
    proportional = avdata.mix(sets, epoch_size=total)
    assert proportional.counts == [dataset.num_samples for dataset in sets]
    repeated = avdata.mix([sets[0].repeat(2), sets[1].take(3)])
    assert Counter(delivered(repeated.loader(4))) == Counter(2 * sets[0].keys + sets[1].keys[:3])


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (None, {"stopping_strategy": "first_exhausted"}, "requires weights"),
        ([1, 1], {"stopping_strategy": "never"}, "first_exhausted and all_exhausted"),
        ([1, 1], {"stopping_strategy": "all_exhausted", "epoch_size": 5}, "no epoch_size"),
        (None, {"epoch_size": 0}, "epoch_size=0"),
        (None, {"batching_method": "random"}, "'mixed' or 'per_stream'"),
        ([1, float("nan")], {}, "Invalid weights"),
    ],
)
def test_mix_refuses_invalid_options(
    synthetic_set: Path, synthetic_other: Path, weights: Any, options: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        avdata.mix(opened(synthetic_set, synthetic_other), weights, **options)


# -- samples ---------------------------------------------------------------------------------------------


def test_mix_is_iterable_with_the_samples_of_its_batches(synthetic_set: Path, synthetic_other: Path) -> None:
    mixed = avdata.mix(opened(synthetic_set, synthetic_other))
    samples = list(mixed)
    mixed.set_epoch(0)
    batches = list(mixed.loader(1))
    assert len(samples) == len(batches) == len(mixed)
    for sample, batch in zip(samples, batches, strict=True):
        assert ([sample.key], [sample.label]) == (batch.key, batch.label.tolist())
        assert torch.equal(sample.mel, batch.mel[0])


def test_mix_applies_the_transform_of_each_dataset(synthetic_set: Path, synthetic_other: Path) -> None:
    def mark(sample: AVSample, generator: torch.Generator) -> AVSample:
        assert sample.mel is not None
        return replace(sample, mel=torch.rand(sample.mel.shape, generator=generator))

    changed = avdata.open(synthetic_set, transform=mark)
    mixed = avdata.mix([changed, avdata.open(synthetic_other)])
    batch = next(iter(mixed.loader(len(mixed))))
    from_changed = {sample.mel.sum().item() for sample in changed}
    marked = [mel.sum().item() in from_changed for mel in batch.mel]
    assert sum(marked) == len(changed)


def test_mix_refuses_other_modalities_and_frame_formats(synthetic_set: Path) -> None:
    plain = avdata.open(synthetic_set)
    for options in ({"modalities": ("audio",)}, {"frames_layout": "BTCHW"}):
        with pytest.raises(UsageError, match="Shape mismatch") as caught:
            avdata.mix([plain, avdata.open(synthetic_set, **options)])  # type: ignore[arg-type]
        assert "`modalities`" in str(caught.value)


# -- batches per stream ----------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_batches_per_stream_are_of_one_dataset_on_all_ranks(
    synthetic_set: Path, synthetic_other: Path, world: int
) -> None:
    ranks = [
        avdata.mix(
            opened(synthetic_set, synthetic_other, rank=rank, world_size=world),
            batching_method="per_stream",
        )
        for rank in range(world)
    ]
    first = ranks[0].datasets[0]
    own = {sample.mel.sum().item() for sample in first.as_map()}
    streams, seen = [], Counter[bool]()
    for mixed in ranks:
        loader = mixed.loader(3)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(batch.weight.all() for batch in batches)
        members = [{mel.sum().item() in own for mel in batch.mel} for batch in batches]
        assert all(len(which) == 1 for which in members)
        streams.append([which.pop() for which in members])
        seen.update(streams[-1])
    assert all(stream == streams[0] for stream in streams)
    assert len(set(streams[0][: len(streams[0]) // 2])) == 2  # in turn, not one after the other
    for is_first, dataset in ((True, ranks[0].datasets[0]), (False, ranks[0].datasets[1])):
        assert abs(seen[is_first] * 3 - dataset.num_samples) <= 3 * world / 2


def test_batches_per_stream_resume_and_complete_each_dataset(
    synthetic_set: Path, synthetic_other: Path
) -> None:
    def loader(batch_size: int = 4) -> Any:
        sets = opened(synthetic_set, synthetic_other)
        return avdata.mix(sets, [1, 1], batching_method="per_stream").loader(batch_size)

    first = loader()
    batches = iter(first)
    for _ in range(3):
        next(batches)
    state = first.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert [batch.key for batch in resumed] == [batch.key for batch in batches]
    with pytest.raises(AvdataError, match="State mismatch"):
        loader(3).load_state_dict(state)
    seen = Counter[str]()
    for _ in range(6):
        seen.update(delivered(first))
    assert set(first.dataset.datasets[0].keys) <= set(seen)


def test_batches_per_stream_require_the_loader(synthetic_set: Path, synthetic_other: Path) -> None:
    mixed = avdata.mix(opened(synthetic_set, synthetic_other), batching_method="per_stream")
    with pytest.raises(UsageError, match="require the loader"):
        next(iter(mixed))
