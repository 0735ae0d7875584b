"""How often samples come: weights, and mixtures of datasets."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.shards.reader import read_index
from avdata.streaming.sampling import ShuffleConfig, epoch_order, mixture_order, weighted_counts

some_weights = st.lists(st.floats(0, 100), min_size=1, max_size=200).filter(lambda w: sum(w) > 1e-3)
seeds = st.integers(0, 2**31)


def delivered(loader: object) -> list[str]:
    return [
        key
        for batch in loader  # type: ignore[attr-defined]
        for key, weight in zip(batch.key, batch.weight, strict=True)
        if weight
    ]


def rows(root: Path, split: str = "train") -> list[dict]:
    return [row for row in read_index(root).to_pylist() if row["split"] == split]


# -- weights ---------------------------------------------------------------------------------------------


@given(some_weights, seeds, st.integers(0, 50))
def test_weighted_counts_differ_from_expectation_by_less_than_one(
    weights: list[float], seed: int, epoch: int
) -> None:
    weight = np.array(weights)
    counts = weighted_counts(weight, ShuffleConfig(seed=seed), epoch)
    due = weight * len(weight) / weight.sum()
    assert counts.sum() == len(weight)
    assert (np.abs(counts - due) < 1 + 1e-9).all()
    assert (counts[weight == 0] == 0).all()


def test_weighted_counts_average_to_the_weights() -> None:
    weight = np.random.default_rng(0).random(50)
    mean = np.mean([weighted_counts(weight, ShuffleConfig(seed=1), epoch) for epoch in range(4000)], axis=0)
    assert np.allclose(mean, weight * 50 / weight.sum(), atol=0.05)


def test_weights_by_label_balance_the_labels(synthetic_set: Path) -> None:
    most = Counter(row["label"] for row in rows(synthetic_set))
    few = next(row["key"] for row in rows(synthetic_set) if row["label"] == 1)
    uneven = f"label != 1 or key == '{few}'"
    data = avdata.open(synthetic_set, "train", shuffle=True, filter=uneven, weights="label")
    seen: Counter[int] = Counter()
    loader = data.loader(4)
    for _ in range(3):
        for batch in loader:
            seen.update(batch.label[batch.weight > 0].tolist())
    assert sum(seen.values()) == 3 * len(data)
    expected = 3 * len(data) / len(most)
    assert len(seen) == len(most)
    assert all(abs(count - expected) <= 3 * len(most) for count in seen.values())


def test_weighted_epoch_is_independent_of_ranks_and_resumes(
    synthetic_set: Path,
) -> None:
    def opened(rank: int = 0, world: int = 1) -> object:
        return avdata.open(
            synthetic_set, "train", shuffle=True, weights="label", rank=rank, world_size=world
        ).loader(12 // world)

    alone = Counter(delivered(opened()))
    assert Counter(key for rank in range(2) for key in delivered(opened(rank, 2))) == alone
    first = opened()
    head = [next(iter(first)).key]
    second = opened()
    second.load_state_dict(first.state_dict())
    assert Counter(head[0] + delivered(second)) == alone


def test_loader_refuses_a_state_with_other_weights(synthetic_set: Path) -> None:
    plain = avdata.open(synthetic_set, "train").loader(4)
    with pytest.raises(AvdataError, match="weights"):
        avdata.open(synthetic_set, "train", weights="label").loader(4).load_state_dict(plain.state_dict())


@pytest.mark.parametrize("weights", [[1.0], "nothing", "flags", [-1.0] * 3])
def test_open_refuses_invalid_weights(synthetic_set: Path, weights: object) -> None:
    with pytest.raises(UsageError, match="weigh"):
        avdata.open(synthetic_set, "train", weights=weights)


# -- mixtures --------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 90)), min_size=1, max_size=4),
    st.integers(1, 8),
    st.booleans(),
    seeds,
)
@settings(max_examples=60)
def test_mix_completes_own_epochs_of_each_dataset(
    sets: list[tuple[int, int]], nodes: int, shuffle: bool, seed: int
) -> None:
    order = ShuffleConfig(seed=seed, shuffle=shuffle, canonical_nodes=nodes)

    def own(number: int) -> object:
        size = np.array([sets[number][0]])
        return lambda epoch: epoch_order(size, ShuffleConfig(seed=number, canonical_nodes=nodes), epoch)

    counts = [count for _, count in sets]
    orders = [own(number) for number in range(len(sets))]
    epochs = [mixture_order(orders, counts, order, epoch) for epoch in range(3)]  # type: ignore[arg-type]
    for number, (length, count) in enumerate(sets):
        parts = [made[made[:, 0] == number, 1] for made in epochs]
        assert [len(part) for part in parts] == [count] * 3
        often = Counter(np.concatenate(parts).tolist())
        passes = 3 * count // length
        assert all(passes <= often[sample] <= passes + 1 for sample in range(length))


def test_mix_without_weights_returns_every_sample_once(synthetic_set: Path, synthetic_other: Path) -> None:
    sets = [avdata.open(synthetic_set, "train", shuffle=True), avdata.open(synthetic_other, "train", seed=9)]
    got = delivered(avdata.mix(sets).loader(4))
    assert Counter(got) == Counter(sets[0].keys + sets[1].keys)


def test_mix_with_weights_has_their_shares_from_the_first_batches_on(
    synthetic_set: Path, synthetic_other: Path
) -> None:
    sets = [avdata.open(synthetic_set, "train"), avdata.open(synthetic_other, "train")]
    both = avdata.mix(sets, [3, 1])
    order = both.epoch_order()
    assert len(order) == len(both) == len(sets[0]) + len(sets[1])
    for part in (order, order[: len(order) // 2]):
        assert np.mean(part < len(sets[0])) == pytest.approx(0.75, abs=0.1)


def test_mix_returns_the_samples_of_its_datasets(synthetic_set: Path, synthetic_other: Path) -> None:
    sets = [avdata.open(synthetic_set, "train", shuffle=True), avdata.open(synthetic_other, "test", seed=9)]
    both = avdata.mix(sets)
    # The two sets have keys in common: the frames tell whose sample it is.
    known = {(sample.key, sample.frames.numpy().tobytes()): (sample, one) for one in sets for sample in one}
    for batch in both.loader(4, num_workers=1):
        for place in range(len(batch.key)):
            sample, of = known[batch.key[place], batch.frames[place].numpy().tobytes()]
            assert torch.allclose(batch.mel[place], sample.mel, atol=1e-5)
            assert both.labels[int(batch.label[place])] == of.labels[sample.label]


def test_mix_maps_step_labels_to_its_labels(ave_set: Path, tmp_path: Path) -> None:
    turned = shutil.copytree(ave_set, tmp_path / "turned")
    info = json.loads((turned / "dataset.json").read_text())
    info["labels"] = ["Yodel", *reversed(info["labels"][1:])]
    (turned / "dataset.json").write_text(json.dumps(info))
    both = avdata.mix([avdata.open(ave_set, "train"), avdata.open(turned, "train")])
    background = len(both.labels)
    for batch in both.loader(4):
        assert batch.step_labels is not None
        for label, steps in zip(batch.label.tolist(), batch.step_labels.tolist(), strict=True):
            assert set(steps) <= {label, background}


def test_mix_repeats_the_label_of_samples_without_step_labels(
    ave_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = avdata.open(ave_set, "val")
    monkeypatch.setattr(plain, "fill", lambda *_, **__: {})
    both = avdata.mix([plain, avdata.open(ave_set, "train")])
    batch = next(iter(both.loader(len(both))))
    assert batch.step_labels is not None
    for key, label, steps in zip(batch.key, batch.label.tolist(), batch.step_labels.tolist(), strict=True):
        if key in plain.keys:
            assert steps == [label] * len(steps)


def test_mix_resumes_on_another_number_of_ranks(synthetic_set: Path, synthetic_other: Path) -> None:
    def loader(rank: int, world: int) -> object:
        places = {"rank": rank, "world_size": world}
        sets = [
            avdata.open(synthetic_set, "train", shuffle=True, **places),
            avdata.open(synthetic_other, "train", shuffle=True, seed=9, **places),
        ]
        return avdata.mix(sets, [2, 1]).loader(4)

    whole = Counter(delivered(loader(0, 1)))
    first = loader(0, 1)
    steps = iter(first)
    head = [key for _ in range(2) for key in next(steps).key]
    rest = []
    for rank in range(2):
        other = loader(rank, 2)
        other.load_state_dict(first.state_dict())
        rest += delivered(other)
    assert Counter(head + rest) == whole


def test_mix_refuses_datasets_of_different_shapes(synthetic_set: Path, cremad_set: Path) -> None:
    with pytest.raises(UsageError, match="Shape mismatch"):
        avdata.mix([avdata.open(synthetic_set), avdata.open(cremad_set)])
