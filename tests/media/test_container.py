from __future__ import annotations

import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
import numpy as np
import pytest

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio import decode_audio
from avdata.media.container import detect_format
from avdata.media.decoders.decord import read_frames_decord
from avdata.media.image import read_image
from avdata.media.video import read_frame_times, read_frames
from avdata.testing.media import Scene, Subtype, scene_audio, scene_frame, write_av, write_image, write_wav

QUALITY = QualityConfig()
SMALL = Scene(seconds=2.0, flashes=(1.0,), beeps=(1.0,), size=(160, 120), fps=Fraction(25))

FORMATS = {
    "flv": {},
    "mp4": {"vcodec": "libx264", "acodec": "aac"},
    "mov": {"vcodec": "libx264", "acodec": "aac"},
    "avi": {"vcodec": "mjpeg", "acodec": "pcm_s16le", "pix_fmt": "yuvj420p"},
    "mkv": {"vcodec": "ffv1", "acodec": "flac", "pix_fmt": "bgr0"},
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_where_a_film_should_be_is_no_media(tmp_path: Path, suffix: str) -> None:
    drawn = tmp_path / f"drawn.{suffix}"
    write_image(drawn, np.zeros((8, 8, 3), np.uint8))
    named = drawn.rename(tmp_path / "clip.mp4")
    for read in (read_frame_times, decode_audio):
        with pytest.raises(MediaError) as caught:
            read(named, QUALITY)
        assert caught.value.reason is QuarantineReason.NOT_MEDIA


@pytest.mark.parametrize("suffix", FORMATS)
def test_flash_and_beep_are_together_in_every_container(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_av(path, SMALL, **FORMATS[suffix])  # type: ignore[arg-type]
    heard, clock = decode_audio(path, QUALITY), read_frame_times(path, QUALITY)
    beep = heard.start + float(np.argmax(np.abs(heard.samples) > 0.2)) / heard.rate
    shown = read_frames(path, [float(time) for time in clock.times], QUALITY)
    flash = next(one.time for one in shown if one.pixels.mean() > 200)
    assert abs(beep - flash) < 0.002
    assert len(clock.times) == SMALL.frames


def test_late_sound_is_heard_late(tmp_path: Path) -> None:
    path = tmp_path / "late.mp4"
    write_av(path, SMALL, vcodec="libx264", acodec="aac", audio_start=0.5)
    heard = decode_audio(path, QUALITY)
    beep = heard.start + float(np.argmax(np.abs(heard.samples) > 0.2)) / heard.rate
    assert beep == pytest.approx(1.5, abs=0.002)


def test_the_frame_on_screen_is_the_last_that_has_come(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write_av(path, SMALL, vcodec="ffv1", acodec=None, pix_fmt="bgr0")
    moments = [-1.0, 0.0, 0.039, 0.0401, 0.999, 1.0, 1.5, 99.0]
    got = read_frames(path, moments, QUALITY)
    assert [round(one.time, 3) for one in got] == [0.0, 0.0, 0.0, 0.04, 0.96, 1.0, 1.48, 1.96]
    for one in got:
        assert np.array_equal(one.pixels, scene_frame(SMALL, round(one.time * 25)))


@pytest.mark.parametrize("fps", [24, 30])
def test_a_frame_asked_for_at_its_own_time_has_come(tmp_path: Path, fps: int) -> None:
    path = tmp_path / "clip.mp4"
    write_av(path, replace(SMALL, fps=Fraction(fps), size=(32, 32)), vcodec="libx264", acodec=None)
    clock = read_frame_times(path, QUALITY)
    moments = clock.times.tolist()
    for got in (read_frames(path, moments, QUALITY), read_frames_decord(path, clock, moments)):
        assert [one.time for one in got] == pytest.approx(moments)


@pytest.mark.parametrize("suffix", ["flv", "mp4", "avi"])
def test_decord_and_pyav_show_the_same_frames_at_the_same_times(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_av(path, SMALL, **FORMATS[suffix])  # type: ignore[arg-type]
    moments = [0.1, 0.5, 1.02, 1.9]
    clock = read_frame_times(path, QUALITY)
    ours, theirs = read_frames(path, moments, QUALITY), read_frames_decord(path, clock, moments)
    for one, other in zip(ours, theirs, strict=True):
        assert one.time == pytest.approx(other.time, abs=1e-6)
        assert np.abs(one.pixels.astype(int) - other.pixels).mean() < 2


@pytest.mark.parametrize("suffix", ["flv", "mp4", "mkv"])
def test_ffmpeg_itself_shows_the_same_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_av(path, SMALL, **FORMATS[suffix])  # type: ignore[arg-type]
    command = ffmpeg.input(str(path)).output(
        "pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough"
    )
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *command.get_args()], capture_output=True, timeout=600, check=True
    )
    theirs = np.frombuffer(done.stdout, np.uint8).reshape(-1, 120, 160, 3)
    clock = read_frame_times(path, QUALITY)
    assert len(theirs) == len(clock.times)
    for number in (0, 24, 25, 49):
        (ours,) = read_frames(path, [float(clock.times[number])], QUALITY)
        assert np.abs(ours.pixels.astype(int) - theirs[number]).mean() < 2


@pytest.mark.parametrize("subtype", ["u8", "s16", "s24", "s32", "float"])
@pytest.mark.parametrize("extensible", [False, True])
def test_every_kind_of_wav_gives_the_samples_it_holds(
    tmp_path: Path, subtype: Subtype, extensible: bool
) -> None:
    scene = Scene(seconds=0.3, beeps=(0.1,))
    samples = scene_audio(scene, 11_024)
    write_wav(tmp_path / "a.wav", samples, 11_024, subtype=subtype, channels=2, extensible=extensible)
    heard = decode_audio(tmp_path / "a.wav", QUALITY)
    assert heard.rate == 11_024
    assert heard.start == 0
    assert np.abs(heard.samples - samples).max() < (0.01 if subtype == "u8" else 1e-4)


def test_a_text_named_mp4_opens_nothing(tmp_path: Path) -> None:
    write_av(tmp_path / "real.mp4", SMALL, vcodec="libx264", acodec="aac")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile real.mp4\n")
    for read in (decode_audio, read_frame_times):
        with pytest.raises(MediaError) as caught:
            read(tmp_path / "list.mp4", QUALITY)
        assert caught.value.reason is QuarantineReason.NOT_MEDIA


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", QuarantineReason.EMPTY_FILE),
        (b"version https://git-lfs.github.com/spec/v1\noid", QuarantineReason.LFS_POINTER),
        (b"<html>quota exceeded</html>", QuarantineReason.NOT_MEDIA),
    ],
)
def test_what_is_no_media_is_told_by_its_first_bytes(
    tmp_path: Path, data: bytes, reason: QuarantineReason
) -> None:
    (tmp_path / "x.flv").write_bytes(data)
    with pytest.raises(MediaError) as caught:
        detect_format(tmp_path / "x.flv")
    assert caught.value.reason is reason


@pytest.mark.parametrize("suffix", ["flv", "mp4", "wav", "avi"])
def test_a_file_that_ends_early_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    if suffix == "wav":
        write_wav(path, scene_audio(SMALL, 16_000), 16_000)
    else:
        write_av(path, SMALL, **FORMATS[suffix])  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(MediaError) as caught:
        decode_audio(path, QUALITY)
    assert caught.value.reason in {QuarantineReason.TRUNCATED, QuarantineReason.UNREADABLE}


def test_flipped_bytes_in_h264_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    noisy = np.random.default_rng(0).integers(0, 255, (50, 120, 160, 3), dtype=np.uint8)
    write_av(path, SMALL, vcodec="libx264", acodec="aac", pixels=noisy)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 2000
    for place in np.random.default_rng(1).integers(start, start + len(data) // 2, size=400):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(MediaError) as caught:
        read_frames(path, [1.9], QUALITY)
    assert caught.value.reason is QuarantineReason.CORRUPT_FRAMES


def test_limits_hold_before_anything_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_av(path, SMALL, vcodec="libx264", acodec="aac")
    with pytest.raises(MediaError, match="too_large"):
        read_frame_times(path, QualityConfig(max_pixels=100))
    with pytest.raises(MediaError, match="too_long"):
        read_frame_times(path, QualityConfig(max_seconds=1.0))
    with pytest.raises(MediaError, match="too_long"):
        decode_audio(path, QualityConfig(max_seconds=1.0))


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("P", "png")])
def test_stills_of_every_mode_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    pixels = scene_frame(SMALL, 3)
    write_image(tmp_path / f"a.{suffix}", pixels, mode=mode)
    got = read_image(tmp_path / f"a.{suffix}", QUALITY).pixels
    assert got.shape == pixels.shape
    gray = np.abs(got.mean(axis=2) - pixels.mean(axis=2)).mean()
    assert gray < 20


def test_a_still_on_its_side_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:20, :20] = 255
    write_image(tmp_path / "a.jpg", pixels, rotated=True)
    got = read_image(tmp_path / "a.jpg", QUALITY).pixels
    assert got.shape == pixels.shape
    assert got[5, 5].mean() > 200
    assert got[50, 70].mean() < 50
