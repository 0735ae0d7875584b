"""Warnings about the clips of a plan."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import avdata
from avdata.pipeline.planning import plan_preparation
from avdata.recipe import load_recipe


def test_prepare_and_report_name_labels_that_train_lacks(
    cremad_mock: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = load_recipe("cremad").clips(cremad_mock, "speaker")
    source = shutil.copytree(cremad_mock, tmp_path / "source")
    for clip in clips:
        if clip.split == "train" and clip.label in {"ANG", "SAD"}:
            (source / "VideoFlash" / f"{clip.key}.flv").unlink()
    settings = {"video": {"size": 16}}
    done = avdata.prepare("cremad", source=source, output=tmp_path / "out", config=settings, workers=0)
    assert "Train has no clip of 2 of 6 labels: ANG, SAD." in caplog.text
    page = avdata.report(done.root).read_text()
    assert "Train has no sample of 2 of 6 labels: ANG, SAD." in page


def test_plan_counts_clips_that_use_the_audio_of_their_videos(
    cremad_mock: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = shutil.copytree(cremad_mock, tmp_path / "source")
    assert plan_preparation("cremad", source=source).clips
    assert "are missing" not in caplog.text
    (source / "AudioWAV").rename(source / "AudioMP3")
    for path in (source / "AudioMP3").iterdir():
        path.rename(path.with_suffix(".mp3"))
    assert plan_preparation("cremad", source=source).clips
    assert caplog.text.count("Separate audio files of 14 of 14 clips are missing") == 1
