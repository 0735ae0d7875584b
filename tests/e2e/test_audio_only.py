"""A dataset of audio, without frames, in every part that reads a prepared dataset."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import avdata
import snnergy.cli
from avdata.config.schema import SelectConfig
from avdata.errors import AvdataError, UsageError
from avdata.recipe import Clip
from avdata.reporting.sample_plot import save_sample_plot
from avdata.selection import check_clips, select_clips
from avdata.shards.reader import read_info
from avdata.shards.sample import load_sample


def test_samples_hold_the_sounds_and_no_frames(audio_set: Path) -> None:
    assert read_info(audio_set)["shape"] == {"mel": [4, 128, 128], "frames": None}
    shards = sorted(audio_set.glob("*/*.tar"))
    assert shards
    for shard in shards:
        with tarfile.open(shard) as tar:
            files = {entry.name: member.read() for entry in tar if (member := tar.extractfile(entry))}
        assert {name.partition(".")[2] for name in files} == {"cls", "flac", "json", "mel.npy"}
        for name, content in files.items():
            if name.endswith(".flac"):
                wave, rate = soundfile.read(io.BytesIO(content))
                # The mock beeps 0.15 s after the start of each sound.
                assert np.argmax(np.abs(wave) > 0.1) / rate == pytest.approx(0.15, abs=0.01)
            elif name.endswith(".json"):
                facts = json.loads(content)
                assert facts.keys().isdisjoint({"frame_times", "duration_video"})
                assert facts["sources"].keys() == {"audio"}


def test_batches_have_no_frames_and_say_so(audio_set: Path) -> None:
    dataset = avdata.open(audio_set, waveform=True)
    batch = next(iter(dataset.loader(4)))
    assert batch.frames is None
    assert batch.present.tolist() == [[True, False]] * 4
    assert "frames=None" in repr(batch)
    assert "frames=None" in repr(dataset)
    assert batch.to("cpu").frames is None
    collated = avdata.collate([dataset[number] for number in range(4)])
    stock = next(iter(torch.utils.data.DataLoader(
        avdata.webdataset(audio_set, waveform=True), batch_size=4, collate_fn=avdata.collate
    )))  # fmt: skip
    mixed = next(iter(avdata.mix([dataset]).loader(4)))
    for other in (collated, stock, mixed):
        assert other.key == batch.key
        assert torch.equal(other.mel, batch.mel)
        assert other.frames is None
        assert torch.equal(other.present, batch.present)


def test_collate_rejects_samples_with_and_without_frames(audio_set: Path, synthetic_set: Path) -> None:
    with pytest.raises(UsageError, match="1 of 2 have it"):
        avdata.collate([avdata.open(audio_set)[0], avdata.open(synthetic_set)[0]])


def test_pages_and_plots_show_the_spectrogram_alone(audio_set: Path, tmp_path: Path) -> None:
    page = avdata.report(audio_set, tmp_path / "report.html").read_text()
    assert "no frames" in page
    assert 'class="frames"' not in page
    card = (audio_set / "README.md").read_text()
    assert "The dataset has no frames" in card
    assert "video-classification" not in card
    assert "frames.jpg" not in card
    assert "video frames" not in (audio_set / "croissant.json").read_text()
    sample = load_sample(audio_set)
    save_sample_plot(sample, tmp_path / "sample.png")
    assert (tmp_path / "sample.png").stat().st_size > 1000
    assert "frames and" not in sample._repr_html_()
    assert "frames none" in avdata.open(audio_set)._repr_html_()


def test_verify_reports_frames_in_a_dataset_of_audio(audio_set: Path, tmp_path: Path) -> None:
    assert avdata.verify(audio_set).ok
    copy = shutil.copytree(audio_set, tmp_path / "copy")
    info = json.loads((copy / "dataset.json").read_text())
    video = info["config"]["video"]
    info["shape"]["frames"] = [video["num_frames"], video["size"], video["size"], 3]
    (copy / "dataset.json").write_text(json.dumps(info))
    assert not avdata.verify(copy).ok


def test_export_refuses_a_dataset_without_frames(audio_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="requires frames"):
        avdata.export(audio_set, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fusion", "code"), [("audio", 0), ("cmqka", 2)])
def test_train_accepts_the_audio_fusion_only(
    audio_set: Path,
    tmp_path: Path,
    fusion: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["train", str(audio_set), "--fusion", fusion, "--steps", "1", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", ["snnergy", *words, "--output", str(tmp_path / "run"), "--quiet"])
    with pytest.raises(SystemExit) as caught:
        snnergy.cli.main()
    assert caught.value.code == code
    refusal = f"Fusion '{fusion}' requires frames" in capsys.readouterr().err
    assert refusal == bool(code)


def clip(key: str, video: Path | None, audio: Path | None = Path("a.wav")) -> Clip:
    return Clip(key=key, label="a", group=key, split="train", video=video, audio=audio)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([clip("a", None), clip("b", Path("b.mp4"))], "Clip b has a video, unlike a"),
        ([clip("a", Path("a.mp4")), clip("b", None)], "Clip b has no video, unlike a"),
        ([clip("a", None, None)], "neither video nor audio"),
    ],
)
def test_check_clips_requires_videos_of_all_clips_or_of_none(clips: list[Clip], message: str) -> None:
    chosen, _ = select_clips(clips, SelectConfig())
    with pytest.raises(AvdataError, match=message):
        check_clips(chosen, ("a",), ("train",))
