from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from support.containers import SMALL_SCENE

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media import video
from avdata.media.decoders import pyav
from avdata.media.video import open_video, read_frames
from avdata.testing.media import Scene, scene_frame, write_av

QUALITY = QualityConfig()
SCENE = Scene(seconds=4.0, flashes=(1.0,), beeps=(1.0,), size=(96, 64), fps=Fraction(25), seed=3)

ENCODINGS: dict[str, dict[str, Any]] = {
    "h264": {"vcodec": "libx264", "options": {"preset": "fast", "bf": "3"}, "keyframes": 20},
    "h264-one-keyframe": {"vcodec": "libx264", "options": {"preset": "fast", "bf": "5"}, "keyframes": 500},
    "h264-open-gop": {
        "vcodec": "libx264",
        "options": {"preset": "fast", "bf": "3", "x264-params": "open-gop=1"},
        "keyframes": 12,
    },
    "hevc": {"vcodec": "libx265", "options": {"x265-params": "log-level=none"}, "keyframes": 12},
    "mpeg4": {"vcodec": "mpeg4", "keyframes": 12},
    "vp9": {"vcodec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}, "keyframes": 12},
}


def test_pyav_detects_flipped_bytes_in_h264(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    noisy = np.random.default_rng(0).integers(0, 255, (50, 120, 160, 3), dtype=np.uint8)
    write_av(path, SMALL_SCENE, vcodec="libx264", acodec="aac", pixels=noisy)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 2000
    for place in np.random.default_rng(1).integers(start, start + len(data) // 2, size=400):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(MediaError) as caught:
        read_frames(path, [1.9], QUALITY)
    assert caught.value.reason is QuarantineReason.CORRUPT_FRAMES


def textured_frames(scene: Scene) -> list[np.ndarray]:
    """Return frames with enough texture for forward and backward references."""
    rng = np.random.default_rng(scene.seed)
    grain = rng.integers(0, 90, (*scene.size[::-1], 3), dtype=np.uint8)
    return [
        np.clip(scene_frame(scene, n).astype(int) + np.roll(grain, n, 1), 0, 255).astype(np.uint8)
        for n in range(scene.frames)
    ]


@pytest.fixture(scope="session")
def videos(once: Callable[..., Path]) -> dict[str, Path]:
    def make(folder: Path) -> None:
        pixels = textured_frames(SCENE)
        for name, options in ENCODINGS.items():
            write_av(folder / f"{name}.mkv", SCENE, acodec="libmp3lame", pixels=pixels, **options)

    folder = once("videos", make)
    return {name: folder / f"{name}.mkv" for name in ENCODINGS}


@pytest.mark.parametrize("seek", [False, True])
@pytest.mark.parametrize("name", ENCODINGS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(times=some.lists(some.floats(-0.5, 5.0), min_size=1, max_size=6).map(sorted))
def test_decoding_selected_packets_equals_decoding_all(
    videos: dict[str, Path], name: str, seek: bool, times: list[float]
) -> None:
    selected = read_frames(videos[name], times, QUALITY, seek=seek)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "MAX_BUFFERED_BYTES", 0)
        complete = read_frames(videos[name], times, QUALITY)
    for frame, other in zip(selected, complete, strict=True):
        assert frame.time == other.time
        assert np.array_equal(frame.pixels, other.pixels)


def test_pyav_decodes_only_needed_packets(videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Any] = []
    decode = pyav._decode

    def record(packets: Iterable[Any]) -> Iterator[Any]:
        for packet in packets:
            decoded.append(packet)
            yield packet

    monkeypatch.setattr(pyav, "_decode", lambda stream, packets: decode(stream, record(packets)))
    read_frames(videos["mpeg4"], [3.9], QUALITY, seek=True)
    assert 1 < len(decoded) <= 12 + 1


def with_flipped_bytes(source: Path, target: Path, count: int = 400) -> Path:
    """Write a copy with `count` flipped bytes, none of them in the first or last tenth."""
    data = bytearray(source.read_bytes())
    for place in np.random.default_rng(1).integers(len(data) // 10, len(data) * 9 // 10, size=count):
        data[place] ^= 0xFF
    target.write_bytes(bytes(data))
    return target


@pytest.mark.parametrize("name", ["h264", "h264-one-keyframe", "mpeg4", "vp9", "mjpeg", "flv"])
def test_pyav_detects_400_flipped_bytes(tmp_path: Path, videos: dict[str, Path], name: str) -> None:
    source = videos.get(name)
    if source is None:
        source = tmp_path / {"mjpeg": "a.avi", "flv": "a.flv"}[name]
        motion: dict[str, Any] = {"vcodec": "mjpeg", "acodec": "pcm_s16le", "pix_fmt": "yuvj420p"}
        write_av(source, SCENE, pixels=textured_frames(SCENE), **(motion if name == "mjpeg" else {}))
    read_frames(source, [3.9], QUALITY)
    bad = with_flipped_bytes(source, tmp_path / f"bad{source.suffix}")
    with pytest.raises(MediaError):
        read_frames(bad, [0.5, 1.5, 2.5, 3.9], QUALITY)


def test_damage_that_ffmpeg_only_logs_counts_as_corrupt(tmp_path: Path) -> None:
    # The MJPEG decoder, like that of VP6, neither flags such frames nor fails.
    path = tmp_path / "a.avi"
    write_av(path, SCENE, vcodec="mjpeg", acodec=None, pix_fmt="yuvj420p", pixels=textured_frames(SCENE))
    data = bytearray(path.read_bytes())
    places = [at for at in range(len(data)) if data[at : at + 4] == b"00dc"][: SCENE.frames]
    for place in places:
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        half = place + 8 + size // 2
        data[half : half + size // 4] = b"\xfe" * (size // 4)
    path.write_bytes(bytes(data))
    with pytest.raises(MediaError) as caught:
        read_frames(path, [3.9], QUALITY)
    assert caught.value.reason is QuarantineReason.CORRUPT_FRAMES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyav, "CODECS_WITH_CORRUPT_FLAG", {"mjpeg"})
        read_frames(path, [3.9], QualityConfig(max_corrupt=0.5))


def test_pyav_rejects_frames_larger_than_the_header_states(tmp_path: Path) -> None:
    path = tmp_path / "lie.avi"
    write_av(path, SCENE, vcodec="mjpeg", acodec=None, pix_fmt="yuvj420p")
    data = path.read_bytes()
    # Start of frame: length 17, 8 bits, height, width.
    marker = b"\xff\xc0\x00\x11\x08"
    size_start = data.index(marker) + len(marker)
    true_size, false_size = data[size_start : size_start + 4], (30_000).to_bytes(2, "big") * 2
    path.write_bytes(data.replace(marker + true_size, marker + false_size))
    with pytest.raises(MediaError) as caught, open_video(path, QUALITY, audio=False) as video_file:
        video_file.frames_at([1.0])
    assert caught.value.reason in {
        QuarantineReason.NO_FRAMES,
        QuarantineReason.TOO_LARGE,
        QuarantineReason.UNREADABLE,
    }
