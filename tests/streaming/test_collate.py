"""`avdata.collate`: batches of torch's DataLoader equal those of the dataset's own loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.io
from torch.utils.data import DataLoader

import avdata
from avdata.errors import UsageError
from avdata.shards.members import decode_frames, read_members
from avdata.shards.reader import read_index
from avdata.shards.sample import read_sample_bytes
from avdata.streaming.batch import AVBatch, AVSample
from avdata.streaming.collate import collate


def assert_equal(batch: AVBatch, expected: AVBatch) -> None:
    for field in fields(AVBatch):
        value, wanted = getattr(batch, field.name), getattr(expected, field.name)
        if isinstance(wanted, torch.Tensor):
            assert value.dtype == wanted.dtype, field.name
            assert torch.equal(value, wanted), field.name
        else:
            assert value == wanted, field.name


@pytest.mark.parametrize("workers", [0, 1])
def test_collate_returns_the_batches_of_the_loader(synthetic_set: Path, workers: int) -> None:
    first, second = (avdata.open(synthetic_set, "train", shuffle=True, seed=2) for _ in range(2))
    loader = DataLoader(first, batch_size=5, num_workers=workers, collate_fn=collate)
    for batch, expected in zip(loader, second.loader(5, drop_last=True), strict=False):
        assert_equal(batch, expected)


def test_collate_returns_step_labels_and_presence_as_the_loader(ave_set: Path) -> None:
    dataset = avdata.open(ave_set, "train")
    expected = next(iter(dataset.loader(4)))
    assert expected.step_labels is not None
    assert_equal(collate([dataset[number] for number in range(4)]), expected)


def test_collate_marks_silent_audio_and_black_frames(synthetic_set: Path) -> None:
    sample = avdata.open(synthetic_set, "train")[0]
    flagged = [replace(sample, metadata={"flags": [flag]}) for flag in ("silent_audio", "black_frames")]
    assert collate([sample, *flagged]).present.tolist() == [[True, True], [False, True], [True, False]]


def test_collate_keeps_weights(synthetic_set: Path) -> None:
    sample = avdata.open(synthetic_set, "train")[0]
    batch = collate([sample, replace(sample, weight=0.0)])
    assert batch.weight.dtype == torch.float32
    assert batch.weight.tolist() == [1.0, 0.0]


def test_collate_repeats_the_label_of_samples_without_step_labels(synthetic_set: Path) -> None:
    sample = avdata.open(synthetic_set, "train")[0]
    steps = len(sample.mel)
    labeled = replace(sample, metadata={"step_labels": list(range(steps))})
    batch = collate([replace(sample, label=3, metadata={}), labeled])
    assert batch.step_labels is not None
    assert batch.step_labels.tolist() == [[3] * steps, list(range(steps))]


def test_collate_refuses_an_empty_list() -> None:
    with pytest.raises(UsageError, match="Cannot collate 0 samples"):
        collate([])


def test_repr_is_one_short_line(synthetic_set: Path, synthetic_other: Path) -> None:
    dataset: Any = avdata.open(synthetic_set, "train", filter="label == 1")
    sample: AVSample = dataset[0]
    other = avdata.open(synthetic_other, "train")
    count, shapes = len(dataset), f"mel={list(sample.mel.shape)}, frames={list(sample.frames.shape)}"
    texts = [
        f"AVDataset('{synthetic_set}', split='train', {count} samples, {shapes}, filter='label == 1')",
        f"AVSample('{sample.key}', label=1, {shapes})",
        f"AVLoader({dataset!r}, batch_size=4)",
        f"MixedDataset({count} of {synthetic_set}/train, {len(other)} of {synthetic_other}/train, {shapes})",
    ]
    assert [repr(dataset), repr(sample), repr(dataset.loader(4)), repr(avdata.mix([dataset, other]))] == texts
    batch = collate([sample, sample])
    assert repr(batch) == (
        f"AVBatch(2 samples, mel={[2, *sample.mel.shape]}, frames={[2, *sample.frames.shape]}, device='cpu')"
    )


@pytest.mark.parametrize(("storage", "decoder"), [("jpeg", "decode_jpeg"), ("png", "decode_png")])
def test_frames_are_decoded_by_torchvision(
    synthetic_mock: Path,
    once: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    storage: str,
    decoder: str,
) -> None:
    settings = {"video": {"storage": storage}}
    root = once(
        f"strips-{storage}",
        lambda out: avdata.prepare(
            "synthetic", source=synthetic_mock, output=out, config=settings, workers=0
        ),
    )
    dataset = avdata.open(root, "val")
    rows = {row["key"]: row for row in read_index(root).to_pylist()}
    for sample in dataset:
        # Pillow decodes with another build of libjpeg.
        stored = read_members(read_sample_bytes(root, rows[sample.key]))
        pixels = decode_frames(stored, dataset.info["shape"]["frames"])
        assert np.array_equal(sample.frames.permute(0, 2, 3, 1).numpy(), pixels)
    decode, frames = getattr(torchvision.io, decoder), dataset[0].frames
    monkeypatch.setattr(torchvision.io, decoder, lambda data: 255 - decode(data))
    assert torch.equal(dataset[0].frames, 255 - frames)


def test_as_dict_returns_what_default_collators_take(synthetic_set: Path) -> None:
    plain, dicts = avdata.open(synthetic_set), avdata.open(synthetic_set, as_dict=True)
    batch = next(iter(torch.utils.data.DataLoader(plain, batch_size=4)))
    assert isinstance(batch, AVBatch)
    for other in (next(iter(torch.utils.data.DataLoader(dicts, batch_size=4))), next(iter(dicts.loader(4)))):
        assert isinstance(other, dict)
        assert set(other) == {"mel", "frames", "label", "key", "weight", "present"}
        assert other["key"] == batch.key
        for name in ("mel", "frames", "label", "present"):
            assert torch.equal(other[name], getattr(batch, name))
        assert other["weight"].tolist() == batch.weight.tolist()
    assert dicts[0]["key"] == plain[0].key
