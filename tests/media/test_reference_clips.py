"""Right to the frame on every container, and every decoder agrees: over the whole corpus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np
import pytest
import torch

from avdata.config.schema import Config, QualityConfig
from avdata.features.extract import extract_features
from avdata.media.decoders.decord import read_frames_decord
from avdata.media.video import read_frame_times, read_frames
from avdata.recipe import Clip
from avdata.testing.reference_clips import REFERENCE_CLIPS, SCENE, onsets, tolerance

QUALITY = QualityConfig()
ROUNDING = 3
"""Of 255: decord and torchcodec turn YUV into RGB by swscale's quick way, which is up to 2 too dark."""

MOMENTS = [0.11, 0.51, 1.19, 1.21, 1.75, 2.3]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clip]:
    folder = tmp_path_factory.mktemp("corpus")
    return {name: case.make(folder, name) for name, case in REFERENCE_CLIPS.items()}


@pytest.mark.parametrize("name", REFERENCE_CLIPS)
def test_the_beep_in_the_mel_is_with_the_flash_in_the_frames(corpus: dict[str, Clip], name: str) -> None:
    beep, flash = onsets(corpus[name])
    assert abs(beep - flash - REFERENCE_CLIPS[name].delay) <= tolerance()


@pytest.mark.parametrize("name", REFERENCE_CLIPS)
def test_ffmpeg_itself_shows_the_same_frames_in_the_same_order(corpus: dict[str, Clip], name: str) -> None:
    path = corpus[name].video
    command = ffmpeg.input(str(path)).output(
        "pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough",
        sws_flags="bilinear+accurate_rnd+full_chroma_int",
    )  # fmt: skip
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *command.get_args()], capture_output=True, timeout=600, check=True
    )
    clock = read_frame_times(path, QUALITY)
    ours = read_frames(path, [float(time) for time in clock.times], QUALITY)
    theirs = np.frombuffer(done.stdout, np.uint8).reshape(len(clock.times), *ours[0].pixels.shape)
    for one, time, frame in zip(ours, clock.times, theirs, strict=True):
        assert one.time == pytest.approx(time, abs=1e-6)
        # H.264's colors stand a quarter of a pixel elsewhere, which the command line alone makes use of.
        assert np.abs(one.pixels.astype(int) - frame).mean() < 1.5


@pytest.mark.parametrize("name", [name for name, case in REFERENCE_CLIPS.items() if case.decord])
def test_decord_shows_the_same_frames_at_the_same_times(corpus: dict[str, Clip], name: str) -> None:
    path = corpus[name].video
    ours = read_frames(path, MOMENTS, QUALITY)
    theirs = read_frames_decord(path, read_frame_times(path, QUALITY), MOMENTS)
    for one, other in zip(ours, theirs, strict=True):
        assert one.time == pytest.approx(other.time, abs=1e-6)
        assert np.abs(one.pixels.astype(int) - other.pixels).mean() < ROUNDING


TORCHCODEC = """
import json, os, sys, numpy as np
from torchcodec.decoders import VideoDecoder
folder, asked = sys.argv[1:]
for name, (path, moments) in json.loads(asked).items():
    decoder = VideoDecoder(path)
    shown = [decoder.get_frame_played_at(moment + 0.001) for moment in moments]
    pixels = np.stack([frame.data.permute(1, 2, 0).numpy() for frame in shown])
    np.savez(os.path.join(folder, name), times=[frame.pts_seconds for frame in shown], pixels=pixels)
"""


def _ffmpegs_libraries(folder: Path) -> str:
    """A search path on which torchcodec finds the libraries of PyAV's wheel, under their usual names."""
    held = Path(av.__file__).parents[1] / "av.libs"
    for library in held.glob("lib[as][vw]*"):
        name, _, version = library.name.partition(".so.")
        (folder / f"{name.rpartition('-')[0]}.so.{version.partition('.')[0]}").symlink_to(library)
    return f"{folder}:{held}"


@pytest.fixture(scope="module")
def torchcodecs(corpus: dict[str, Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torchcodec shows of each clip at the times of the frames we show."""
    folder, links = tmp_path_factory.mktemp("torchcodec"), tmp_path_factory.mktemp("links")
    asked = {
        name: (str(one.video), [shown.time for shown in read_frames(one.video, MOMENTS, QUALITY)])
        for name, one in corpus.items()
    }
    env = {**os.environ, "LD_LIBRARY_PATH": _ffmpegs_libraries(links)}
    subprocess.run([sys.executable, "-c", TORCHCODEC, folder, json.dumps(asked)], env=env, check=True)
    return folder


# Its wheel is made for torch with CUDA on Linux, where PyAV's brings the libraries; elsewhere there is
# nothing to compare with.
if find_spec("torchcodec") and sys.platform == "linux" and torch.version.cuda:

    @pytest.mark.parametrize("name", REFERENCE_CLIPS)
    def test_torchcodec_shows_the_same_frames_at_the_same_times(
        corpus: dict[str, Clip], torchcodecs: Path, name: str
    ) -> None:
        with np.load(torchcodecs / f"{name}.npz") as shown:
            times, pixels = shown["times"], shown["pixels"]
        ours = read_frames(corpus[name].video, MOMENTS, QUALITY)
        for one, time, theirs in zip(ours, times, pixels, strict=True):
            assert time == pytest.approx(one.time, abs=1e-3)
            assert np.abs(theirs.astype(int) - one.pixels).mean() < ROUNDING


def test_sound_before_or_after_the_pictures_keeps_its_time(corpus: dict[str, Clip]) -> None:
    late, early = (extract_features(corpus[name], Config()) for name in ("late-audio", "late-video"))
    assert late.window[0] == pytest.approx(0.0, abs=0.001)
    assert early.window[0] == pytest.approx(0.0, abs=0.001)
    assert early.frame_times[0] == pytest.approx(0.4, abs=0.001)
    assert late.pad_fraction > 0.1


def test_uneven_frames_are_flagged_and_even_ones_are_not(corpus: dict[str, Clip]) -> None:
    assert "variable_frame_rate" in read_frame_times(corpus["uneven-frames"].video, QUALITY).flags
    for name in ("flv-flv1-mp3", "mkv-vp9-opus", "mp4-h264-bframes"):
        assert read_frame_times(corpus[name].video, QUALITY).flags == ()


def test_a_turned_film_is_shown_upright(corpus: dict[str, Clip]) -> None:
    (shown,) = read_frames(corpus["rotated"].video, [0.1], QUALITY)
    assert shown.pixels.shape == (SCENE.size[0], SCENE.size[1], 3)
