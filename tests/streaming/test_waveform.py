"""Stored waveforms in samples and batches: equal to soundfile's decoding and to the source files."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import lightning
import numpy as np
import pytest
import soundfile
import torch
from support.dataset_servers import Site, served
from torch.utils.data import DataLoader

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.shards.reader import read_index
from avdata.streaming.batch import AVBatch, AVSample
from avdata.streaming.waveform import decode_flac

Once = Callable[..., Path]
RATE, SAMPLES = 16_000, 40_960  # the default window of 2.56 s


def prepare(once: Once, name: str, source: Path, **settings: object) -> Path:
    config = {"audio": {"flac": True}, "video": {"size": 32}, "shards": {"samples_per_shard": 3}, **settings}
    return once(
        name, lambda out: avdata.prepare("cremad", source=source, output=out, config=config, workers=0)
    )


@pytest.fixture(scope="session")
def flac_set(once: Once, cremad_mock: Path) -> Path:
    return prepare(once, "flac", cremad_mock)


@pytest.fixture(scope="session")
def whole_set(once: Once, cremad_mock: Path) -> Path:
    """A dataset whose windows differ in length."""
    audio = {"flac": True, "resize": [16, 16], "layout": "repeat"}
    return prepare(once, "flac-whole", cremad_mock, audio=audio, align={"window": "whole", "seconds": None})


@pytest.fixture(scope="session")
def expected(flac_set: Path) -> dict[str, np.ndarray]:
    return decoded_members(flac_set)


def decoded_members(root: Path) -> dict[str, np.ndarray]:
    """Return the waveforms of all samples by key, read with the standard library and soundfile."""
    waveforms = {}
    for path in root.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if extension == "flac":
                    content = tar.extractfile(member)
                    assert content is not None
                    waveforms[key], rate = soundfile.read(io.BytesIO(content.read()), dtype="float32")
                    assert rate == RATE
    return waveforms


def waveforms_of(batches: Iterable[AVBatch]) -> dict[str, np.ndarray]:
    """Return the waveforms of all samples with a weight, by key."""
    waveforms = {}
    for batch in batches:
        assert batch.waveform is not None
        assert (batch.waveform.dtype, batch.sample_rate) == (torch.float32, RATE)
        assert batch.waveform.shape == (len(batch.key), SAMPLES)
        for key, weight, waveform in zip(batch.key, batch.weight, batch.waveform, strict=True):
            if weight:
                waveforms[key] = waveform.numpy().copy()
    return waveforms


def assert_equal(waveforms: dict[str, np.ndarray], expected: dict[str, np.ndarray], keys: list[str]) -> None:
    assert sorted(waveforms) == sorted(keys)
    assert all(np.array_equal(waveforms[key], expected[key]) for key in keys)


def test_sample_waveform_is_the_decoded_member(flac_set: Path, expected: dict[str, np.ndarray]) -> None:
    for split in ("train", "val", "test"):
        for sample in avdata.open(flac_set, split, waveform=True):
            assert sample.waveform is not None
            assert (sample.waveform.dtype, sample.sample_rate) == (torch.float32, RATE)
            assert np.array_equal(sample.waveform.numpy(), expected[sample.key])


def test_sample_waveform_is_the_source_wav_in_the_window(flac_set: Path, cremad_mock: Path) -> None:
    for sample in avdata.open(flac_set, "train", waveform=True):
        source, rate = soundfile.read(cremad_mock / sample.metadata["sources"]["audio"]["path"])
        assert rate == sample.sample_rate
        assert sample.waveform is not None
        begin = round((sample.metadata["av_offset"] - sample.metadata["window_start"]) * rate)
        end = min(begin + len(source), SAMPLES)
        inside = sample.waveform.numpy()[begin:end]
        # One step of 16 bits.
        assert np.abs(inside - source[: end - begin]).max() <= 1 / 32_768
        assert np.abs(inside).max() > 0.1
        assert not sample.waveform[:begin].any()
        assert not sample.waveform[end:].any()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_loader_returns_the_waveforms_of_its_keys(
    flac_set: Path, expected: dict[str, np.ndarray], workers: int
) -> None:
    data = avdata.open(flac_set, "train", shuffle=True, waveform=True)
    assert_equal(waveforms_of(data.loader(4, num_workers=workers)), expected, data.keys)


def test_waveform_is_none_without_the_option(flac_set: Path) -> None:
    data = avdata.open(flac_set)
    batches = [next(iter(data.loader(2))), avdata.collate([data[0]])]
    samples = [data[0], next(iter(data)), next(iter(avdata.webdataset(flac_set)))]
    assert {(item.waveform, item.sample_rate) for item in [*batches, *samples]} == {(None, None)}


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_dataloader_collates_waveforms(
    flac_set: Path, expected: dict[str, np.ndarray], workers: int
) -> None:
    data = avdata.open(flac_set, "train", waveform=True)
    loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=avdata.collate)
    assert_equal(waveforms_of(loader), expected, data.keys)


def test_collate_refuses_samples_with_and_without_waveform(flac_set: Path) -> None:
    samples = [avdata.open(flac_set, waveform=waveform)[0] for waveform in (True, False)]
    with pytest.raises(UsageError, match=r"sample rates \[16000, None\]"):
        avdata.collate(samples)


def test_webdataset_returns_waveforms(flac_set: Path, expected: dict[str, np.ndarray]) -> None:
    samples = list(avdata.webdataset(flac_set, "train", waveform=True))
    assert {sample.sample_rate for sample in samples} == {RATE}
    waveforms = {sample.key: sample.waveform.numpy() for sample in samples}
    assert_equal(waveforms, expected, avdata.open(flac_set, "train").keys)


def test_data_module_returns_waveforms(flac_set: Path, expected: dict[str, np.ndarray]) -> None:
    data = avdata.AVDataModule(flac_set, batch_size=2, waveform=True)
    data.setup("fit")
    assert isinstance(data, lightning.LightningDataModule)
    batch = next(iter(data.train_dataloader()))
    assert data.transfer_batch_to_device(batch, torch.device("meta"), 0).waveform.device.type == "meta"
    assert_equal(waveforms_of(data.train_dataloader()), expected, data.splits["train"].keys)


def test_mix_returns_the_waveforms_of_its_datasets(flac_set: Path, expected: dict[str, np.ndarray]) -> None:
    parts = [avdata.open(flac_set, split, shuffle=True, waveform=True) for split in ("train", "val")]
    mixed = avdata.mix(parts)
    assert f"waveform=[{SAMPLES}])" in repr(mixed)
    assert_equal(waveforms_of(mixed.loader(3)), expected, parts[0].keys + parts[1].keys)


def test_mix_refuses_datasets_with_and_without_waveform(flac_set: Path) -> None:
    with pytest.raises(UsageError, match="Shape mismatch") as caught:
        avdata.mix([avdata.open(flac_set, waveform=True), avdata.open(flac_set, "val")])
    assert "`waveform`" in str(caught.value.hint)


def test_loader_resumes_with_the_next_waveforms_of_a_filter(
    flac_set: Path, expected: dict[str, np.ndarray]
) -> None:
    def loader() -> avdata.AVLoader:
        condition = f"key != '{avdata.open(flac_set).keys[0]}'"
        return avdata.open(flac_set, shuffle=True, filter=condition, waveform=True).loader(2)

    first = loader()
    batches = iter(first)
    head = waveforms_of([next(batches)])
    rest = loader()
    rest.load_state_dict(first.state_dict())
    assert_equal(head | waveforms_of(rest), expected, avdata.open(flac_set).keys[1:])


def test_remote_waveforms_equal_the_local_ones(
    flac_set: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with served(Site(flac_set)) as site:
        data = avdata.open(site.url, "train", waveform=True, cache=tmp_path / "a")
        assert np.array_equal(data[0].waveform.numpy(), expected[data.key(0)])
        assert_equal(waveforms_of(data.loader(4)), expected, data.keys)
        samples = list(avdata.webdataset(site.url, "train", waveform=True, cache=tmp_path / "b"))
    assert_equal({sample.key: sample.waveform.numpy() for sample in samples}, expected, data.keys)


def test_whole_windows_are_followed_by_zeros(whole_set: Path) -> None:
    expected = decoded_members(whole_set)
    longest = max(map(len, expected.values()))
    assert len(set(map(len, expected.values()))) > 1
    for split in ("train", "val", "test"):
        data = avdata.open(whole_set, split, waveform=True)
        batch = avdata.collate([data[number] for number in range(len(data))])
        loaded = next(iter(data.loader(len(data))))
        assert batch.waveform is not None
        assert loaded.waveform is not None
        assert torch.equal(batch.waveform, loaded.waveform)
        assert batch.waveform.shape == (len(data), longest)
        for key, waveform in zip(batch.key, batch.waveform.numpy(), strict=True):
            assert np.array_equal(waveform[: len(expected[key])], expected[key])
            assert not waveform[len(expected[key]) :].any()


def test_mix_follows_shorter_waveforms_by_zeros(
    whole_set: Path, tmp_path: Path, once: Once, cremad_mock: Path
) -> None:
    audio = {"flac": True, "resize": [16, 16], "layout": "repeat"}
    short = prepare(once, "flac-short", cremad_mock, audio=audio, align={"seconds": 1.0})
    mixed = avdata.mix([avdata.open(root, "val", waveform=True) for root in (whole_set, short)])
    expected = decoded_members(whole_set)
    batch = next(iter(mixed.loader(len(mixed))))
    assert batch.waveform is not None
    assert batch.waveform.shape[1] == max(map(len, expected.values()))
    lengths = [int(waveform.nonzero().max()) + 1 for waveform in batch.waveform]
    assert sum(length <= RATE for length in lengths) == len(mixed) // 2


def test_open_names_the_setting_that_stores_waveforms(synthetic_set: Path) -> None:
    for function in (avdata.open, avdata.webdataset):
        with pytest.raises(UsageError, match="stores no waveforms") as caught:
            function(synthetic_set, "train", waveform=True)
        assert "--set audio.flac=true" in str(caught.value.hint)


def test_batch_moves_and_pins_the_waveform(flac_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(iter(avdata.open(flac_set, waveform=True).loader(2)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.to("meta"))
    for moved in (batch.to("meta"), batch.pin_memory()):
        assert moved.waveform is not None
        assert (moved.waveform.device.type, moved.sample_rate) == ("meta", RATE)


def test_repr_states_the_length_of_the_waveform(flac_set: Path) -> None:
    data = avdata.open(flac_set, waveform=True)
    batch = next(iter(data.loader(2)))
    assert f"waveform=[{SAMPLES}])" in repr(data)
    assert f"waveform=[{SAMPLES}])" in repr(data[0])
    assert f"waveform=[2, {SAMPLES}]," in repr(batch)


# -- damage ----------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(flac_set: Path, tmp_path: Path) -> tuple[Path, dict]:
    """A copy with a flipped byte in the middle of one sample's FLAC, and the row of that sample."""
    root = shutil.copytree(flac_set, tmp_path / "set")
    row = next(row for row in read_index(root).to_pylist() if row["split"] == "train")
    with (root / row["shard"]).open("r+b") as stream:
        with tarfile.open(fileobj=stream) as tar:
            member = tar.getmember(f"{row['key']}.flac")
        stream.seek(member.offset_data + member.size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, io.SEEK_CUR)
        stream.write(bytes([byte ^ 0x10]))
    return root, row


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_names_shard_and_key_of_a_damaged_flac(damaged: tuple[Path, dict], workers: int) -> None:
    root, row = damaged
    with pytest.raises(AvdataError, match=rf"Cannot read sample {row['key']} in {row['shard']}: flac cannot"):
        list(avdata.open(root, waveform=True).loader(2, num_workers=workers))


def test_webdataset_names_shard_and_key_of_a_damaged_flac(damaged: tuple[Path, dict]) -> None:
    root, row = damaged
    with pytest.raises(
        AvdataError, match=rf"Cannot read sample {row['key']} in .*{row['shard']}: flac cannot"
    ):
        list(avdata.webdataset(root, waveform=True))


def test_damaged_flac_is_not_read_without_the_option(damaged: tuple[Path, dict]) -> None:
    assert len(list(avdata.open(damaged[0]))) == len(avdata.open(damaged[0]))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_skips_a_damaged_flac(
    damaged: tuple[Path, dict], expected: dict[str, np.ndarray], workers: int
) -> None:
    root, row = damaged
    data = avdata.open(root, waveform=True, on_error="skip")
    loader = data.loader(2, num_workers=workers)
    batches = list(loader)
    assert_equal(waveforms_of(batches), expected, [key for key in data.keys if key != row["key"]])
    assert [message.split()[3] for message in loader.skipped] == [row["key"]]
    assert batches[0].waveform is not None
    assert batches[0].weight.tolist() == [0, 1]
    assert torch.equal(batches[0].waveform[0], batches[0].waveform[1])
    samples: list[AVSample] = list(data)
    assert [sample.weight for sample in samples].count(0) == 1


def flac(waveform: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


NOISE = (np.random.default_rng(0).normal(size=20_000) / 10).astype(np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (flac(NOISE, 8_000), "8000.*expected.*16000"),
        (flac(np.stack([NOISE, NOISE], axis=1)), "2, 16000.*expected"),
        (flac(np.tile(NOISE, 2)), "40,000 samples, expected at most 20,000"),
        (flac(NOISE)[:-9_000], "flac cannot be decoded"),
        (flac(NOISE)[:42], "flac cannot be decoded"),
        (b"", "flac cannot be decoded"),
    ],
)
def test_decode_flac_refuses_what_is_not_the_waveform(content: bytes, message: str) -> None:
    with pytest.raises(AvdataError, match=message):
        decode_flac(content, RATE, np.empty(len(NOISE), np.float32))


def test_decode_flac_detects_a_flipped_bit_anywhere() -> None:
    content, out = flac(NOISE), np.empty(len(NOISE), np.float32)
    decode_flac(content, RATE, out)
    frames = content.index(b"\xff\xf8")  # the first audio frame; metadata before it is not decoded
    for at in range(frames, len(content), 401):
        broken = bytearray(content)
        broken[at] ^= 1 << at % 8
        with pytest.raises(AvdataError, match="flac"):
            decode_flac(bytes(broken), RATE, out)
