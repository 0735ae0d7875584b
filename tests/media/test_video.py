from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media import video
from avdata.media.decoders import pyav
from avdata.media.packet_selection import PacketSelection
from avdata.media.video import open_video, read_frame_times, read_frames
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


def textured(scene: Scene) -> list[np.ndarray]:
    """Frames with enough in them for the encoder to refer forwards and backwards."""
    dice = np.random.default_rng(scene.seed)
    grain = dice.integers(0, 90, (*scene.size[::-1], 3), dtype=np.uint8)
    return [
        np.clip(scene_frame(scene, n).astype(int) + np.roll(grain, n, 1), 0, 255).astype(np.uint8)
        for n in range(scene.frames)
    ]


@pytest.fixture(scope="session")
def films(once: Callable[..., Path]) -> dict[str, Path]:
    def make(folder: Path) -> None:
        for name, options in ENCODINGS.items():
            write_av(folder / f"{name}.mkv", SCENE, acodec="libmp3lame", pixels=textured(SCENE), **options)

    folder = once("films", make)
    return {name: folder / f"{name}.mkv" for name in ENCODINGS}


@pytest.mark.parametrize("seek", [False, True])
@pytest.mark.parametrize("name", ENCODINGS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(moments=some.lists(some.floats(-0.5, 5.0), min_size=1, max_size=6).map(sorted))
def test_decoding_only_what_is_needed_shows_what_decoding_all_shows(
    films: dict[str, Path], name: str, seek: bool, moments: list[float]
) -> None:
    short = read_frames(films[name], moments, QUALITY, seek=seek)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "MAX_BUFFERED_BYTES", 0)
        whole = read_frames(films[name], moments, QUALITY)
    for one, other in zip(short, whole, strict=True):
        assert one.time == other.time
        assert np.array_equal(one.pixels, other.pixels)


def test_only_packets_that_are_needed_are_decoded(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    real = pyav._decode
    monkeypatch.setattr(
        pyav, "_decode", lambda stream, packets: real(stream, (taken.append(one) or one for one in packets))
    )
    read_frames(films["mpeg4"], [3.9], QUALITY, seek=True)
    assert 1 < len(taken) <= 12 + 1


def test_a_route_begins_at_the_keyframe_that_leading_frames_need() -> None:
    class Packet:
        def __init__(self, pts: int | None, is_keyframe: bool = False) -> None:
            self.pts, self.is_keyframe, self.is_discard = pts, is_keyframe, False

    # Decoding order; 5 and 6 are shown before the second keyframe, 7, and refer to frames before it.
    packets = [Packet(n, n == 0) for n in range(5)] + [Packet(7, True), Packet(5), Packet(6), Packet(8)]
    early, late = (
        PacketSelection.select_packets(packets, [5.5], 1.0, seek=True),
        PacketSelection.select_packets(packets, [8.5], 1.0, seek=True),
    )
    assert early is not None
    assert late is not None
    assert early.runs == ((0, 6),)
    assert late.runs == ((5, 8),)
    assert PacketSelection.select_packets([*packets, Packet(None)], [5.5], 1.0, seek=True) is None
    assert PacketSelection.select_packets([*packets, Packet(8)], [5.5], 1.0, seek=True) is None


def flipped(source: Path, target: Path, count: int = 400) -> Path:
    """A copy with so many bytes flipped, all over but for the header."""
    data = bytearray(source.read_bytes())
    for place in np.random.default_rng(1).integers(len(data) // 10, len(data) * 9 // 10, size=count):
        data[place] ^= 0xFF
    target.write_bytes(bytes(data))
    return target


@pytest.mark.parametrize("name", ["h264", "h264-one-keyframe", "mpeg4", "vp9", "mjpeg", "flv"])
def test_four_hundred_flipped_bytes_do_not_pass(tmp_path: Path, films: dict[str, Path], name: str) -> None:
    source = films.get(name)
    if source is None:
        source = tmp_path / {"mjpeg": "a.avi", "flv": "a.flv"}[name]
        motion: dict[str, Any] = {"vcodec": "mjpeg", "acodec": "pcm_s16le", "pix_fmt": "yuvj420p"}
        write_av(source, SCENE, pixels=textured(SCENE), **(motion if name == "mjpeg" else {}))
    read_frames(source, [3.9], QUALITY)
    bad = flipped(source, tmp_path / f"bad{source.suffix}")
    with pytest.raises(MediaError):
        read_frames(bad, [0.5, 1.5, 2.5, 3.9], QUALITY)


def test_damage_that_a_decoder_only_logs_counts_as_corrupt(tmp_path: Path) -> None:
    # MJPEG, like VP6, neither marks such frames nor fails on them.
    path = tmp_path / "a.avi"
    write_av(path, SCENE, vcodec="mjpeg", acodec=None, pix_fmt="yuvj420p", pixels=textured(SCENE))
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


def test_a_hundred_hours_end_at_once(tmp_path: Path) -> None:
    path = tmp_path / "long.mkv"
    write_av(path, replace(SCENE, seconds=360_000.0, fps=Fraction(1, 100)), vcodec="mpeg4", acodec=None)
    with pytest.raises(MediaError) as caught:
        read_frame_times(path, QUALITY)
    assert caught.value.reason is QuarantineReason.TOO_LONG


def test_frames_larger_than_their_header_says_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "lie.avi"
    write_av(path, SCENE, vcodec="mjpeg", acodec=None, pix_fmt="yuvj420p")
    data = path.read_bytes()
    # Start of frame: length 17, 8 bits, height, width.
    start, end = data.index(b"\xff\xc0\x00\x11\x08") + 5, data.index(b"\xff\xc0\x00\x11\x08") + 9
    lie = (30_000).to_bytes(2, "big") * 2
    path.write_bytes(data.replace(b"\xff\xc0\x00\x11\x08" + data[start:end], b"\xff\xc0\x00\x11\x08" + lie))
    with pytest.raises(MediaError) as caught, open_video(path, QUALITY, audio=False) as film:
        film.frames_at([1.0])
    assert caught.value.reason in {
        QuarantineReason.NO_FRAMES,
        QuarantineReason.TOO_LARGE,
        QuarantineReason.UNREADABLE,
    }
