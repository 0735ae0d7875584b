from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ffmpeg_media import AUDIO_FILES, VIDEO_FILES, WITHOUT_LENGTH, run_ffmpeg

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio import decode_audio
from avdata.media.video import open_video
from avdata.testing.media import write_wav

QUALITY = QualityConfig()

FILES = [*VIDEO_FILES, *AUDIO_FILES]

WITH_PACKETS = ("clip.ts", "clip.m2ts", "clip.mpg", "clip.vob", "clip.dv")
"""Files without a length, whose last packet shows that they were cut inside it."""

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)


def read(path: Path, decoder: str = "pyav") -> None:
    """Read a file to its end, and raise what excludes the clip."""
    if path.name in AUDIO_FILES or path.suffix == ".wav":
        decode_audio(path, QUALITY, decoder=decoder)
        return
    with open_video(path, QUALITY, decoder=decoder) as video_file:
        video_file.audio_track()


def is_truncated(path: Path, decoder: str = "pyav") -> bool:
    with pytest.raises(MediaError) as caught:
        read(path, decoder)
    return caught.value.reason is QuarantineReason.TRUNCATED


def cut(source: Path, folder: Path, num_bytes: int) -> Path:
    path = folder / source.name
    path.write_bytes(source.read_bytes()[:num_bytes])
    return path


@pytest.mark.parametrize("name", FILES)
def test_whole_file_is_not_truncated(ffmpeg_media: Path, name: str) -> None:
    read(ffmpeg_media / name)


@pytest.mark.parametrize("share", [0.55, 0.9])
@pytest.mark.parametrize(
    "name", [name for name in FILES if name not in WITHOUT_LENGTH or name in WITH_PACKETS]
)
def test_cut_file_is_truncated(ffmpeg_media: Path, tmp_path: Path, name: str, share: float) -> None:
    whole = ffmpeg_media / name
    size = int(whole.stat().st_size * share)
    # The frames of DV are large: 55 % of 50 frames end between two of them otherwise.
    assert is_truncated(cut(whole, tmp_path, size - 100))


@pytest.mark.parametrize("name", [name for name in FILES if name not in WITHOUT_LENGTH])
def test_no_prefix_passes_as_a_whole_file(
    ffmpeg_media: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    whole = ffmpeg_media / name
    folder = tmp_path_factory.mktemp("cut")

    @settings(max_examples=40)
    @given(st.integers(1, int(whole.stat().st_size * 0.95)))
    def check(num_bytes: int) -> None:
        with pytest.raises(MediaError):
            read(cut(whole, folder, num_bytes))

    check()


def test_flv_that_ends_between_two_tags_is_truncated(ffmpeg_media: Path, tmp_path: Path) -> None:
    data = (ffmpeg_media / "clip.flv").read_bytes()
    position, ends = 13, []
    while position < len(data):
        position += 15 + int.from_bytes(data[position + 1 : position + 4])
        ends.append(position)
    for end in ends[2 : int(len(ends) * 0.9) : 7]:
        assert is_truncated(cut(ffmpeg_media / "clip.flv", tmp_path, end))
    # CREMA-D's files state their duration, but no size.
    key = data.index(b"filesize") + len("filesize") + 1
    (tmp_path / "clip.flv").write_bytes(data[:key] + bytes(8) + data[key + 8 : ends[len(ends) // 2]])
    assert is_truncated(tmp_path / "clip.flv")


@pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
@pytest.mark.parametrize("name", ["clip.mkv", "a.mka"])
def test_demuxer_reports_the_cut_of_a_file_of_open_size(
    ffmpeg_media: Path, tmp_path: Path, name: str, decoder: str
) -> None:
    data = run_ffmpeg("-i", ffmpeg_media / name, "-c", "copy", "-f", "matroska", "pipe:1")
    path = tmp_path / name
    path.write_bytes(data)
    read(path, decoder)
    for share in (0.55, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        # Twice: ffmpeg's log skips a message that repeats the last one.
        assert is_truncated(path, decoder)
        assert is_truncated(path, decoder)


@pytest.mark.parametrize(
    "size", [0, 0x7FFFF000, 0x7FFFF024, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - 36, 0xFFFFFFFF, 16_000 + 44]
)
def test_wav_size_that_a_recorder_left_open_is_ignored(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, NOISE, 16_000)
    expected = soundfile.read(path, dtype="float32")[0]
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", size)
    for riff_size in (size, min(size + 36, 0xFFFFFFFF), len(data) - 8):
        data[4:8] = struct.pack("<I", riff_size)
        path.write_bytes(bytes(data))
        assert np.array_equal(decode_audio(path, QUALITY).samples, expected)


def test_wav_that_is_cut_is_truncated_also_with_a_large_header(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, NOISE, 16_000)
    data = path.read_bytes()
    for size in (200, 8000, 15_000):
        path.write_bytes(data[: 44 + size])
        assert is_truncated(path)
    chunk = b"JUNK" + struct.pack("<I", 60_000) + bytes(60_000)
    path.write_bytes(data[:12] + chunk + data[12:-4000])
    assert is_truncated(path)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_rf64_size_that_a_pipe_left_open_is_ignored(ffmpeg_media: Path, tmp_path: Path, size: int) -> None:
    data = bytearray((ffmpeg_media / "rf64.wav").read_bytes())
    expected = decode_audio(ffmpeg_media / "rf64.wav", QUALITY).samples
    at = data.index(b"ds64") + 8
    data[at : at + 16] = struct.pack("<QQ", size, size)
    path = tmp_path / "rf64.wav"
    path.write_bytes(bytes(data))
    for decoder in ("pyav", "ffmpeg"):
        assert np.array_equal(decode_audio(path, QUALITY, decoder=decoder).samples, expected)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_avi_size_that_a_recorder_left_open_is_ignored(ffmpeg_media: Path, tmp_path: Path, size: int) -> None:
    data = (ffmpeg_media / "clip.avi").read_bytes()
    path = tmp_path / "clip.avi"
    path.write_bytes(data[:4] + struct.pack("<I", size) + data[8:])
    read(path)


@pytest.mark.parametrize("name", ["clip.avi", "clip.wmv", "a.mp3", "a.flac"])
def test_live_file_whose_header_states_no_length_is_read(
    ffmpeg_media: Path, tmp_path: Path, name: str
) -> None:
    container = {"wmv": "asf"}.get(name[-3:], name.partition(".")[2])
    path = tmp_path / name
    path.write_bytes(run_ffmpeg("-i", ffmpeg_media / name, "-c", "copy", "-f", container, "pipe:1"))
    read(path)


@pytest.mark.parametrize(
    "trailer", [b"EXTRA TRAILER from the camera app, not a box" * 9, b"\xff" * 500, bytes(100), b"abc"]
)
@pytest.mark.parametrize(
    "name", ["clip.mp4", "faststart.mp4", "fragmented.mp4", "clip.mov", "clip.mkv", "clip.flv"]
)
def test_bytes_after_the_end_are_ignored(
    ffmpeg_media: Path, tmp_path: Path, name: str, trailer: bytes
) -> None:
    path = tmp_path / name
    whole = (ffmpeg_media / name).read_bytes()
    path.write_bytes(whole + trailer)
    read(path)
    path.write_bytes(whole[: len(whole) // 2] + trailer)
    assert is_truncated(path)


def test_mp4_without_index_is_truncated(ffmpeg_media: Path, tmp_path: Path) -> None:
    data = (ffmpeg_media / "clip.mp4").read_bytes()
    moov = data.index(b"moov") - 4
    assert moov > len(data) // 2
    path = tmp_path / "clip.mp4"
    path.write_bytes(data[:moov])
    assert is_truncated(path)


def test_mp4_with_a_64_bit_box_is_read(ffmpeg_media: Path, tmp_path: Path) -> None:
    data = (ffmpeg_media / "clip.mp4").read_bytes()
    at = data.index(b"mdat") - 4
    assert data[at - 4 : at] == b"free"
    size = int.from_bytes(data[at : at + 4])
    path = tmp_path / "clip.mp4"
    path.write_bytes(data[: at - 8] + struct.pack(">I4sQ", 1, b"mdat", size + 8) + data[at + 8 :])
    read(path)
    path.write_bytes(data[: at - 8] + struct.pack(">I4sQ", 1, b"mdat", size + 8) + data[at + 8 : at + 5000])
    assert is_truncated(path)
