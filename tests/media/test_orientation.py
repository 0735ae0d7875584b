"""Orientation of frames by the display matrix, against the `ffmpeg` program."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from support.ffmpeg_frames import ffmpeg_frames

from avdata.config.schema import QualityConfig, build_config
from avdata.media.decoders import DECODERS
from avdata.media.orientation import Orientation
from avdata.media.resize import resize_image
from avdata.media.video import open_video, read_frame_times, read_frames
from avdata.testing.media import Scene, write_av

QUALITY = QualityConfig()
SCENE = Scene(seconds=0.2, size=(96, 64), silent=True)

MATRICES = {
    "upright": (1, 0, 0, 1),
    "rotated-90": (0, 1, -1, 0),
    "rotated-180": (-1, 0, 0, -1),
    "rotated-270": (0, -1, 1, 0),
    "hflip": (-1, 0, 0, 1),
    "vflip": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed-180": (0, -1, -1, 0),
    "scaled-hflip": (-2, 0, 0, 0.5),
}


def write_with_matrix(path: Path, matrix: tuple[float, ...]) -> None:
    """Write an asymmetric image as video, with a display matrix a, b, c, d in its track header."""
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    write_av(path, SCENE, vcodec="libx264", acodec=None, pixels=[image] * SCENE.frames)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = (round(value * 65_536) for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_oriented_as_by_ffmpeg(tmp_path: Path, name: str, decoder: str) -> None:
    path = tmp_path / "a.mp4"
    write_with_matrix(path, MATRICES[name])
    _, raw = ffmpeg_frames(path)
    frame_times = read_frame_times(path, QUALITY)
    (frame,) = DECODERS[decoder].frames_at(path, frame_times, [0.1])
    sideways = name in {"rotated-90", "rotated-270", "transposed", "transposed-180"}
    assert frame.pixels.shape == ((96, 64, 3) if sideways else (64, 96, 3))
    expected = np.frombuffer(raw, np.uint8)[: frame.pixels.size].reshape(frame.pixels.shape)
    assert np.abs(frame.pixels.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("mode", ["crop", "stretch", "letterbox"])
def test_resized_frames_are_oriented_before_they_are_placed_in_the_square(
    tmp_path: Path, name: str, mode: str
) -> None:
    path = tmp_path / "a.mp4"
    write_with_matrix(path, MATRICES[name])
    settings = build_config({"video": {"size": 32, "resize_mode": mode}}).video
    with open_video(path, QUALITY, audio=False) as video_file:
        (frame,) = video_file.frames_at([0.1], video=settings)
    (full,) = read_frames(path, [0.1], QUALITY)
    assert np.abs(frame.pixels.astype(int) - resize_image(full.pixels, settings)).mean() < 4


@pytest.mark.parametrize("degrees", [0.5, 30, 44, 100, 200, 300])
def test_orientation_of_other_angles_is_the_nearest_right_angle(degrees: float) -> None:
    def rotation(angle: float) -> np.ndarray:
        cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        return (np.array([cosine, sine, 0, -sine, cosine, 0, 0, 0, 16_384]) * 65_536).astype(np.int32)

    assert Orientation.from_matrix(rotation(degrees)) == Orientation.from_matrix(
        rotation(90 * round(degrees / 90))
    )
    assert Orientation.from_matrix(np.zeros(9, np.int32)) == Orientation()
