"""Properties of every entry of `DECODERS`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from support.containers import CONTAINERS, SMALL_SCENE

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.media.decoders import DECODERS
from avdata.media.video import read_frame_times, read_frames
from avdata.testing.media import write_av

QUALITY = QualityConfig()


def test_decoders_are_the_values_of_video_decoder() -> None:
    assert tuple(DECODERS) == get_args(VideoConfig.model_fields["decoder"].annotation)
    assert DECODERS[VideoConfig().decoder].reuses_packets


def test_decoder_table_imports_no_decoder_package() -> None:
    code = "import sys, avdata.media.decoders; sys.exit(bool({'av', 'decord'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("suffix", ["flv", "mp4", "avi"])
def test_decoder_returns_the_frames_and_times_of_pyav(tmp_path: Path, suffix: str, decoder: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_av(path, SMALL_SCENE, **CONTAINERS[suffix])
    times = [0.1, 0.5, 1.02, 1.9]
    expected = read_frames(path, times, QUALITY)
    frames = DECODERS[decoder].frames_at(path, read_frame_times(path, QUALITY), times)
    for frame, other in zip(frames, expected, strict=True):
        assert frame.time == pytest.approx(other.time, abs=1e-6)
        assert np.abs(frame.pixels.astype(int) - other.pixels).mean() < 2


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("fps", [24, 30])
def test_frame_requested_at_its_own_time_is_on_screen(tmp_path: Path, fps: int, decoder: str) -> None:
    path = tmp_path / "clip.mp4"
    write_av(path, replace(SMALL_SCENE, fps=Fraction(fps), size=(32, 32)), vcodec="libx264", acodec=None)
    frame_times = read_frame_times(path, QUALITY)
    times = frame_times.times.tolist()
    for frames in (
        read_frames(path, times, QUALITY),
        DECODERS[decoder].frames_at(path, frame_times, times),
    ):
        assert [frame.time for frame in frames] == pytest.approx(times)
