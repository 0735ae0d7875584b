"""Right to the frame on every container, and every decoder agrees: over the whole corpus."""

from __future__ import annotations

import subprocess

import ffmpeg
import imageio_ffmpeg
import numpy as np
import pytest

from avdata.config import Config, QualityConfig
from avdata.features import extract
from avdata.film import read_clock, read_pictures
from avdata.media import read_pictures_decord
from avdata.mock_corpus import CASES, SCENE, onsets, tolerance
from avdata.recipe import Clip

QUALITY = QualityConfig()
ROUNDING = 3
"""Of 255: decord and torchcodec turn YUV into RGB by swscale's quick way, which is up to 2 too dark."""

MOMENTS = [0.11, 0.51, 1.19, 1.21, 1.75, 2.3]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Clip]:
    folder = tmp_path_factory.mktemp("corpus")
    return {name: case.make(folder, name) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_beep_in_the_mel_is_with_the_flash_in_the_frames(corpus: dict[str, Clip], name: str) -> None:
    beep, flash = onsets(corpus[name])
    assert abs(beep - flash - CASES[name].delay) <= tolerance()


@pytest.mark.parametrize("name", CASES)
def test_ffmpeg_itself_shows_the_same_frames_in_the_same_order(corpus: dict[str, Clip], name: str) -> None:
    path = corpus[name].video
    command = ffmpeg.input(str(path)).output(
        "pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough",
        sws_flags="bilinear+accurate_rnd+full_chroma_int",
    )  # fmt: skip
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *command.get_args()], capture_output=True, timeout=60, check=True
    )
    clock = read_clock(path, QUALITY)
    ours = read_pictures(path, [float(time) for time in clock.times], QUALITY)
    theirs = np.frombuffer(done.stdout, np.uint8).reshape(len(clock.times), *ours[0].pixels.shape)
    for one, time, frame in zip(ours, clock.times, theirs, strict=True):
        assert one.time == pytest.approx(time, abs=1e-6)
        # H.264's colours stand a quarter of a pixel elsewhere, which the command line alone makes use of.
        assert np.abs(one.pixels.astype(int) - frame).mean() < 1.5


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.decord])
def test_decord_shows_the_same_frames_at_the_same_times(corpus: dict[str, Clip], name: str) -> None:
    path = corpus[name].video
    ours = read_pictures(path, MOMENTS, QUALITY)
    theirs = read_pictures_decord(path, read_clock(path, QUALITY), MOMENTS)
    for one, other in zip(ours, theirs, strict=True):
        assert one.time == pytest.approx(other.time, abs=1e-6)
        assert np.abs(one.pixels.astype(int) - other.pixels).mean() < ROUNDING


def _torchcodec_loads() -> bool:
    try:
        from torchcodec.decoders import VideoDecoder

        # Its libraries load with the first use.
        VideoDecoder(b"")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return not isinstance(error, ImportError) and "Could not load" not in str(error)
    return True


# Optional: its wheel needs the machine's own ffmpeg libraries, so it is no dependency.
TORCHCODEC = list(CASES) if _torchcodec_loads() else []


@pytest.mark.parametrize("name", TORCHCODEC)
def test_torchcodec_where_it_loads_shows_the_same_frames(corpus: dict[str, Clip], name: str) -> None:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(corpus[name].video))
    for one in read_pictures(corpus[name].video, MOMENTS, QUALITY):
        frame = decoder.get_frame_played_at(one.time + 0.001)
        assert frame.pts_seconds == pytest.approx(one.time, abs=1e-3)
        assert np.abs(frame.data.permute(1, 2, 0).numpy().astype(int) - one.pixels).mean() < ROUNDING


def test_sound_before_or_after_the_pictures_keeps_its_time(corpus: dict[str, Clip]) -> None:
    late, early = (extract(corpus[name], Config()) for name in ("late-sound", "late-pictures"))
    assert late.window[0] == pytest.approx(0.0, abs=0.001)
    assert early.window[0] == pytest.approx(0.0, abs=0.001)
    assert early.frame_times[0] == pytest.approx(0.4, abs=0.001)
    assert late.pad_fraction > 0.1


def test_uneven_frames_are_flagged_and_even_ones_are_not(corpus: dict[str, Clip]) -> None:
    assert "variable_frame_rate" in read_clock(corpus["uneven-frames"].video, QUALITY).flags
    for name in ("flv-flv1-mp3", "mkv-vp9-opus", "mp4-h264-bframes"):
        assert read_clock(corpus[name].video, QUALITY).flags == ()


def test_a_turned_film_is_shown_upright(corpus: dict[str, Clip]) -> None:
    (shown,) = read_pictures(corpus["turned"].video, [0.1], QUALITY)
    assert shown.pixels.shape == (SCENE.size[0], SCENE.size[1], 3)
