"""What a dataset returns: transforms, collate functions, modalities, data type and layout of frames."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import avdata
from avdata.errors import UsageError
from avdata.shards.reader import read_index
from avdata.streaming.batch import AVBatch, AVSample
from avdata.streaming.transforms import occurrences


def number(sample: AVSample, generator: torch.Generator) -> tuple[str, float, float]:
    """Transform that returns key, weight and a random number."""
    return sample.key, sample.weight, float(torch.rand((), generator=generator))


def unchanged(items: list[Any]) -> list[Any]:
    return items


def numbers(root: Path, *, epoch: int = 0, workers: int = 0, **options: Any) -> dict[str, float]:
    """Return the random number of each key in an epoch of a loader."""
    dataset = avdata.open(root, "train", shuffle=True, transform=number, **options)
    dataset.set_epoch(epoch)
    batches = dataset.loader(4, num_workers=workers, collate_fn=unchanged)
    return {key: drawn for batch in batches for key, weight, drawn in batch if weight}


# -- transforms ------------------------------------------------------------------------------------------


def test_transform_draws_by_seed_epoch_and_key_only(synthetic_set: Path) -> None:
    expected = numbers(synthetic_set)
    assert len(set(expected.values())) == len(expected) == avdata.open(synthetic_set).num_samples
    for other in (
        numbers(synthetic_set, workers=2),
        numbers(synthetic_set, rank=0, world_size=2) | numbers(synthetic_set, rank=1, world_size=2),
        numbers(synthetic_set, canonical_nodes=1, block=3),
    ):
        assert other == expected
    for other in (numbers(synthetic_set, epoch=1), numbers(synthetic_set, seed=1)):
        assert other.keys() == expected.keys()
        assert not set(other.values()) & set(expected.values())
    few = numbers(synthetic_set, filter="label == 1")
    assert few.items() <= expected.items()


def test_transform_is_the_same_by_sample_in_workers_and_by_number(synthetic_set: Path) -> None:
    expected = numbers(synthetic_set, epoch=1)
    dataset = avdata.open(synthetic_set, "train", shuffle=True, transform=number)
    list(dataset)  # epoch 0
    assert {key: drawn for key, _, drawn in dataset} == expected
    dataset.set_epoch(1)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=unchanged)
    assert {key: drawn for batch in loader for key, _, drawn in batch} == expected
    dataset.set_epoch(1)
    assert dataset[3] == (dataset.keys[3], 1.0, expected[dataset.keys[3]])


def test_transform_is_the_same_after_a_resume(synthetic_set: Path) -> None:
    def loader() -> Any:
        dataset = avdata.open(synthetic_set, shuffle=True, transform=number, weights="label")
        return dataset.loader(3, collate_fn=unchanged, batch_transform=draw)

    def draw(batch: list[Any], generator: torch.Generator) -> list[Any]:
        return [*batch, float(torch.rand((), generator=generator))]

    first = loader()
    batches = iter(first)
    head = [next(batches) for _ in range(4)]
    state = first.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    rest = list(batches)
    assert list(resumed) == rest
    assert len({batch[-1] for batch in head + rest}) == len(first)


def test_transform_draws_anew_for_each_occurrence_of_a_sample(synthetic_set: Path) -> None:
    count = avdata.open(synthetic_set).num_samples
    weights = [1.0] + [0.0] * (count - 1)
    dataset = avdata.open(synthetic_set, shuffle=True, weights=weights, transform=number)
    by_sample = [drawn for _, _, drawn in dataset]
    assert len(set(by_sample)) == count
    dataset.set_epoch(0)
    by_batch = [item[2] for batch in dataset.loader(1, collate_fn=unchanged) for item in batch]
    assert by_batch == by_sample
    assert numbers(synthetic_set)[dataset.keys[0]] == by_sample[0]


@given(st.lists(st.integers(0, 9), max_size=60))
def test_occurrences_count_earlier_positions(order: list[int]) -> None:
    expected = [order[:position].count(sample) for position, sample in enumerate(order)]
    assert occurrences(np.array(order, np.int64)).tolist() == expected


def test_transformed_samples_are_collated(synthetic_set: Path) -> None:
    def negate(sample: AVSample, generator: torch.Generator) -> AVSample:
        assert sample.mel is not None
        return replace(sample, mel=-sample.mel)

    def pair(sample: AVSample, generator: torch.Generator) -> dict[str, Any]:
        return {"audio": sample.mel, "target": sample.label}

    plain = next(iter(avdata.open(synthetic_set).loader(4)))
    batch = next(iter(avdata.open(synthetic_set, transform=negate).loader(4)))
    assert isinstance(batch, AVBatch)
    torch.testing.assert_close(batch.mel, -plain.mel)
    assert torch.equal(batch.frames, plain.frames)
    assert (batch.key, batch.present.tolist()) == (plain.key, plain.present.tolist())
    batch = next(iter(avdata.open(synthetic_set, transform=pair).loader(4)))
    assert torch.equal(batch["target"], plain.label)
    torch.testing.assert_close(batch["audio"], plain.mel)
    batch = next(iter(avdata.open(synthetic_set, transform=negate, as_dict=True).loader(4)))
    assert batch.keys() == plain.as_dict().keys()
    item = next(iter(avdata.open(synthetic_set, transform=negate, as_dict=True)))
    torch.testing.assert_close(item["mel"], -plain.mel[0])


def test_collate_fn_receives_padding_with_weight_0(synthetic_set: Path) -> None:
    dataset = avdata.open(synthetic_set, "val")
    size = len(dataset) - 1
    *_, last = dataset.loader(size, collate_fn=unchanged)
    assert [sample.weight for sample in last] == [1.0] + [0.0] * (size - 1)
    assert isinstance(last[0], AVSample)
    dicts = next(iter(avdata.open(synthetic_set, as_dict=True).loader(2, collate_fn=unchanged)))
    assert [item["key"] for item in dicts] == avdata.open(synthetic_set).keys[:2]


def test_batch_transform_receives_what_the_loader_yields(synthetic_set: Path) -> None:
    def flip(batch: AVBatch, generator: torch.Generator) -> AVBatch:
        assert batch.frames is not None
        return replace(batch, frames=batch.frames.flip(-1))

    def keys(batch: dict[str, Any], generator: torch.Generator) -> list[str]:
        return list(batch["key"])

    dataset = avdata.open(synthetic_set)
    plain, flipped = (next(iter(dataset.loader(4, batch_transform=way))) for way in (None, flip))
    dataset.set_epoch(0)
    assert torch.equal(flipped.frames, plain.frames.flip(-1))
    assert next(iter(avdata.open(synthetic_set, as_dict=True).loader(4, batch_transform=keys))) == plain.key


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_with_a_transform_skips_damaged_samples(
    synthetic_set: Path, tmp_path: Path, workers: int
) -> None:
    root = shutil.copytree(synthetic_set, tmp_path / "set")
    bad = [row for row in read_index(root).to_pylist() if row["split"] == "val"][:2]
    for row in bad:
        with (root / row["shard"]).open("r+b") as stream:
            stream.seek(row["offset"])
            stream.write(bytes(512))
    dataset = avdata.open(root, "val", transform=number, on_error="skip")
    loader = dataset.loader(1, num_workers=workers, collate_fn=unchanged)
    items = [item for batch in loader for item in batch]
    assert len(items) == len(dataset)
    assert sorted(key for key, weight, _ in items if weight) == sorted(dataset.keys[2:])
    assert sorted(message.split()[3] for message in loader.skipped) == sorted(row["key"] for row in bad)
    view = dataset.as_map()
    assert view[0][:2] == (dataset.keys[2], 0.0)


def test_open_refuses_functions_without_a_generator(synthetic_set: Path) -> None:
    with pytest.raises(UsageError, match=r"two arguments.*\n.*def transform\(value, generator\)"):
        avdata.open(synthetic_set, transform=lambda sample: sample)
    with pytest.raises(UsageError, match="Invalid transform=3"):
        avdata.open(synthetic_set, transform=3)
    with pytest.raises(UsageError, match="Invalid batch_transform"):
        avdata.open(synthetic_set).loader(4, batch_transform=lambda batch: batch)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_error_of_a_transform_names_the_sample(synthetic_set: Path, on_error: Any) -> None:
    def fail(sample: AVSample, generator: torch.Generator) -> None:
        raise ZeroDivisionError

    dataset = avdata.open(synthetic_set, transform=fail, on_error=on_error)
    with pytest.raises(ZeroDivisionError) as caught:
        next(iter(dataset.loader(4)))
    assert caught.value.__notes__ == [
        f"raised by the transform of sample {dataset.keys[0]} of {synthetic_set}"
    ]


# -- modalities ------------------------------------------------------------------------------------------


@pytest.fixture(params=["npy", "jpeg"])
def root(request: pytest.FixtureRequest, synthetic_set: Path, cremad_set: Path) -> Path:
    return {"npy": synthetic_set, "jpeg": cremad_set}[request.param]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError


def test_audio_alone_decodes_no_frames(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = next(iter(avdata.open(root).loader(4)))
    dataset = avdata.open(root, modalities=("audio",))
    monkeypatch.setattr("avdata.streaming.collate.decode_strip", refuse)
    batch, sample = next(iter(dataset.loader(4))), dataset[0]
    assert batch.frames is sample.frames is None
    assert torch.equal(batch.mel, complete.mel)
    assert torch.equal(sample.mel, complete.mel[0])
    assert batch.present.tolist() == [[audio, False] for audio, _ in complete.present.tolist()]
    assert sample.present == batch.present[0].tolist()
    assert torch.equal(avdata.collate([sample]).mel, complete.mel[:1])
    assert "frames=None" in repr(dataset)
    assert "frames" not in sample.as_dict()


def test_video_alone_decodes_no_mel(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = next(iter(avdata.open(root).loader(4)))
    dataset = avdata.open(root, modalities=["video"])
    monkeypatch.setattr("avdata.streaming.collate.BatchAssembler.mel", refuse)
    batch, sample = next(iter(dataset.loader(4))), dataset[0]
    assert batch.mel is sample.mel is None
    assert torch.equal(batch.frames, complete.frames)
    assert torch.equal(sample.frames, complete.frames[0])
    assert batch.present.tolist() == [[False, video] for _, video in complete.present.tolist()]
    assert sample.present == batch.present[0].tolist()
    assert torch.equal(batch.to("cpu").frames, complete.frames)
    assert torch.equal(avdata.collate([sample]).frames, complete.frames[:1])
    assert "mel=None" in repr(batch)
    assert "mel=None" in repr(dataset)
    assert sample._repr_html_() is None
    assert dataset._repr_html_()


def test_waveform_is_read_with_audio(audio_set: Path) -> None:
    sample = avdata.open(audio_set, modalities=("audio",), waveform=True)[0]
    assert torch.equal(sample.waveform, avdata.open(audio_set, waveform=True)[0].waveform)


@pytest.mark.parametrize("modalities", ["audio", (), ("sound",), ("audio", "text"), 3])
def test_open_refuses_invalid_modalities(synthetic_set: Path, modalities: Any) -> None:
    with pytest.raises(UsageError, match="Invalid modalities"):
        avdata.open(synthetic_set, modalities=modalities)


def test_open_refuses_video_of_a_dataset_of_audio(audio_set: Path) -> None:
    with pytest.raises(UsageError, match="has no video"):
        avdata.open(audio_set, modalities=("video",))


def test_open_refuses_waveforms_without_audio(synthetic_set: Path) -> None:
    with pytest.raises(UsageError, match="waveforms are audio"):
        avdata.open(synthetic_set, modalities=("video",), waveform=True)


# -- frames ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [None, "BTCHW", "channels_last"])
def test_frames_have_the_requested_type_and_layout(root: Path, dtype: torch.dtype, layout: Any) -> None:
    stored = next(iter(avdata.open(root).loader(4))).frames
    dataset = avdata.open(root, frames_dtype=dtype, frames_layout=layout)
    expected = v2.functional.to_dtype(stored, dtype, scale=True)
    batch, sample = next(iter(dataset.loader(4))).frames, dataset[0].frames
    assert torch.equal(batch, expected)
    assert torch.equal(sample, expected[0])
    assert batch.dtype == sample.dtype == dtype
    if layout == "BTCHW":
        assert batch.is_contiguous()
        assert sample.is_contiguous()
    elif layout == "channels_last":
        assert batch.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert sample.is_contiguous(memory_format=torch.channels_last)
    else:
        assert batch.stride() == stored.stride()
    assert dataset[0]._repr_html_() == avdata.open(root)[0]._repr_html_()


def test_open_refuses_invalid_frame_options(synthetic_set: Path) -> None:
    with pytest.raises(UsageError, match=r"frames_dtype=torch.int32: must be one of torch.uint8"):
        avdata.open(synthetic_set, frames_dtype=torch.int32)
    with pytest.raises(UsageError, match=r"frames_dtype='float32'"):
        avdata.open(synthetic_set, frames_dtype="float32")
    with pytest.raises(UsageError, match=r"frames_layout='BCTHW': must be one of BTCHW"):
        avdata.open(synthetic_set, frames_layout="BCTHW")
