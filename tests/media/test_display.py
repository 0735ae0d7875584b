"""Orientation and pixel aspect of frames, against the `ffmpeg` program."""

from __future__ import annotations

import struct
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from support.ffmpeg_frames import ffmpeg_frames

from avdata.config.schema import QualityConfig, build_config
from avdata.features.extract import extract_features
from avdata.media.decoders import DECODERS
from avdata.media.display import Orientation, pixel_aspect
from avdata.media.resize import resize_image
from avdata.media.video import open_video, read_frame_times, read_frames
from avdata.recipe import Clip
from avdata.testing.conversion import convert_av
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


def blocks() -> np.ndarray:
    """Return an asymmetric image, uint8 [64, 96, 3]."""
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))


def write_with_matrix(path: Path, matrix: tuple[float, ...]) -> None:
    """Write an asymmetric image as video, with a display matrix a, b, c, d in its track header."""
    write_av(path, SCENE, vcodec="libx264", acodec=None, pixels=[blocks()] * SCENE.frames)
    set_matrix(path, matrix)


def set_matrix(path: Path, matrix: tuple[float, ...]) -> None:
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
    assert (
        np.abs(frame.pixels.astype(int) - resize_image(full.pixels, settings, full.pixel_aspect)).mean() < 4
    )


@pytest.mark.parametrize("degrees", [0.5, 30, 44, 100, 200, 300])
def test_orientation_of_other_angles_is_the_nearest_right_angle(degrees: float) -> None:
    def rotation(angle: float) -> np.ndarray:
        cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        return (np.array([cosine, sine, 0, -sine, cosine, 0, 0, 0, 16_384]) * 65_536).astype(np.int32)

    assert Orientation.from_matrix(rotation(degrees)) == Orientation.from_matrix(
        rotation(90 * round(degrees / 90))
    )
    assert Orientation.from_matrix(np.zeros(9, np.int32)) == Orientation()


ASPECTS = {"wide": "16/11", "narrow": "8/9", "doubled": "2/1"}


def write_with_aspect(path: Path, sample_aspect: str, container_aspect: str | None = None) -> Path:
    """Write a video with the sample aspect ratio of its codec, and the display aspect of its container."""
    source = path / "source.mp4"
    scene = Scene(seconds=1.0, size=(96, 64), beeps=(0.5,))
    write_av(source, scene, vcodec="libx264", acodec="aac", pixels=[blocks()] * scene.frames)
    video_filter = {"filter:v": f"setsar={sample_aspect}", "c:v": "mpeg4", "q:v": "2", "c:a": "copy"}
    coded = path / "coded.mkv"
    convert_av(source, coded, options=video_filter)
    if container_aspect is None:
        return coded
    target = path / "container.mkv"
    convert_av(coded, target, options={"c": "copy", "aspect": container_aspect})
    return target


@pytest.mark.parametrize(
    ("mode", "name", "decoder"),
    [
        # The other decoders get the same aspect ratio, from the stream or from the container.
        pytest.param(
            mode, name, decoder,
            marks=[] if decoder == "pyav" or (mode, name) in {("crop", "wide"), ("letterbox", "container")}
            else pytest.mark.exhaustive,
        )
        for mode, name, decoder in product(("crop", "letterbox"), (*ASPECTS, "container"), DECODERS)
    ],
)  # fmt: skip
def test_pixels_are_square_as_by_the_scale_filter_of_ffmpeg(
    tmp_path: Path, name: str, decoder: str, mode: str
) -> None:
    path = write_with_aspect(tmp_path, ASPECTS.get(name, "4/3"), "2:1" if name == "container" else None)
    _, raw = ffmpeg_frames(path, ("scale", "iw*sar:ih"))
    video = {"size": 32, "resize_mode": mode, "decoder": decoder, "num_frames": 1}
    config = build_config({"video": video, "align": {"seconds": 1.0}})
    clip = Clip(key="k", label="a", group="g", split="train", video=path)
    features = extract_features(clip, config)
    frame = np.frombuffer(raw, np.uint8).reshape(read_frame_times(path, QUALITY).times.size, 64, -1, 3)[0]
    expected = resize_image(frame, config.video)
    assert np.abs(features.frames[0].astype(int) - expected).mean() < 8
    assert features.source["pixel_aspect"] == pytest.approx(frame.shape[1] / 96, abs=0.02)
    squeezed = resize_image(read_frames(path, [0.5], QUALITY)[0].pixels, config.video)
    stored = build_config({"video": {**video, "pixel_aspect": "stored"}, "align": {"seconds": 1.0}})
    assert np.abs(extract_features(clip, stored).frames[0].astype(int) - squeezed).mean() < 8
    assert np.abs(features.frames[0].astype(int) - squeezed).mean() > 12


@pytest.mark.parametrize("decoder", DECODERS)
def test_pixel_aspect_is_inverted_in_rotated_video(tmp_path: Path, decoder: str) -> None:
    coded = write_with_aspect(tmp_path, "16/11")
    path = tmp_path / "rotated.mp4"
    convert_av(coded, path, options={"c": "copy"})
    set_matrix(path, MATRICES["transposed"])
    (frame,) = DECODERS[decoder].frames_at(path, read_frame_times(path, QUALITY), [0.5])
    assert frame.pixels.shape == (96, 64, 3)
    assert frame.pixel_aspect == pytest.approx(11 / 16)


@pytest.mark.parametrize("ratio", [None, Fraction(0, 1), Fraction(100), Fraction(1, 100), Fraction(-1)])
def test_implausible_pixel_aspect_is_ignored(ratio: Fraction | None) -> None:
    assert pixel_aspect(ratio) == 1.0
    assert pixel_aspect(Fraction(1, 4)) == 0.25
    assert pixel_aspect(Fraction(4)) == 4.0


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_of_changing_size_have_one_size(tmp_path: Path, decoder: str) -> None:
    path, sizes = tmp_path / "a.avi", ((96, 64), (48, 80), (160, 120))
    with av.open(str(path), "w") as writer:
        stream, number = None, 0
        for index, size in enumerate(sizes):
            part = tmp_path / f"{index}.avi"
            pixels = [np.full((size[1], size[0], 3), 60 * (index + 1), np.uint8)] * 10
            write_av(
                part, Scene(1.0, size=size, fps=Fraction(25)), vcodec="mjpeg", acodec=None, pixels=pixels,
                pix_fmt="yuvj420p",
            )  # fmt: skip
            with av.open(str(part)) as reader:
                stream = stream or writer.add_stream_from_template(reader.streams.video[0])
                for packet in reader.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = number
                        packet.stream, number = stream, number + 1
                        writer.mux(packet)
    times = [0.1, 0.5, 1.0]
    frame_times = read_frame_times(path, QUALITY)
    frames = DECODERS[decoder].frames_at(path, frame_times, times)
    colors = [frame.pixels.mean() for frame in frames]
    assert colors == pytest.approx([60, 120, 180], abs=4)
