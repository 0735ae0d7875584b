"""Each layout against a small reader, written from what the published readers open."""

from __future__ import annotations

import csv
import io
import os
import random
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torchaudio.compliance import kaldi
from torchvision.datasets import ImageFolder

from avdata.errors import UsageError
from avdata.layouts import EXPORT_LAYOUTS
from avdata.layouts.clip_media import ClipMedia
from avdata.layouts.mp4 import encode_mp4
from avdata.layouts.run import export
from avdata.shards.reader import read_index, read_info
from avdata.shards.sample import load_sample, read_sample_bytes

LABELS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")


def listed(path: Path) -> list[list[str]]:
    with path.open(encoding="UTF-8-sig") as stream:
        return list(csv.reader(stream))


def splits(root: Path) -> dict[str, list[str]]:
    index = read_index(root, ["key", "split"]).to_pylist()
    return {name: [row["key"] for row in index if row["split"] == name] for name in ("train", "val", "test")}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def published_fbank(path: Path, rows: int) -> np.ndarray:
    """Return what OGM-GE's data/KineticSound/process_audio.py computes of a WAV."""
    samples, rate = soundfile.read(path, dtype="float32")
    waveform = torch.from_numpy(samples)[None]
    fbank = kaldi.fbank(
        waveform - waveform.mean(), htk_compat=True, sample_frequency=rate, use_energy=False,
        window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    fbank = torch.nn.functional.pad(fbank, (0, 0, 0, max(0, rows - len(fbank))))[:rows]
    return ((fbank + 4.503877) / (5.141276 * 2)).numpy()


def test_ogm_ge_has_the_source_audio_and_images_in_time_order(
    layout_set: Path, cremad_mock: Path, tmp_path: Path
) -> None:
    export(layout_set, tmp_path, "ogm-ge")
    for split, keys in splits(layout_set).items():
        rows = listed(tmp_path / f"{split}.csv")
        assert [row[0] for row in rows] == keys
        for stem, label in rows:
            assert label in LABELS
            assert label in stem
            source, rate = soundfile.read(cremad_mock / "AudioWAV" / f"{stem}.wav", dtype="int16")
            copy, copy_rate = soundfile.read(tmp_path / "audio" / f"{stem}.wav", dtype="int16")
            assert (copy_rate, len(copy)) == (rate, len(source))
            assert np.abs(copy.astype(int) - source).max() <= 1
            images = sorted(os.listdir(tmp_path / "visual/Image-01-FPS" / stem))
            assert images == [f"frame_{number:05d}.jpg" for number in range(1, len(images) + 1)]
            stored = load_sample(layout_set, stem)
            assert len(images) == max(3, len(set(stored.metadata["frame_times"])))
            for name, frame in zip(images, stored.frames, strict=False):
                written = pixels(tmp_path / "visual/Image-01-FPS" / stem / name)
                assert np.abs(written - frame).mean() < 4
    assert [row[0] for row in listed(tmp_path / "stat.csv")] == list(LABELS)


def test_balancemm_has_torchaudios_fbank_and_every_image_that_its_readers_open(
    layout_set: Path, cremad_mock: Path, tmp_path: Path
) -> None:
    export(layout_set, tmp_path, "balancemm", fbank_frames=250, merge_val=True)
    keys = splits(layout_set)
    assert [row[0] for row in listed(tmp_path / "val.csv")] == keys["val"]
    train = [row[0] for row in listed(tmp_path / "train.csv")]
    assert set(train) == {*keys["train"], *keys["val"]}
    draw = random.Random(0)
    for stem in train:
        fbank = torch.load(tmp_path / "audio" / f"{stem}.pt", weights_only=True)
        assert type(fbank) is torch.Tensor
        assert (fbank.dtype, fbank.shape) == (torch.float32, (250, 128))
        expected = published_fbank(cremad_mock / "AudioWAV" / f"{stem}.wav", 250)
        np.testing.assert_allclose(fbank.numpy(), expected, atol=0.02)
        count = len(os.listdir(tmp_path / "visual" / stem))
        segment = count // 2
        # MMPareto: training, then test.
        picked = [draw.randint(part * segment + 1, part * segment + segment) for part in (0, 1)]
        picked += [part * segment + segment // 2 for part in (0, 1)]
        assert all((tmp_path / f"visual/{stem}/frame_000{number:02d}.jpg").is_file() for number in picked)


def test_kinetics_sounds_has_torchaudios_fbank_and_every_image_that_its_reader_opens(
    layout_set: Path, cremad_mock: Path, tmp_path: Path
) -> None:
    export(layout_set, tmp_path, "kinetics-sounds")
    labels = [row[0] for row in listed(tmp_path / "stat.csv")]
    for line in (tmp_path / "test.txt").read_text().splitlines():
        name, number = line.split(" ")[0], int(line.split(" ")[-1])
        assert labels[number] in name
        fbank = np.load(tmp_path / "audio" / f"{name}.npy", allow_pickle=False)
        assert (fbank.dtype, fbank.shape) == (np.float32, (1024, 128))
        expected = published_fbank(cremad_mock / "AudioWAV" / f"{name}.wav", 1024)
        np.testing.assert_allclose(fbank, expected, atol=0.02)
        count = len(os.listdir(tmp_path / "visual" / name))
        segment = count // 3
        picked = [part * segment + max(segment // 2, 1) if count > 6 else 1 for part in range(3)]
        assert count > 3
        assert all((tmp_path / f"visual/{name}/frame_0000{number}.jpg").is_file() for number in picked)


def test_s_cmrl_finds_the_audio_by_the_path_of_the_image(layout_set: Path, tmp_path: Path) -> None:
    root = tmp_path / "processed_dataset"
    export(layout_set, root, "s-cmrl")
    for split in ("train", "test"):
        images = sorted((root / split / "visual").glob("*/*.jpg"))
        assert sorted(image.stem for image in images) == sorted(splits(layout_set)[split])
        for image in images:
            assert image.parent.name in LABELS
            audio = str(image).replace(str(tmp_path), "").replace("visual", "audio").replace(".jpg", ".wav")
            assert soundfile.info(f"{tmp_path}{audio}").channels == 1
    counts = [sum(label in key for key in splits(layout_set)["train"]) for label in LABELS]
    assert f"class_counts_train = {counts}" in (root / "README.md").read_text()


def test_folders_are_read_by_image_folder_and_have_a_table(layout_set: Path, tmp_path: Path) -> None:
    export(layout_set, tmp_path, "folders", media=("jpg", "wav", "mp4"))
    for split, keys in splits(layout_set).items():
        if not keys:
            continue
        images = ImageFolder(str(tmp_path / split))
        assert sorted(Path(path).stem for path, _ in images.samples) == sorted(keys)
        header, *rows = listed(tmp_path / split / "metadata.csv")
        assert header == ["file_name", "wav_file_name", "mp4_file_name", "label", "key"]
        for *files, label, key in rows:
            assert all((tmp_path / split / name).is_file() for name in files)
            assert files[0] == f"{label}/{key}.jpg"


def test_folders_mp4_has_all_frames_and_the_audio(layout_set: Path) -> None:
    row = read_index(layout_set).to_pylist()[0]
    media = ClipMedia.read(read_sample_bytes(layout_set, row), read_info(layout_set)["shape"], 16_000)
    data = encode_mp4(media)
    assert encode_mp4(media) == data
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        assert container.streams.video[0].average_rate == 1
    assert np.abs(np.stack(frames).astype(int) - media.frames).mean() < 6
    assert samples == pytest.approx(len(media.window_waveform), abs=2048)


@pytest.mark.exhaustive
def test_folders_are_read_by_the_builders_of_datasets(layout_set: Path, tmp_path: Path) -> None:
    import datasets

    export(layout_set, tmp_path / "both", "folders", media=("wav",))
    audio = datasets.load_dataset("audiofolder", data_dir=str(tmp_path / "both"), split="test")
    assert len(audio) == len(splits(layout_set)["test"])
    export(layout_set, tmp_path / "images", "folders", media=("jpg",))
    images = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "images"), split="test")
    assert sorted(images["key"]) == sorted(splits(layout_set)["test"])


@pytest.mark.parametrize("layout", ["ogm-ge", "balancemm", "kinetics-sounds", "s-cmrl"])
def test_layout_of_a_dataset_without_waveforms_names_the_command(
    cremad_set: Path, tmp_path: Path, layout: str
) -> None:
    with pytest.raises(UsageError, match=f"Layout {layout} requires waveforms") as caught:
        export(cremad_set, tmp_path / "out", layout)
    preset = EXPORT_LAYOUTS[layout].preset
    assert f"avdata prepare cremad --preset {preset}" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("balancemm", {"frames": [3, 32, 32, 3]}, "at least 4 frames of a clip, and .* has 3 frames"),
        ("kinetics-sounds", {"frames": [12, 32, 32, 3]}, "at most 11 frames of a clip, and .* has 12 frames"),
        ("ogm-ge", {"frames": [5, 32, 32, 3]}, "an integer number of frames per second"),
    ],
)
def test_layout_of_a_dataset_with_other_frames_names_the_command(
    layout_set: Path, tmp_path: Path, layout: str, change: dict[str, object], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    info = read_info(layout_set)
    info["shape"] = {**info["shape"], **change}
    files = SimpleNamespace(name=str(layout_set), root=layout_set, info=info)
    monkeypatch.setattr("avdata.layouts.run.open_dataset_files", lambda dataset, *names: files)
    with pytest.raises(UsageError, match=message) as caught:
        export(layout_set, tmp_path / "out", layout)
    assert "Prepare the dataset with: avdata prepare cremad --preset" in str(caught.value.hint)
