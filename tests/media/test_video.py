from __future__ import annotations

import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
import numpy as np
import pytest
from support.containers import CONTAINERS, SMALL_SCENE

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio import decode_audio
from avdata.media.video import read_frame_times, read_frames
from avdata.testing.media import scene_frame, write_av

QUALITY = QualityConfig()


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_flash_and_beep_coincide_in_every_container(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_av(path, SMALL_SCENE, **CONTAINERS[suffix])
    track, frame_times = decode_audio(path, QUALITY), read_frame_times(path, QUALITY)
    beep = track.start + float(np.argmax(np.abs(track.samples) > 0.2)) / track.rate
    frames = read_frames(path, [float(time) for time in frame_times.times], QUALITY)
    flash = next(frame.time for frame in frames if frame.pixels.mean() > 200)
    assert abs(beep - flash) < 0.002
    assert len(frame_times.times) == SMALL_SCENE.frames


def test_read_frames_returns_the_last_frame_presented_by_each_time(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write_av(path, SMALL_SCENE, vcodec="ffv1", acodec=None, pix_fmt="bgr0")
    times = [-1.0, 0.0, 0.039, 0.0401, 0.999, 1.0, 1.5, 99.0]
    frames = read_frames(path, times, QUALITY)
    assert [round(frame.time, 3) for frame in frames] == [0.0, 0.0, 0.0, 0.04, 0.96, 1.0, 1.48, 1.96]
    for frame in frames:
        assert np.array_equal(frame.pixels, scene_frame(SMALL_SCENE, round(frame.time * 25)))


@pytest.mark.parametrize("suffix", ["flv", "mp4", "mkv"])
def test_read_frames_returns_the_frames_of_ffmpeg(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_av(path, SMALL_SCENE, **CONTAINERS[suffix])
    command = ffmpeg.input(str(path)).output(
        "pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough"
    )
    result = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *command.get_args()], capture_output=True, timeout=600, check=True
    )
    expected = np.frombuffer(result.stdout, np.uint8).reshape(-1, 120, 160, 3)
    frame_times = read_frame_times(path, QUALITY)
    assert len(expected) == len(frame_times.times)
    for number in (0, 24, 25, 49):
        (ours,) = read_frames(path, [float(frame_times.times[number])], QUALITY)
        assert np.abs(ours.pixels.astype(int) - expected[number]).mean() < 2


def test_frame_times_stop_at_the_maximum_duration(tmp_path: Path) -> None:
    path = tmp_path / "long.mkv"
    write_av(
        path,
        replace(SMALL_SCENE, size=(96, 64), seconds=360_000.0, fps=Fraction(1, 100)),
        vcodec="mpeg4",
        acodec=None,
    )
    with pytest.raises(MediaError) as caught:
        read_frame_times(path, QUALITY)
    assert caught.value.reason is QuarantineReason.TOO_LONG
