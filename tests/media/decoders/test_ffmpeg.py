"""Frames and audio by the `ffmpeg` program, against PyAV and soundfile."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from support.containers import CONTAINERS, SMALL_SCENE

from avdata.config.schema import QualityConfig, VideoConfig, build_config
from avdata.errors import MediaError, QuarantineReason, UsageError
from avdata.features.extract import extract_features
from avdata.media.audio import decode_audio
from avdata.media.decoders import DECODERS
from avdata.media.decoders import ffmpeg as ffmpeg_decoder
from avdata.media.decoders.ffmpeg_log import VideoLog
from avdata.media.types import FrameTimes
from avdata.media.video import open_video, read_frame_times, read_frames
from avdata.recipe import Clip
from avdata.testing.media import Scene, scene_audio, scene_frame, write_av, write_wav

QUALITY = QualityConfig()
SCENE = Scene(seconds=4.0, flashes=(1.0,), beeps=(1.0,), size=(96, 64), fps=Fraction(25), seed=3)
TIMES = [0.5, 1.5, 2.5, 3.9]


def frames_at(path: Path, times: list[float], quality: QualityConfig = QUALITY) -> list[Any]:
    return DECODERS["ffmpeg"].frames_at(path, read_frame_times(path, QUALITY), times, VideoConfig(), quality)


def textured_frames(scene: Scene) -> list[np.ndarray]:
    """Return frames with enough texture for damage to show."""
    grain = np.random.default_rng(scene.seed).integers(0, 90, (*scene.size[::-1], 3), dtype=np.uint8)
    return [scene_frame(scene, number) + np.roll(grain, number, 1) for number in range(scene.frames)]


def flip_bytes(path: Path, count: int = 400) -> None:
    data = bytearray(path.read_bytes())
    for place in np.random.default_rng(1).integers(len(data) // 10, len(data) * 9 // 10, size=count):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def reason_of(read: Callable[[], object]) -> QuarantineReason:
    with pytest.raises(MediaError) as caught:
        read()
    return caught.value.reason


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("channels", [1, 2])
def test_ffmpeg_audio_equals_that_of_pyav(tmp_path: Path, suffix: str, channels: int) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_av(path, replace(SMALL_SCENE, channels=channels), audio_start=0.3, **CONTAINERS[suffix])
    expected = decode_audio(path, QUALITY)
    track = decode_audio(path, QUALITY, decoder="ffmpeg")
    assert track.start == pytest.approx(expected.start, abs=1e-4)
    assert (track.rate, track.metadata) == (expected.rate, expected.metadata)
    # ffmpeg 9 removes the padding of the last packet of AAC.
    assert abs(len(track.samples) - len(expected.samples)) < 1024
    count = min(len(track.samples), len(expected.samples))
    assert np.abs(track.samples[:count] - expected.samples[:count]).max() < 1e-4


@pytest.mark.parametrize(("suffix", "codec"), [("flac", "flac"), ("wav", "adpcm_ms")])
def test_ffmpeg_audio_equals_that_of_soundfile(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write_av(path, SCENE, vcodec=None, acodec=codec)
    expected, rate = soundfile.read(path, dtype="float32")
    track = decode_audio(path, QUALITY, decoder="ffmpeg")
    assert (track.rate, track.start) == (rate, 0.0)
    count = min(len(expected), len(track.samples))
    assert count >= SCENE.seconds * rate - 1
    assert np.abs(track.samples[:count] - expected[:count]).max() < 1e-4


def test_ffmpeg_fills_gaps_in_the_audio_with_silence(tmp_path: Path) -> None:
    path = tmp_path / "gap.mkv"
    write_av(path, SCENE, vcodec=None, acodec="pcm_s16le")
    expected = decode_audio(path, QUALITY)
    # The timestamps of the second half are moved by half a second.
    shifted = tmp_path / "shifted.mkv"
    with av.open(str(path)) as source, av.open(str(shifted), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is None:
                continue
            if packet.pts * packet.time_base >= 2:
                packet.pts += round(Fraction(1, 2) / packet.time_base)
                packet.dts = packet.pts
            packet.stream = stream
            target.mux(packet)
    track = decode_audio(shifted, QUALITY, decoder="ffmpeg")
    for gapped in (track, decode_audio(shifted, QUALITY)):
        assert gapped.flags == ("audio_clock_drift",)
        assert np.array_equal(gapped.samples[:80_000], expected.samples[:80_000])
        assert np.array_equal(gapped.samples[-80_000:], expected.samples[-80_000:])
        assert len(gapped.samples) == pytest.approx(
            len(expected.samples) + track.rate / 2, abs=track.rate / 500
        )


def test_ffmpeg_decodes_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyAV's wheels lack some decoders; this file has none of theirs.
    path = tmp_path / "clip.mp4"
    write_av(path, SCENE, vcodec="libx264", acodec="aac")
    frame_times, expected = read_frame_times(path, QUALITY), read_frames(path, TIMES, QUALITY)
    audio = decode_audio(path, QUALITY)
    with av.open(str(path)) as container:
        audio_index = container.streams.audio[0].index
    monkeypatch.setitem(sys.modules, "av", None)
    frames = DECODERS["ffmpeg"].frames_at(path, frame_times, TIMES)
    assert [frame.time for frame in frames] == [frame.time for frame in expected]
    track = DECODERS["ffmpeg"].decode_audio(path, QUALITY, audio_index)
    assert np.abs(track.samples[:100_000] - audio.samples[:100_000]).max() < 1e-6
    with pytest.raises(ImportError):
        decode_audio(path, QUALITY)


def test_video_of_a_codec_that_pyav_lacks_is_undecodable_with_pyav_only(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write_av(path, SCENE, vcodec="libx264", acodec="flac")
    expected = read_frame_times(path, QUALITY)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    assert reason_of(lambda: read_frame_times(path, QUALITY)) is QuarantineReason.UNDECODABLE_VIDEO
    with open_video(path, QUALITY, decoder="ffmpeg") as video_file:
        frame_times = video_file.frame_times
        assert np.array_equal(frame_times.times, expected.times)
        assert frame_times.metadata["video_codec"] == "unknown"
        assert video_file.audio_track().rate == SCENE.rate
    # No program decodes an invented codec.
    undecodable = reason_of(lambda: DECODERS["ffmpeg"].frames_at(path, frame_times, TIMES))
    assert undecodable is QuarantineReason.UNDECODABLE_VIDEO


def test_audio_of_a_codec_that_pyav_lacks_is_undecodable(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write_av(path, SCENE, vcodec="libx264", acodec="flac")
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_XYZW"))
    for name in ("pyav", "ffmpeg"):
        undecodable = reason_of(lambda name=name: decode_audio(path, QUALITY, decoder=name))
        assert undecodable is QuarantineReason.UNDECODABLE_AUDIO
        with open_video(path, QUALITY, decoder=name) as video_file:
            assert reason_of(video_file.audio_track) is QuarantineReason.UNDECODABLE_AUDIO


def test_features_are_those_of_pyav(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_av(path, SCENE, vcodec="libx264", acodec="aac", audio_start=0.2)
    clip = Clip(key="a", label="a", group="a", split="train", video=path, audio=None)
    expected = extract_features(clip, build_config({"video": {"size": 32}}))
    features = extract_features(clip, build_config({"video": {"size": 32, "decoder": "ffmpeg"}}))
    assert features.frame_times == expected.frame_times
    assert features.window == expected.window
    assert features.source == expected.source
    assert np.abs(features.mel.astype(float) - expected.mel.astype(float)).max() < 0.1
    assert np.abs(features.frames.astype(int) - expected.frames).mean() < 2


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mkv", {"vcodec": "libx264", "keyframes": 20}),
        ("mkv", {"vcodec": "mpeg4", "keyframes": 12}),
        ("avi", {"vcodec": "mjpeg", "pix_fmt": "yuvj420p"}),
        (
            "mkv",
            {"vcodec": "libvpx-vp9", "keyframes": 12, "options": {"cpu-used": "8", "deadline": "realtime"}},
        ),
        ("flv", {}),
    ],
    ids=["h264", "mpeg4", "mjpeg", "vp9", "flv"],
)
def test_damaged_video_has_the_reason_of_pyav(tmp_path: Path, suffix: str, options: dict[str, Any]) -> None:
    path = tmp_path / f"a.{suffix}"
    write_av(path, SCENE, acodec=None, pixels=textured_frames(SCENE), **options)
    intact = frames_at(path, TIMES)
    assert len(intact) == len(TIMES)
    flip_bytes(path)
    reasons = {
        reason_of(lambda: read_frames(path, TIMES, QUALITY)),
        reason_of(lambda: frames_at(path, TIMES)),
    }
    assert reasons == {QuarantineReason.CORRUPT_FRAMES}


def test_damage_after_the_last_requested_frame_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_av(path, SCENE, vcodec="mjpeg", acodec=None, pix_fmt="yuvj420p", pixels=textured_frames(SCENE))
    data = bytearray(path.read_bytes())
    places = [at for at in range(len(data)) if data[at : at + 4] == b"00dc"][: SCENE.frames]
    for place in places[20:]:
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        half = place + 8 + size // 2
        data[half : half + size // 4] = b"\xfe" * (size // 4)
    path.write_bytes(bytes(data))
    strict = QualityConfig(max_corrupt=0)
    for _ in range(3):
        assert len(frames_at(path, [0.2, 0.5], strict)) == 2
    assert reason_of(lambda: frames_at(path, [0.2, 0.9], strict)) is QuarantineReason.CORRUPT_FRAMES


def test_damaged_audio_has_the_reason_of_pyav(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_av(path, SCENE, vcodec="libx264", acodec="aac")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 8
    for place in np.random.default_rng(0).integers(start, data.index(b"moov"), size=400):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    reasons = {
        reason_of(lambda name=name: decode_audio(path, QUALITY, decoder=name)) for name in ("pyav", "ffmpeg")
    }
    assert reasons == {QuarantineReason.CORRUPT_AUDIO}


def test_file_without_the_track_has_the_reason_of_pyav(tmp_path: Path) -> None:
    silent, blind = tmp_path / "silent.mp4", tmp_path / "blind.mp4"
    write_av(silent, SCENE, vcodec="libx264", acodec=None)
    write_av(blind, SCENE, vcodec=None, acodec="aac")
    no_audio = reason_of(lambda: decode_audio(silent, QUALITY, decoder="ffmpeg"))
    assert no_audio is QuarantineReason.NO_AUDIO_STREAM
    times = read_frame_times(silent, QUALITY)
    no_video = reason_of(lambda: DECODERS["ffmpeg"].frames_at(blind, times, [0.5]))
    assert no_video is QuarantineReason.NO_VIDEO_STREAM


def test_playlist_named_mp4_opens_no_other_file(tmp_path: Path) -> None:
    write_av(tmp_path / "real.mp4", SCENE, vcodec="libx264", acodec="aac")
    frame_times = read_frame_times(tmp_path / "real.mp4", QUALITY)
    playlist = tmp_path / "list.mp4"
    playlist.write_text("ffconcat version 1.0\nfile real.mp4\n")
    for read in (
        lambda: decode_audio(playlist, QUALITY, decoder="ffmpeg"),
        lambda: DECODERS["ffmpeg"].frames_at(playlist, frame_times, [0.5]),
    ):
        assert reason_of(read) is QuarantineReason.NOT_MEDIA


def test_times_count_from_the_origin_of_a_container_that_starts_late(tmp_path: Path) -> None:
    video, audio = tmp_path / "video.mkv", tmp_path / "audio.mkv"
    write_av(video, SCENE, vcodec="libx264", acodec=None, frame_times=[0.4 + n / 25 for n in range(50)])
    write_av(audio, SCENE, vcodec=None, acodec="flac", audio_start=0.4)
    assert [frame.time for frame in frames_at(video, [0.1, 1.0])] == pytest.approx([0.4, 1.0])
    assert decode_audio(audio, QUALITY, decoder="ffmpeg").start == pytest.approx(0.4, abs=0.001)


def test_video_log_counts_damage_up_to_the_last_requested_frame() -> None:
    decoded = "[dec:mjpeg @ 0x1] [info] decoder -> pts:1 pts_time:0.04 time_base:1/25\n"
    failed = "[dec:mjpeg @ 0x1] [error] Error submitting packet to decoder: Invalid data\n"
    error = "[mjpeg @ 0x2] [error] overread 8\n"
    flagged = "[dec:mjpeg @ 0x1] [warning] corrupt decoded frame\n"
    probing = ["[mjpeg @ 0x0] [error] overread 8\n", "[info] Stream mapping:\n"]
    lines = [*probing, decoded, error, error, decoded, flagged, decoded, failed, decoded, error, decoded]
    counts = {"mjpeg": (3, 5), "h264": (2, 5)}
    for codec, expected in counts.items():
        log = VideoLog(codec, max_decoded=5)
        for line in lines:
            log.read_line(line)
        assert (log.num_corrupt, log.num_decoded) == expected


def test_unreadable_detail_names_no_folder_and_is_the_same_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(b"\x1aE\xdf\xa3" + bytes(200))
    details = set()
    for _ in range(3):
        with pytest.raises(MediaError) as caught:
            DECODERS["ffmpeg"].decode_audio(path, QUALITY, 0)
        details.add(str(caught.value))
    assert len(details) == 1
    assert "ffmpeg cannot open it" in (detail := details.pop())
    assert str(tmp_path) not in detail
    assert "@ 0x" not in detail


def test_limits_of_pixels_and_seconds_apply(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_av(path, SCENE, vcodec="libx264", acodec="aac")
    too_large = reason_of(lambda: frames_at(path, [0.5], QualityConfig(max_pixels=100)))
    assert too_large is QuarantineReason.TOO_LARGE
    too_long = reason_of(lambda: decode_audio(path, QualityConfig(max_seconds=1.0), decoder="ffmpeg"))
    assert too_long is QuarantineReason.TOO_LONG


def test_only_the_requested_frames_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    scene = replace(SCENE, size=(640, 480), seconds=8.0)
    write_av(path, scene, vcodec="libx264", acodec=None, options={"preset": "ultrafast"})
    frame_times = read_frame_times(path, QUALITY)
    frame_bytes = 640 * 480 * 3
    tracemalloc.start()
    try:
        frames = DECODERS["ffmpeg"].frames_at(path, frame_times, [1.0, 1.001, 7.9])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frames[0] is frames[1]
    assert peak < 4 * frame_bytes + 2e6


def test_wrong_container_times_are_replaced_by_those_of_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_av(path, SCENE, vcodec="libx264", acodec=None)
    wrong = FrameTimes(np.array([0.01, 0.51, 1.03]), 1.1, {"video_codec": "h264"}, ())
    frames = DECODERS["ffmpeg"].frames_at(path, wrong, TIMES)
    assert [frame.time for frame in frames] == [frame.time for frame in read_frames(path, TIMES, QUALITY)]


def test_256_requested_frames_are_returned_in_order(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write_av(path, replace(SCENE, seconds=12.0, size=(32, 32)), vcodec="ffv1", acodec=None, pix_fmt="bgr0")
    times = [float(time) for time in np.linspace(0, 12, 256)]
    expected = read_frames(path, times, QUALITY)
    for frame, other in zip(frames_at(path, times), expected, strict=True):
        assert frame.time == other.time
        assert np.array_equal(frame.pixels, other.pixels)


def test_hwaccel_requires_ffmpeg_and_is_passed_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"video\.hwaccel=cuda requires video\.decoder=ffmpeg, not pyav"):
        build_config({"video": {"hwaccel": "cuda"}})
    path = tmp_path / "clip.mp4"
    write_av(path, SCENE, vcodec="libx264", acodec=None)
    options: list[dict[str, Any]] = []
    original = ffmpeg_decoder.input_file

    def record(path: Path, name: str, **given: Any) -> Any:
        options.append(given)
        return original(path, name, **{**given, "hwaccel": "none"})

    monkeypatch.setattr(ffmpeg_decoder, "input_file", record)
    video = build_config({"video": {"hwaccel": "cuda", "decoder": "ffmpeg"}}).video
    DECODERS["ffmpeg"].frames_at(path, read_frame_times(path, QUALITY), [0.5], video)
    assert options[0]["hwaccel"] == "cuda"


def test_no_thread_or_process_outlives_a_call(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", scene_audio(SCENE, 8_000), 8_000)
    write_av(tmp_path / "a.mkv", SCENE, vcodec=None, acodec="flac")
    decode_audio(tmp_path / "a.mkv", QUALITY, decoder="ffmpeg")
    with pytest.raises(MediaError):
        decode_audio(tmp_path / "a.mkv", QualityConfig(max_seconds=0.5), decoder="ffmpeg")
    assert "ffmpeg-log" not in {thread.name for thread in threading.enumerate()}
