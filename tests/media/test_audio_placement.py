"""Audio of files whose timestamps, rate or channels are unusual, against flashes, ffmpeg and the scene."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from avdata.config.schema import QualityConfig
from avdata.media.audio import decode_audio
from avdata.media.types import AudioTrack
from avdata.media.video import open_video
from avdata.testing.conversion import convert_av
from avdata.testing.media import Scene, write_av

QUALITY = QualityConfig()
SCENE = Scene(seconds=4.0, flashes=(0.5, 3.5), beeps=(0.5, 3.5), size=(64, 48), fps=Fraction(25), rate=48_000)
PART = Scene(seconds=1.0, flashes=(0.48,), beeps=(0.48,), size=(64, 48), fps=Fraction(25), rate=48_000)
DECODE = ("pyav", "ffmpeg")


def onsets(samples: np.ndarray, rate: int, start: float = 0.0) -> list[float]:
    """Return the times of the first loud sample of each beep, s."""
    loud = np.flatnonzero(np.abs(samples) > 0.15)
    first = loud[np.r_[True, np.diff(loud) > 0.3 * rate]]
    return (start + first / rate).tolist()


def beeps_and_flashes(path: Path, decoder: str) -> tuple[AudioTrack, list[float], list[float]]:
    with open_video(path, QUALITY, decoder=decoder) as video_file:
        track = video_file.audio_track()
        frames = video_file.frames_at([float(time) for time in video_file.frame_times.times])
    white = [frame.pixels.mean() > 190 for frame in frames]
    flashes = [frame.time for index, frame in enumerate(frames) if white[index] and not white[index - 1]]
    return track, onsets(track.samples, track.rate, track.start), flashes


def concatenate(folder: Path, parts: list[Path], target: Path) -> Path:
    listing = folder / "list.txt"
    listing.write_text("".join(f"file '{part.name}'\n" for part in parts))
    convert_av(listing, target, input_options={"f": "concat"}, options={"c": "copy"})
    return target


@pytest.mark.parametrize("decoder", DECODE)
@pytest.mark.parametrize(
    ("suffix", "codecs"),
    [
        ("mp4", {"vcodec": "libx264", "acodec": "aac"}),
        ("mkv", {"vcodec": "libx264", "acodec": "aac"}),
        ("flv", {"vcodec": "libx264", "acodec": "aac"}),
        ("ts", {"vcodec": "libx264", "acodec": "aac"}),
        ("webm", {"vcodec": "libvpx", "acodec": "libopus"}),
    ],
)
def test_beeps_of_concatenated_files_coincide_with_their_flashes(
    tmp_path: Path, suffix: str, codecs: dict[str, Any], decoder: str
) -> None:
    source = "mp4" if codecs["acodec"] == "aac" else suffix
    parts = [tmp_path / f"{number}.{source}" for number in range(6)]
    for number, part in enumerate(parts):
        write_av(part, replace(PART, seed=number), **codecs)
    path = concatenate(tmp_path, parts, tmp_path / f"joined.{suffix}")
    track, beeps, flashes = beeps_and_flashes(path, decoder)
    assert len(beeps) == len(flashes) == len(parts)
    assert np.abs(np.array(beeps) - flashes).max() < 0.005
    assert track.flags == (("audio_clock_drift",) if codecs["acodec"] == "aac" else ())


@pytest.mark.parametrize("decoder", DECODE)
def test_overlapping_audio_is_placed_as_by_aresample_of_ffmpeg(tmp_path: Path, decoder: str) -> None:
    parts = [tmp_path / f"{number}.mp4" for number in range(6)]
    for number, part in enumerate(parts):
        write_av(part, replace(PART, seed=number), vcodec="libx264", acodec="aac")
    path = concatenate(tmp_path, parts, tmp_path / "joined.mp4")
    witness = tmp_path / "witness.wav"
    convert_av(
        path,
        witness,
        options={"af": "aresample=async=1:min_hard_comp=0.01:first_pts=0", "acodec": "pcm_s16le"},
    )
    expected, rate = soundfile.read(witness, dtype="float32")
    track = decode_audio(path, QUALITY, decoder=decoder)
    assert track.rate == rate
    ours = np.array(onsets(track.samples, rate, track.start))
    assert np.abs(ours - onsets(expected, rate)).max() < 0.004
    # Before the first join, nothing is moved.
    assert np.abs(track.samples[:40_000] - expected[:40_000]).max() < 1e-3


def set_media_clock(path: Path, rate: int, new_rate: int) -> None:
    """Change the time scale of an MP4's audio: its timestamps then advance by `rate / new_rate`."""
    data = bytearray(path.read_bytes())
    at = data.index(b"mdhd")
    while struct.unpack_from(">I", data, at + 16)[0] != rate:
        at = data.index(b"mdhd", at + 4)
    struct.pack_into(">I", data, at + 16, new_rate)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("decoder", DECODE)
@pytest.mark.parametrize("error", [0.07, -0.07, 0.01])
def test_audio_of_another_rate_than_its_clock_follows_the_clock(
    tmp_path: Path, error: float, decoder: str
) -> None:
    path = tmp_path / "a.mp4"
    write_av(path, SCENE, vcodec="libx264", acodec="aac")
    set_media_clock(path, 48_000, round(48_000 * (1 + error)))
    track = decode_audio(path, QUALITY, decoder=decoder)
    assert track.flags == ("audio_clock_drift",)
    assert track.rate == 48_000
    expected = np.array(SCENE.beeps) / (1 + error)
    assert onsets(track.samples, track.rate, track.start) == pytest.approx(expected, abs=0.003)
    # The tone of 1 kHz follows as well.
    beep = track.samples[round(expected[1] * 48_000) :][:4_000]
    peak = np.argmax(np.abs(np.fft.rfft(beep * np.hanning(len(beep)), 1 << 17))) * 48_000 / (1 << 17)
    assert peak == pytest.approx(1_000 * (1 + error), rel=0.005)


ORDINARY: dict[str, dict[str, Any]] = {
    "flv": {"acodec": "libmp3lame"},
    "mp4": {"vcodec": "libx264", "acodec": "aac"},
    "mov": {"vcodec": "libx264", "acodec": "pcm_s16le"},
    "mp3.mkv": {"vcodec": "libx264", "acodec": "libmp3lame"},
    "aac.mkv": {"vcodec": "libx264", "acodec": "aac"},
    "vorbis.mkv": {"vcodec": "libx264", "acodec": "libvorbis"},
    "webm": {"vcodec": "libvpx", "acodec": "libopus"},
    "ogg": {"vcodec": None, "acodec": "libvorbis"},
    "mp3.avi": {"vcodec": "mpeg4", "acodec": "libmp3lame"},
    "ac3.avi": {"vcodec": "mpeg4", "acodec": "ac3"},
    "ts": {"vcodec": "libx264", "acodec": "aac"},
    "mpg": {"vcodec": "mpeg1video", "acodec": "mp2"},
    "wmv": {"vcodec": "wmv2", "acodec": "wmav2"},
    "mp3": {"vcodec": None, "acodec": "libmp3lame"},
    "flac": {"vcodec": None, "acodec": "flac"},
}


@pytest.fixture(scope="module")
def ordinary_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write the file of a suffix when a test first asks for it."""
    folder = tmp_path_factory.mktemp("ordinary")

    @cache
    def write(suffix: str) -> Path:
        path = folder / f"a.{suffix}"
        # Each beep switches the block size of Vorbis, whose timestamps then deviate by 10 ms for a frame.
        beeps = tuple(0.25 * index for index in range(1, 14))
        scene = replace(SCENE, beeps=beeps, rate=48_000 if suffix == "webm" else 44_100)
        codecs = ORDINARY[suffix]
        if codecs["acodec"] == "libvorbis":
            # PyAV's wheels have no encoder for it.
            write_av(folder / "source.mkv", scene, **{**codecs, "acodec": "flac"})
            convert_av(folder / "source.mkv", path, options={"acodec": "libvorbis", "vcodec": "copy"})
        else:
            write_av(path, scene, **codecs)
        return path

    return write


@pytest.mark.parametrize("decoder", DECODE)
@pytest.mark.parametrize("suffix", ORDINARY)
def test_samples_of_ordinary_files_are_not_changed(
    ordinary_file: Callable[[str], Path], suffix: str, decoder: str
) -> None:
    path = ordinary_file(suffix)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    track = decode_audio(path, QUALITY, decoder=decoder)
    assert track.flags == ()
    expected = np.concatenate(frames, axis=1)[0]
    count = min(len(expected), len(track.samples))
    assert abs(len(expected) - len(track.samples)) < 2_048
    scale = 1.0 if expected.dtype.kind == "f" else float(-np.iinfo(expected.dtype).min)
    assert np.abs(track.samples[:count] - expected[:count] / scale).max() < 1e-4


@pytest.mark.parametrize("decoder", DECODE)
@pytest.mark.parametrize(
    ("rates", "channels", "codec"),
    [
        ((48_000, 32_000), (1, 1), "mp2"),
        ((44_100, 44_100), (1, 2), "mp2"),
        ((32_000, 48_000), (2, 1), "mp2"),
        ((48_000, 48_000), (2, 6), "ac3"),
        ((48_000, 32_000), (6, 1), "ac3"),
    ],
)
def test_audio_after_a_change_of_rate_or_channels_is_kept(
    tmp_path: Path, rates: tuple[int, int], channels: tuple[int, int], codec: str, decoder: str
) -> None:
    parts = [tmp_path / "first.mkv", tmp_path / "second.mkv"]
    for part, rate, count in zip(parts, rates, channels, strict=True):
        scene = replace(PART, seconds=2.0, beeps=(0.5, 1.5), rate=rate, channels=count)
        write_av(part, scene, vcodec=None, acodec=codec)
    track = decode_audio(concatenate(tmp_path, parts, tmp_path / "changing.mkv"), QUALITY, decoder=decoder)
    assert track.rate == track.metadata["audio_rate"] == rates[0]
    assert track.metadata["audio_channels"] == channels[0]
    beeps = onsets(track.samples, track.rate, track.start)
    assert len(beeps) == 4
    assert np.diff(beeps)[[0, 2]] == pytest.approx(1.0, abs=0.005)
    # The delays of the encoders differ by their rates. The sixth channel of AC-3 has only low frequencies.
    assert beeps[2] - beeps[0] == pytest.approx(2.0, abs=0.03)
    for beep in beeps:
        middle = round((beep - track.start + 0.02) * track.rate)
        assert np.abs(track.samples[middle : middle + 2_000]).max() == pytest.approx(0.5, abs=0.06)
