"""Tests of `video.resize_mode=face` on a drawn face."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from avdata.config.schema import build_config
from avdata.errors import UsageError
from avdata.features import face_crop
from avdata.features.extract import extract_features
from avdata.features.face_crop import detect_face_box
from avdata.pipeline.planning import plan_preparation
from avdata.recipe import Clip
from avdata.testing.media import Scene, write_av

SIZE = (320, 240)
CENTER = (210, 110)
FACE = build_config({"video": {"resize_mode": "face", "size": 64}})


def draw_face(middle: tuple[int, int] = CENTER, radius: int = 45, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Draw a face with hair, skin, brows, eyes, nose and mouth."""
    image = Image.new("RGB", size, (70, 90, 110))
    draw = ImageDraw.Draw(image)

    def oval(x: float, y: float, wide: float, tall: float, color: tuple[int, int, int]) -> None:
        across, down = middle[0] + x * radius, middle[1] + y * radius
        reach = wide * radius, tall * radius
        draw.ellipse((across - reach[0], down - reach[1], across + reach[0], down + reach[1]), color)

    oval(0, -0.15, 1.0, 1.3, (50, 35, 25))
    oval(0, 0.05, 0.82, 1.1, (225, 180, 150))
    for side in (-0.36, 0.36):
        oval(side, -0.38, 0.24, 0.05, (60, 40, 30))
        oval(side, -0.2, 0.24, 0.14, (150, 105, 85))
        oval(side, -0.17, 0.15, 0.08, (240, 240, 240))
        oval(side, -0.17, 0.08, 0.08, (30, 20, 20))
    oval(0, 0.1, 0.08, 0.28, (240, 200, 170))
    oval(0, 0.32, 0.18, 0.07, (170, 120, 100))
    oval(0, 0.62, 0.34, 0.1, (150, 60, 60))
    return np.array(image.filter(ImageFilter.GaussianBlur(radius * 0.03)))


def write_video(path: Path, image: np.ndarray) -> Clip:
    """Write a video of an image with a corner that changes from frame to frame."""
    pixels = [image.copy() for _ in range(25)]
    for number, frame in enumerate(pixels):
        frame[:60, :60] = number * 8
    write_av(path, Scene(1.0, (), (0.5,), size=SIZE), pixels=pixels, vcodec="libx264", acodec="aac")
    return Clip(key="a", label="a", group="a", split="train", video=path)


@pytest.mark.parametrize(("middle", "radius"), [((210, 110), 45), ((90, 130), 60), ((150, 90), 25)])
def test_face_box_is_around_the_face_with_a_margin(middle: tuple[int, int], radius: int) -> None:
    box = detect_face_box([draw_face(middle, radius)])
    assert box is not None
    assert box.left + box.side / 2 == pytest.approx(middle[0], abs=0.15 * radius)
    assert box.top + box.side / 2 == pytest.approx(middle[1], abs=0.15 * radius)
    assert 2.5 * radius < box.side < 3.5 * radius


def test_face_box_of_a_large_frame_has_its_scale() -> None:
    box = detect_face_box([draw_face((1000, 500), 200, (1600, 1200))])
    assert box is not None
    assert box.left + box.side / 2 == pytest.approx(1000, abs=30)
    assert 500 < box.side < 700


@pytest.mark.parametrize("middle", [(40, 45), (280, 195), (40, 195)])
def test_face_box_of_a_face_at_the_edge_is_inside_the_frame(middle: tuple[int, int]) -> None:
    box = detect_face_box([draw_face(middle, 40)])
    assert box is not None
    assert box.crop(draw_face()).shape == (box.side, box.side, 3)


def test_face_box_ignores_a_single_false_detection() -> None:
    expected = detect_face_box([draw_face()])
    frames = [draw_face(), draw_face((80, 60), 30), draw_face(), np.zeros((240, 320, 3), np.uint8)]
    assert detect_face_box(frames) == expected


def test_extract_crops_the_frames_of_a_clip_to_its_face(tmp_path: Path) -> None:
    features = extract_features(write_video(tmp_path / "a.mp4", draw_face()), FACE)
    box = detect_face_box([draw_face()])
    assert box is not None
    true = np.array(Image.fromarray(box.crop(draw_face())).resize((64, 64), Image.Resampling.BILINEAR))
    assert "no_face" not in features.flags
    for frame in features.frames:
        assert np.abs(frame.astype(int) - true).mean() < 8


def test_extract_without_a_face_crops_the_center_and_flags(tmp_path: Path) -> None:
    flat = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    clip = write_video(tmp_path / "a.mp4", flat)
    features = extract_features(clip, FACE)
    center = extract_features(clip, build_config({"video": {"resize_mode": "crop", "size": 64}}))
    assert "no_face" in features.flags
    assert "no_face" not in center.flags
    assert np.abs(features.frames.astype(int) - center.frames).mean() < 1


def test_extract_crops_an_image_to_its_face(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    clip = write_video(path, draw_face())
    Image.fromarray(draw_face()).save(tmp_path / "a.png")
    still = Clip("a", "a", "a", "train", video=tmp_path / "a.png", audio=path, is_image=True)
    image, video = extract_features(still, FACE), extract_features(clip, FACE)
    assert np.abs(image.frames.astype(int) - video.frames).mean() < 8


def test_planning_without_opencv_raises_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    face_crop._cascade.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=r"video\.resize_mode=face requires OpenCV") as caught:
        plan_preparation("cremad", source=tmp_path / "nothing", config={"video": {"resize_mode": "face"}})
    assert caught.value.hint == "pip install 'avdata[face]'"
