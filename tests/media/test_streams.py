"""Choice of streams: those that can be decoded, the default one first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import ffmpeg_media
from support.ffmpeg_media import audio_samples, run_ffmpeg

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason, SampleFlag
from avdata.media.audio import decode_audio
from avdata.media.decoders import DECODERS
from avdata.media.video import open_video, read_frame_times, read_frames

QUALITY = QualityConfig()

DECODER_NAMES = ("pyav", "ffmpeg")

TONE = ("-f", "lavfi", "-i", "sine=440:d=1:r=48000")
NOISE = ("-f", "lavfi", "-i", "aevalsrc='0.3*random(0)':d=1:s=48000")
COLOR = ("-f", "lavfi", "-i", "color=red:s=64x48:r=25:d=1")
PATTERN = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=10:d=1")
CODECS = ("-c:v", "mpeg4", "-c:a", "aac")


def write(path: Path, inputs: tuple[str, ...], streams: tuple[str, ...], *options: str) -> Path:
    maps = [argument for stream in streams for argument in ("-map", stream)]
    run_ffmpeg(*inputs, *maps, *CODECS, *options, path)
    return path


def hide_codec(path: Path, track: int) -> None:
    """Give a track of an MP4 file a codec that no program knows."""
    data = path.read_bytes()
    at = -1
    for _ in range(track + 1):
        at = data.index(b"stsd", at + 1)
    entry = data[at + 16 : at + 20]
    # ffmpeg would find the codec of AAC in its descriptor.
    sample_tables = data[at:].replace(entry, b"apac", 1).replace(b"esds", b"free", 1)
    path.write_bytes(data[:at] + sample_tables)


def read_audio(path: Path, decoder: str) -> None:
    with open_video(path, QUALITY, decoder=decoder) as video_file:
        video_file.audio_track()


def reason(path: Path, decoder: str) -> QuarantineReason:
    with pytest.raises(MediaError) as caught:
        read_audio(path, decoder)
    return caught.value.reason


@pytest.mark.parametrize("decoder", DECODER_NAMES)
def test_audio_track_that_can_be_decoded_is_chosen(tmp_path: Path, decoder: str) -> None:
    path = write(tmp_path / "phone.mp4", (*COLOR, *TONE, *NOISE), ("0:v", "1:a", "2:a"))
    expected = audio_samples(path, "a:1")
    hide_codec(path, 1)
    with open_video(path, QUALITY, decoder=decoder) as video_file:
        track, flags = video_file.audio_track(), video_file.frame_times.flags
    assert np.abs(track.samples[: len(expected)] - expected).max() < 1e-4
    assert SampleFlag.MULTIPLE_STREAMS in flags
    separate = decode_audio(path, QUALITY, decoder=decoder)
    assert np.array_equal(separate.samples, track.samples)


def test_video_track_that_can_be_decoded_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", (*COLOR, *PATTERN, *TONE), ("0:v", "1:v", "2:a"))
    expected = ffmpeg_media.frame_times(path, "v:1")
    hide_codec(path, 0)
    assert read_frame_times(path, QUALITY).times == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("decoder", DECODER_NAMES)
def test_track_of_an_unknown_codec_has_its_own_reason(tmp_path: Path, decoder: str) -> None:
    path = write(tmp_path / "clip.mp4", (*COLOR, *TONE), ("0:v", "1:a"))
    whole = path.read_bytes()
    hide_codec(path, 1)
    assert reason(path, decoder) is QuarantineReason.UNDECODABLE_AUDIO
    assert len(read_frame_times(path, QUALITY).times) == 25
    path.write_bytes(whole)
    hide_codec(path, 0)
    if decoder == "pyav":
        assert reason(path, decoder) is QuarantineReason.UNDECODABLE_VIDEO


@pytest.mark.parametrize("decoder", DECODER_NAMES)
def test_default_tracks_are_chosen(tmp_path: Path, decoder: str) -> None:
    path = write(
        tmp_path / "clip.mkv", (*COLOR, *PATTERN, *TONE, *NOISE), ("0:v", "1:v", "2:a", "3:a"),
        "-disposition:v:0", "0", "-disposition:v:1", "default", "-disposition:a:0", "0",
        "-disposition:a:1", "default",
    )  # fmt: skip
    expected = audio_samples(path, "a:1")
    with open_video(path, QUALITY, decoder=decoder) as video_file:
        times, track = video_file.frame_times, video_file.audio_track()
    assert times.times == pytest.approx(ffmpeg_media.frame_times(path, "v:1"), abs=1e-6)
    assert (times.metadata["width"], times.metadata["height"]) == (96, 64)
    assert np.abs(track.samples[: len(expected)] - expected).max() < 1e-4
    frames = DECODERS[decoder].frames_at(path, times, [0.5])
    assert frames[0].pixels.shape == (64, 96, 3)
    assert read_frames(path, [0.5], QUALITY)[0].pixels.shape == (64, 96, 3)


@pytest.mark.parametrize(
    ("streams", "is_flagged"),
    [(("0:v", "2:a"), False), (("0:v", "1:v", "2:a"), True), (("0:v", "2:a", "3:a"), True)],
)
def test_several_streams_of_one_type_are_flagged(
    tmp_path: Path, streams: tuple[str, ...], *, is_flagged: bool
) -> None:
    path = write(tmp_path / "clip.mkv", (*COLOR, *PATTERN, *TONE, *NOISE), streams)
    assert (SampleFlag.MULTIPLE_STREAMS in read_frame_times(path, QUALITY).flags) == is_flagged


def test_attached_picture_is_no_video_stream(tmp_path: Path) -> None:
    picture = tmp_path / "cover.png"
    run_ffmpeg(*PATTERN, "-frames:v", "1", picture)
    cover = ("-c:v:1", "png", "-disposition:v:1", "attached_pic")
    inputs = (*COLOR, "-i", str(picture), *TONE)
    path = write(tmp_path / "clip.mp4", inputs, ("0:v", "1:v", "2:a"), *cover)
    frame_times = read_frame_times(path, QUALITY)
    assert SampleFlag.MULTIPLE_STREAMS not in frame_times.flags
    assert (frame_times.metadata["video_codec"], len(frame_times.times)) == ("mpeg4", 25)
    only = tmp_path / "only.m4a"
    run_ffmpeg(
        "-i", path, "-map", "0:v:1", "-map", "0:a", "-c", "copy", "-disposition:v:0", "attached_pic", only
    )
    with pytest.raises(MediaError) as caught:
        read_frame_times(only, QUALITY)
    assert caught.value.reason is QuarantineReason.NO_VIDEO_STREAM
