"""Order and times of frames whose packets have no pts, or wrong ones, against the `ffmpeg` program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.ffmpeg_frames import ffmpeg_frames

from avdata.config.schema import QualityConfig
from avdata.media import video
from avdata.media.best_effort import BestEffortTimestamps
from avdata.media.decoders import DECODERS
from avdata.media.video import open_video, read_frame_times, read_frames
from avdata.testing.bitstreams import pack_b_frames, store_as_vfw
from avdata.testing.media import Scene, write_av

QUALITY = QualityConfig()
SCENE = Scene(seconds=2.0, beeps=(1.0,), size=(64, 48))


def numbered_frames() -> list[np.ndarray]:
    """Return noise, so that each frame differs from every other."""
    rng = np.random.default_rng(0)
    return [
        np.kron(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        for _ in range(SCENE.frames)
    ]


def write_case(path: Path, case: str) -> Path:
    """Write a video whose packets have no pts, or whose pts are those of decoding."""
    source = path / "source.avi"
    if case in {"packed", "vfw"}:
        options = {"bf": "1" if case == "packed" else "2"}
        write_av(source, SCENE, vcodec="mpeg4", pixels=numbered_frames(), options=options)
    else:
        source = source.with_suffix(".mp4" if case == "no-ctts" else ".avi")
        write_av(source, SCENE, vcodec="libx264", acodec="libmp3lame", pixels=numbered_frames())
    if case == "packed":
        pack_b_frames(source, path / "packed.avi")
        return path / "packed.avi"
    if case == "vfw":
        store_as_vfw(source, path / "vfw.mkv")
        return path / "vfw.mkv"
    if case == "no-ctts":
        # Without composition offsets and edit list, the pts are those of decoding.
        data = source.read_bytes()
        assert b"ctts" in data
        source.write_bytes(data.replace(b"ctts", b"free").replace(b"edts", b"free"))
    return source


@pytest.mark.parametrize("case", ["avi", "packed", "vfw", "no-ctts"])
@pytest.mark.parametrize("decoder", ["pyav", "pyav-seek", "decord", "ffmpeg"])
def test_frames_without_pts_are_in_the_order_of_ffmpeg(tmp_path: Path, case: str, decoder: str) -> None:
    path = write_case(tmp_path, case)
    times, raw = ffmpeg_frames(path)
    # At the end of a file without composition offsets, ffmpeg's timestamps are backwards too.
    times = times[:-3]
    expected = np.frombuffer(raw, np.uint8).reshape(-1, 48, 64, 3)
    frame_times = read_frame_times(path, QUALITY)
    assert frame_times.is_decoded
    assert frame_times.times[: len(times)].tolist() == pytest.approx(times, abs=1e-6)
    if decoder.startswith("pyav"):
        frames = read_frames(path, times, QUALITY, seek=decoder == "pyav-seek")
    else:
        frames = DECODERS[decoder].frames_at(path, frame_times, times)
    for number, (frame, time) in enumerate(zip(frames, times, strict=True)):
        assert frame.time == pytest.approx(time, abs=1e-6)
        differences = np.abs(frame.pixels.astype(int) - expected).mean(axis=(1, 2, 3))
        assert int(differences.argmin()) == number


def test_frames_without_pts_are_equal_if_the_packets_are_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_case(tmp_path, "avi")
    expected = read_frames(path, [0.5, 1.0, 1.5], QUALITY)
    monkeypatch.setattr(video, "MAX_BUFFERED_BYTES", 0)
    frames = read_frames(path, [0.5, 1.0, 1.5], QUALITY)
    assert [frame.time for frame in frames] == [frame.time for frame in expected]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(frames, expected, strict=True))


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "mpeg4"), ("flv", "flv1")])
def test_streams_with_pts_are_not_decoded_for_their_times(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    options = {} if codec == "flv1" else {"bf": "2"}
    write_av(path, SCENE, vcodec=codec, pixels=numbered_frames(), options=options)
    with open_video(path, QUALITY) as video_file:
        assert not video_file.frame_times.is_decoded
        assert not video_file._stream.codec_context.is_open


def test_best_effort_extrapolates_frames_without_any_timestamp() -> None:
    class Frame:
        def __init__(self, pts: int | None, dts: int | None, duration: int = 0) -> None:
            self.pts, self.dts, self.duration = pts, dts, duration

    timestamps = BestEffortTimestamps()
    frames = [Frame(10, None), Frame(14, None), Frame(None, None), Frame(None, None, 3), Frame(None, None)]
    assert [timestamps.next_pts(frame) for frame in frames] == [10, 14, 18, 22, 25]
