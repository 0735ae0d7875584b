from __future__ import annotations

import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.containers import SMALL_SCENE

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio import decode_audio
from avdata.media.downmix import Channel
from avdata.testing.conversion import convert_av
from avdata.testing.media import Scene, Subtype, scene_audio, write_av, write_wav

QUALITY = QualityConfig()
SCENE = Scene(seconds=2.0, flashes=(1.0,), beeps=(1.0,), size=(64, 48), fps=Fraction(25))


def test_audio_packets_that_fail_to_decode_are_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_av(path, SCENE, vcodec="libx264", acodec="aac")
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    start = data.index(b"mdat") + 8
    end = data.index(b"moov") if data.index(b"moov") > start else len(data)
    for place in rng.integers(start, end, size=400):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(MediaError) as caught:
        decode_audio(path, QualityConfig())
    assert caught.value.reason is QuarantineReason.CORRUPT_AUDIO
    assert len(decode_audio(path, QualityConfig(max_corrupt_audio=1.0)).samples)


def test_100_hours_of_audio_are_too_long_within_20_mb(tmp_path: Path) -> None:
    rate, seconds = 8_000, 360_000
    write_wav(tmp_path / "a.wav", np.zeros(8, np.float32), rate, subtype="u8")
    head = bytearray((tmp_path / "a.wav").read_bytes()[:44])
    head[4:8], head[40:44] = struct.pack("<I", rate * seconds + 36), struct.pack("<I", rate * seconds)
    with (tmp_path / "a.wav").open("wb") as stream:
        stream.write(head)
        stream.truncate(44 + rate * seconds)
    tracemalloc.start()
    try:
        with pytest.raises(MediaError) as caught:
            decode_audio(tmp_path / "a.wav", QualityConfig(max_seconds=60))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert caught.value.reason is QuarantineReason.TOO_LONG


def test_decode_audio_keeps_a_late_start(tmp_path: Path) -> None:
    path = tmp_path / "late.mp4"
    write_av(path, SMALL_SCENE, vcodec="libx264", acodec="aac", audio_start=0.5)
    track = decode_audio(path, QUALITY)
    beep = track.start + float(np.argmax(np.abs(track.samples) > 0.2)) / track.rate
    assert beep == pytest.approx(1.5, abs=0.002)


@pytest.mark.parametrize("subtype", ["u8", "s16", "s24", "s32", "float"])
@pytest.mark.parametrize("extensible", [False, True])
def test_decode_audio_reads_every_wav_subtype(tmp_path: Path, subtype: Subtype, extensible: bool) -> None:
    scene = Scene(seconds=0.3, beeps=(0.1,))
    samples = scene_audio(scene, 11_024)
    write_wav(tmp_path / "a.wav", samples, 11_024, subtype=subtype, channels=2, extensible=extensible)
    track = decode_audio(tmp_path / "a.wav", QUALITY)
    assert track.rate == 11_024
    assert track.start == 0
    assert np.abs(track.samples - samples).max() < (0.01 if subtype == "u8" else 1e-4)


def write_channels(path: Path, channels: list[np.ndarray], rate: int) -> None:
    """Write channels as WAV with soundfile, or as another container with ffmpeg."""
    wav = path.with_suffix(".wav")
    soundfile.write(wav, np.stack(channels, axis=1), rate, subtype="FLOAT")
    if path != wav:
        convert_av(wav, path, options={"acodec": "pcm_f32le"})


@pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
@pytest.mark.parametrize("suffix", [".wav", ".mkv"])
@pytest.mark.parametrize("channel", ["mix", "left", "right"])
def test_decode_audio_returns_the_channel(
    tmp_path: Path, suffix: str, channel: Channel, decoder: str
) -> None:
    left, right, center = np.random.default_rng(0).uniform(-0.9, 0.9, (3, 8_000)).astype(np.float32)
    for channels in ([left], [left, right], [left, right, center]):
        path = tmp_path / f"{len(channels)}{suffix}"
        write_channels(path, channels, 8_000)
        track = decode_audio(path, QUALITY, decoder=decoder, channel=channel)
        expected = {
            "mix": np.mean(channels, axis=0),
            "left": left,
            "right": channels[min(1, len(channels) - 1)],
        }
        assert np.abs(track.samples - expected[channel]).max() < 1e-6
        assert track.flags == ()
        assert track.metadata["audio_channels"] == len(channels)


@pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
@pytest.mark.parametrize("suffix", [".wav", ".mkv"])
def test_decode_audio_flags_channels_that_cancel_each_other(
    tmp_path: Path, suffix: str, decoder: str
) -> None:
    sound, other = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 8_000)).astype(np.float32)
    path = tmp_path / f"a{suffix}"
    for channels, is_cancelled in (
        ([sound, -sound], True),
        ([sound, 0.1 * other - sound], True),
        ([sound, sound], False),
        ([sound, other], False),
        ([sound, 0 * sound], False),
        ([sound, -0.5 * sound], False),
        ([0 * sound, 0 * sound], False),
    ):
        write_channels(path, channels, 8_000)
        for channel in ("mix", "left"):
            track = decode_audio(path, QUALITY, decoder=decoder, channel=channel)  # type: ignore[arg-type]
            is_flagged = is_cancelled and channel == "mix"
            assert track.flags == (("phase_cancelled",) if is_flagged else ())
