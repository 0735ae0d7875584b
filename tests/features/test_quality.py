from __future__ import annotations

import struct
import tracemalloc
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from avdata.config.schema import Config, QualityConfig, build_config
from avdata.errors import MediaError, QuarantineReason, SampleFlag
from avdata.features.extract import extract_features
from avdata.media.audio import decode_audio
from avdata.media.image import read_image
from avdata.recipe import Clip
from avdata.testing.media import Scene, scene_audio, scene_frame, write_av, write_wav

SCENE = Scene(seconds=2.0, flashes=(1.0,), beeps=(1.0,), size=(64, 48), fps=Fraction(25))


def clip(video: Path, audio: Path | None = None) -> Clip:
    return Clip(key="k", label="a", group="g", split="train", video=video, audio=audio)


def refused(one: Clip, **quality: object) -> QuarantineReason:
    with pytest.raises(MediaError) as caught:
        extract_features(one, build_config({"quality": quality}))
    return caught.value.reason


def test_clipped_sound_is_flagged_or_left_out_by_its_share(tmp_path: Path) -> None:
    loud = np.clip(scene_audio(SCENE, 16_000) * 30, -1, 1)
    share = float(np.mean(np.abs(loud) >= 0.999))
    write_av(tmp_path / "a.flv", SCENE)
    write_wav(tmp_path / "a.wav", loud, 16_000)
    one = clip(tmp_path / "a.flv", tmp_path / "a.wav")
    assert SampleFlag.CLIPPED_AUDIO in extract_features(one, Config()).flags
    assert refused(one, clipped="quarantine") is QuarantineReason.CLIPPED_AUDIO
    lenient = build_config({"quality": {"clipped": "quarantine", "max_clipped": share + 0.001}})
    assert SampleFlag.CLIPPED_AUDIO not in extract_features(one, lenient).flags


def test_a_picture_that_stands_still_is_flagged_or_left_out(tmp_path: Path) -> None:
    # The encoder's own noise moves it a little.
    write_av(tmp_path / "a.flv", SCENE, pixels=[scene_frame(SCENE, 3)] * SCENE.frames)
    one = clip(tmp_path / "a.flv")
    assert SampleFlag.FROZEN_FRAMES in extract_features(one, Config()).flags
    assert refused(one, frozen="quarantine") is QuarantineReason.FROZEN_FRAMES
    write_av(tmp_path / "b.flv", SCENE)
    assert SampleFlag.FROZEN_FRAMES not in extract_features(clip(tmp_path / "b.flv"), Config()).flags


def test_black_pictures_are_left_out_when_asked(tmp_path: Path) -> None:
    write_av(tmp_path / "a.flv", replace(SCENE, black=True, flashes=()))
    assert SampleFlag.BLACK_FRAMES in extract_features(clip(tmp_path / "a.flv"), Config()).flags
    assert refused(clip(tmp_path / "a.flv"), black="quarantine") is QuarantineReason.BLACK_FRAMES


def test_silence_is_left_out_or_flagged_by_its_level(tmp_path: Path) -> None:
    quiet = scene_audio(SCENE, 16_000) * np.float32(10 ** (-50 / 20) / 0.51)
    write_av(tmp_path / "a.flv", SCENE)
    write_wav(tmp_path / "a.wav", quiet, 16_000)
    one = clip(tmp_path / "a.flv", tmp_path / "a.wav")
    assert extract_features(one, Config()).flags == ()
    assert refused(one, silence_dbfs=-40) is QuarantineReason.SILENT_AUDIO
    flagging = build_config({"quality": {"silence_dbfs": -40, "silent": "flag"}})
    assert SampleFlag.SILENT_AUDIO in extract_features(one, flagging).flags


def test_too_few_pictures_are_too_short_however_long_the_sound(tmp_path: Path) -> None:
    write_av(tmp_path / "a.flv", replace(SCENE, seconds=0.04), samples=scene_audio(SCENE))
    assert refused(clip(tmp_path / "a.flv"), min_seconds=0.5) is QuarantineReason.TOO_SHORT


def test_sound_that_cannot_be_decoded_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_av(path, SCENE, vcodec="libx264", acodec="aac")
    data = bytearray(path.read_bytes())
    dice = np.random.default_rng(0)
    start = data.index(b"mdat") + 8
    end = data.index(b"moov") if data.index(b"moov") > start else len(data)
    for place in dice.integers(start, end, size=400):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(MediaError) as caught:
        decode_audio(path, QualityConfig())
    assert caught.value.reason is QuarantineReason.CORRUPT_AUDIO
    assert len(decode_audio(path, QualityConfig(max_corrupt_audio=1.0)).samples)


def test_a_large_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.flv").write_bytes(b"x" * 2000)
    assert refused(clip(tmp_path / "a.flv"), max_bytes=1000) is QuarantineReason.TOO_LARGE


def test_a_hundred_hours_of_sound_end_in_quarantine_in_little_memory(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("side", [12_000, 30_000])
def test_a_still_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    with pytest.raises(MediaError) as caught:
        read_image(path, QualityConfig())
    assert caught.value.reason is QuarantineReason.TOO_LARGE
