"""Alignment and frames of every reference clip, compared between decoders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.ffmpeg_frames import ffmpeg_frames

from avdata.config.schema import Config, QualityConfig
from avdata.errors import MediaError
from avdata.features.extract import extract_features
from avdata.media.decoders import DECODERS
from avdata.media.video import read_frame_times, read_frames
from avdata.recipe import Clip
from avdata.testing.reference_clips import REFERENCE_CLIPS, SCENE, onsets, tolerance, video_codec

QUALITY = QualityConfig()
MAX_COLOR_ERROR = 3
"""Of 255: decord and torchcodec convert YUV to RGB by swscale's fast path, which is up to 2 too dark."""

TIMES = [0.11, 0.51, 1.19, 1.21, 1.75, 2.3]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clip]:
    folder = tmp_path_factory.mktemp("clips")
    return {name: case.make(folder, name) for name, case in REFERENCE_CLIPS.items()}


@pytest.mark.parametrize("name", REFERENCE_CLIPS)
def test_beep_in_the_mel_coincides_with_flash_in_the_frames(clips: dict[str, Clip], name: str) -> None:
    beep, flash = onsets(clips[name])
    assert abs(beep - flash - REFERENCE_CLIPS[name].delay) <= tolerance()


@pytest.mark.parametrize("seek", [False, True])
@pytest.mark.parametrize("name", REFERENCE_CLIPS)
def test_read_frames_returns_the_frames_and_times_of_ffmpeg(
    clips: dict[str, Clip], name: str, seek: bool
) -> None:
    path = clips[name].video
    times, raw = ffmpeg_frames(path)
    frame_times = read_frame_times(path, QUALITY)
    assert frame_times.times.tolist() == pytest.approx(times, abs=1e-6)
    frames = read_frames(path, times, QUALITY, seek=seek)
    expected = np.frombuffer(raw, np.uint8).reshape(len(times), *frames[0].pixels.shape)
    for frame, time, pixels in zip(frames, times, expected, strict=True):
        assert frame.time == pytest.approx(time, abs=1e-6)
        # The chroma of H.264 is shifted by a quarter of a pixel; only ffmpeg's command line corrects for it.
        assert np.abs(frame.pixels.astype(int) - pixels).mean() < 1.5


@pytest.mark.parametrize("name", REFERENCE_CLIPS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder_returns_the_frames_and_times_of_pyav(
    clips: dict[str, Clip], name: str, decoder: str
) -> None:
    path = clips[name].video
    expected = read_frames(path, TIMES, QUALITY)
    frame_times = read_frame_times(path, QUALITY)
    row = DECODERS[decoder]
    container = frame_times.metadata["container"]
    if video_codec(path) in row.unsupported_codecs or container in row.unsupported_containers:
        with pytest.raises(MediaError):
            DECODERS[decoder].frames_at(path, frame_times, TIMES)
        return
    frames = DECODERS[decoder].frames_at(path, frame_times, TIMES)
    for frame, other in zip(frames, expected, strict=True):
        assert frame.time == pytest.approx(other.time, abs=1e-6)
        assert np.abs(frame.pixels.astype(int) - other.pixels).mean() < MAX_COLOR_ERROR


TORCHCODEC_CLIPS = [
    name for name, case in REFERENCE_CLIPS.items() if case.has_pts and case.suffix not in {".vob", ".ts"}
]
"""Clips of which torchcodec returns the right frames: it needs pts, and seeks wrongly in MPEG containers."""

TORCHCODEC = """
import json, os, sys, numpy as np
from torchcodec.decoders import VideoDecoder
folder, requests = sys.argv[1:]
for name, (path, times) in json.loads(requests).items():
    decoder = VideoDecoder(path)
    frames = [decoder.get_frame_played_at(time + 0.001) for time in times]
    pixels = np.stack([frame.data.permute(1, 2, 0).numpy() for frame in frames])
    np.savez(os.path.join(folder, name), times=[frame.pts_seconds for frame in frames], pixels=pixels)
"""


def _ffmpeg_library_path(folder: Path) -> str:
    """Link PyAV's libraries under the names that torchcodec loads; return the search path."""
    libraries = Path(av.__file__).parents[1] / "av.libs"
    for library in libraries.glob("lib[as][vw]*"):
        name, _, version = library.name.partition(".so.")
        (folder / f"{name.rpartition('-')[0]}.so.{version.partition('.')[0]}").symlink_to(library)
    return f"{folder}:{libraries}"


@pytest.fixture(scope="module")
def torchcodec_frames(clips: dict[str, Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of torchcodec's frames of each clip, at the times of PyAV's."""
    folder, links = tmp_path_factory.mktemp("torchcodec"), tmp_path_factory.mktemp("links")
    requests = {
        name: (str(clip.video), [frame.time for frame in read_frames(clip.video, TIMES, QUALITY)])
        for name, clip in clips.items()
        if name in TORCHCODEC_CLIPS
    }
    env = {**os.environ, "LD_LIBRARY_PATH": _ffmpeg_library_path(links)}
    subprocess.run([sys.executable, "-c", TORCHCODEC, folder, json.dumps(requests)], env=env, check=True)
    return folder


# torchcodec's wheel for Linux requires torch with CUDA; the libraries of ffmpeg are those of PyAV's wheel.
if find_spec("torchcodec") and sys.platform == "linux" and torch.version.cuda:

    @pytest.mark.parametrize("name", TORCHCODEC_CLIPS)
    def test_torchcodec_returns_the_same_frames_and_times(
        clips: dict[str, Clip], torchcodec_frames: Path, name: str
    ) -> None:
        with np.load(torchcodec_frames / f"{name}.npz") as arrays:
            times, pixels = arrays["times"], arrays["pixels"]
        frames = read_frames(clips[name].video, TIMES, QUALITY)
        for frame, time, other in zip(frames, times, pixels, strict=True):
            assert time == pytest.approx(frame.time, abs=1e-3)
            assert np.abs(other.astype(int) - frame.pixels).mean() < MAX_COLOR_ERROR


def test_audio_that_starts_before_or_after_the_video_keeps_its_time(clips: dict[str, Clip]) -> None:
    late, early = (extract_features(clips[name], Config()) for name in ("late-audio", "late-video"))
    assert late.window[0] == pytest.approx(0.0, abs=0.001)
    assert early.window[0] == pytest.approx(0.0, abs=0.001)
    assert early.frame_times[0] == pytest.approx(0.4, abs=0.001)
    assert late.pad_fraction > 0.1


def test_frame_times_flag_only_a_variable_frame_rate(clips: dict[str, Clip]) -> None:
    assert "variable_frame_rate" in read_frame_times(clips["uneven-frames"].video, QUALITY).flags
    for name in ("flv-flv1-mp3", "mkv-vp9-opus", "mp4-h264-bframes"):
        assert read_frame_times(clips[name].video, QUALITY).flags == ()


def test_read_frames_applies_the_display_matrix(clips: dict[str, Clip]) -> None:
    (frame,) = read_frames(clips["rotated"].video, [0.1], QUALITY)
    assert frame.pixels.shape == (SCENE.size[0], SCENE.size[1], 3)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="no scheduling policies here")
def test_encoding_av1_leaves_the_scheduling_of_the_process(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    REFERENCE_CLIPS["mp4-av1-aac"].make(tmp_path, "clip")
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before
