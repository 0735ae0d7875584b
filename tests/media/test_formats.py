from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.ffmpeg_media import (
    AUDIO_FILES,
    VIDEO_FILES,
    audio_samples,
    audio_start,
    frame_times,
    run_ffmpeg,
)

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio import decode_audio
from avdata.media.decoders import DECODERS
from avdata.media.formats import detect_format, detect_format_of
from avdata.media.mpeg_audio import FrameHeader
from avdata.media.types import AudioTrack
from avdata.media.video import open_video, read_frame_times, read_frames

QUALITY = QualityConfig()

AAC_FRAME = 1024
"""Samples of padding at the end of AAC that ffmpeg 9 removes, and PyAV's libraries do not."""


def assert_audio_is_that_of_ffmpeg(track: AudioTrack, path: Path) -> None:
    expected = audio_samples(path)
    assert 0 <= len(track.samples) - len(expected) < AAC_FRAME
    assert np.abs(track.samples[: len(expected)] - expected).max() < 1e-4


@pytest.mark.parametrize("name", VIDEO_FILES)
def test_container_has_the_frame_times_and_the_audio_of_ffmpeg(ffmpeg_media: Path, name: str) -> None:
    with open_video(ffmpeg_media / name, QUALITY) as video_file:
        times, track = video_file.frame_times.times, video_file.audio_track()
    assert times == pytest.approx(frame_times(ffmpeg_media / name), abs=1e-6)
    # A tick of the clock of MPEG streams is 11 us.
    assert track.start == pytest.approx(audio_start(ffmpeg_media / name), abs=2e-5)
    assert_audio_is_that_of_ffmpeg(track, ffmpeg_media / name)


@pytest.mark.parametrize("name", AUDIO_FILES)
def test_audio_file_has_the_samples_of_ffmpeg(ffmpeg_media: Path, name: str) -> None:
    assert_audio_is_that_of_ffmpeg(decode_audio(ffmpeg_media / name, QUALITY), ffmpeg_media / name)


@pytest.mark.parametrize("name", ["clip.mpg", "clip.ts", "clip.m2ts", "clip.wmv", "clip.dv", "clip.mxf"])
def test_ffmpeg_decoder_reads_the_same_containers(ffmpeg_media: Path, name: str) -> None:
    moments = [0.3, 1.1]
    with open_video(ffmpeg_media / name, QUALITY, decoder="ffmpeg") as video_file:
        times, track = video_file.frame_times, video_file.audio_track()
    moments = [times.start + moment for moment in moments]
    frames = DECODERS["ffmpeg"].frames_at(ffmpeg_media / name, times, moments, VideoConfig(), QUALITY)
    expected = read_frames(ffmpeg_media / name, moments, QUALITY)
    assert [frame.time for frame in frames] == pytest.approx([frame.time for frame in expected], abs=1e-6)
    assert_audio_is_that_of_ffmpeg(track, ffmpeg_media / name)


def test_decord_reads_frames_in_order_where_it_seeks_to_others(ffmpeg_media: Path) -> None:
    name = "clip.wmv"
    times = read_frame_times(ffmpeg_media / name, QUALITY)
    moments = [times.start + moment for moment in (0.3, 1.1)]
    frames = DECODERS["decord"].frames_at(ffmpeg_media / name, times, moments)
    expected = read_frames(ffmpeg_media / name, moments, QUALITY)
    for frame, image in zip(frames, expected, strict=True):
        assert frame.time == pytest.approx(image.time, abs=1e-6)
        assert np.abs(frame.pixels.astype(int) - image.pixels).mean() < 3


@pytest.mark.parametrize("name", ["clip.ts", "clip.m2ts", "clip.mpg", "clip.vob", "clip.nut"])
def test_decord_refuses_containers_that_it_cannot_read(ffmpeg_media: Path, name: str) -> None:
    times = read_frame_times(ffmpeg_media / name, QUALITY)
    with pytest.raises(MediaError, match="decord cannot decode"):
        DECODERS["decord"].frames_at(ffmpeg_media / name, times, [times.start])


def test_audio_after_zeros_or_a_tag_has_the_samples_of_the_plain_file(
    ffmpeg_media: Path, tmp_path: Path
) -> None:
    tag = b"ID3\x04\0\0" + bytes([0, 0, 8, 0]) + b"TIT2" + bytes(1020)
    for name in ("a.flac", "a.aac", "a.mp3"):
        path = tmp_path / name
        path.write_bytes(tag + (ffmpeg_media / name).read_bytes())
        assert_audio_is_that_of_ffmpeg(decode_audio(path, QUALITY), path)
    for name in ("a.mp3", "a.mp2", "a.aac"):
        path = tmp_path / f"zeros-{name}"
        path.write_bytes(bytes(9000) + (ffmpeg_media / name).read_bytes())
        # ffmpeg's own detection needs the name of the format.
        expected = len(audio_samples(ffmpeg_media / name))
        assert abs(len(decode_audio(path, QUALITY).samples) - expected) < 3 * AAC_FRAME


@pytest.mark.parametrize("subtype", ["PCM_16", "ULAW"])
def test_sphere_has_the_samples_of_soundfile(tmp_path: Path, subtype: str) -> None:
    wave = np.sin(np.arange(16_000) / 10) * 0.5
    path = tmp_path / "utterance.sph"
    soundfile.write(path, wave, 16_000, format="NIST", subtype=subtype)
    assert decode_audio(path, QUALITY).samples == pytest.approx(soundfile.read(path)[0], abs=1e-4)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(MediaError, match="truncated"):
        decode_audio(path, QUALITY)


@pytest.mark.parametrize("size", [188, 192, 204])
def test_transport_stream_is_detected_by_its_packets(ffmpeg_media: Path, size: int) -> None:
    data = (ffmpeg_media / "clip.ts").read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)][:60]
    stream = b"".join({188: p, 192: bytes(4) + p, 204: p + bytes(16)}[size] for p in packets)
    assert detect_format_of(stream) == "mpegts"
    # A recording may begin inside a packet.
    assert detect_format_of(stream[100:]) == "mpegts"
    assert detect_format_of(stream[: 3 * size]) == "mpegts"


@pytest.mark.parametrize(
    ("suffix", "options", "name"),
    [
        ("wv", (), "WavPack"), ("tta", (), "TTA"), ("ivf", ("-c:v", "libvpx"), "IVF"), ("gif", (), "GIF"),
        ("y4m", ("-pix_fmt", "yuv420p"), "YUV4MPEG2"), ("h264", (), "raw H.264"),
        ("m2v", (), "raw MPEG video"), ("ac3", (), "raw AC-3"), ("rm", (), "RealMedia"), ("voc", (), "VOC"),
        ("tiff", ("-frames:v", "1"), "TIFF"),
        ("swf", ("-c:v", "flv1", "-ar", "44100"), "Flash"),
    ],
)  # fmt: skip
def test_known_format_that_is_not_read_is_named(
    ffmpeg_media: Path, tmp_path: Path, suffix: str, options: tuple[str, ...], name: str
) -> None:
    path = tmp_path / f"file.{suffix}"
    run_ffmpeg("-i", ffmpeg_media / "clip.mkv", "-t", "0.2", *options, path)
    with pytest.raises(MediaError, match=name) as caught:
        detect_format(path)
    assert caught.value.reason is QuarantineReason.FORMAT_NOT_ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile real.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\nreal.ts\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD><BaseURL>real.mp4</BaseURL></MPD>',
        "Gallery of GGGG" + "G" * 2000,
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_playlists_and_text_are_no_media(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text(text, encoding=encoding)
    with pytest.raises(MediaError) as caught:
        detect_format(path)
    assert caught.value.reason is QuarantineReason.NOT_MEDIA


def test_images_are_told_from_media(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    assert {detect_format(path) for path in tmp_path.iterdir()} == {"jpeg", "png", "webp"}


def test_frame_header_states_the_size_of_each_frame(ffmpeg_media: Path) -> None:
    for name in ("a.mp2", "a.mp3"):
        data = (ffmpeg_media / name).read_bytes()
        position = data.index(b"\xff", 0 if name == "a.mp2" else 10 + int.from_bytes(data[8:10]))
        count = 0
        while (header := FrameHeader.parse(data[position : position + 4])) is not None:
            assert header.rate == 48_000
            position += header.size
            count += 1
        assert position == len(data)
        # The first frame of MP3 is the Xing header.
        assert count == pytest.approx(2.0 * 48_000 / 1152, abs=3)
