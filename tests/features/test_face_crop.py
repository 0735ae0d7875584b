"""`video.resize_mode=face`: on a face that is drawn where the test says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from avdata.config.schema import build_config
from avdata.errors import UsageError
from avdata.features import face_crop as room
from avdata.features.extract import extract_features
from avdata.features.face_crop import detect_face_box
from avdata.pipeline.planning import plan_preparation
from avdata.recipe import Clip
from avdata.testing.media import Scene, write_av

SIZE = (320, 240)
AT = (210, 110)
FACE = build_config({"video": {"resize_mode": "face", "size": 64}})


def drawn(middle: tuple[int, int] = AT, radius: int = 45, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A face of hair, skin, brows, eyes, nose and mouth, so wide and high around its middle."""
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


def film(path: Path, picture: np.ndarray) -> Clip:
    """A clip that shows a picture, a spot of which changes."""
    pixels = [picture.copy() for _ in range(25)]
    for number, frame in enumerate(pixels):
        frame[:60, :60] = number * 8
    write_av(path, Scene(1.0, (), (0.5,), size=SIZE), pixels=pixels, vcodec="libx264", acodec="aac")
    return Clip(key="a", label="a", group="a", split="train", video=path)


@pytest.mark.parametrize(("middle", "radius"), [((210, 110), 45), ((90, 130), 60), ((150, 90), 25)])
def test_face_box_is_around_the_face_with_a_margin(middle: tuple[int, int], radius: int) -> None:
    square = detect_face_box([drawn(middle, radius)])
    assert square is not None
    assert square.left + square.side / 2 == pytest.approx(middle[0], abs=0.15 * radius)
    assert square.top + square.side / 2 == pytest.approx(middle[1], abs=0.15 * radius)
    assert 2.5 * radius < square.side < 3.5 * radius


def test_face_box_of_a_large_frame_has_its_scale() -> None:
    square = detect_face_box([drawn((1000, 500), 200, (1600, 1200))])
    assert square is not None
    assert square.left + square.side / 2 == pytest.approx(1000, abs=30)
    assert 500 < square.side < 700


@pytest.mark.parametrize("middle", [(40, 45), (280, 195), (40, 195)])
def test_face_box_of_a_face_at_the_edge_is_inside_the_frame(middle: tuple[int, int]) -> None:
    square = detect_face_box([drawn(middle, 40)])
    assert square is not None
    assert square.crop(drawn()).shape == (square.side, square.side, 3)


def test_face_box_ignores_a_single_false_detection() -> None:
    even = detect_face_box([drawn()])
    assert detect_face_box([drawn(), drawn((80, 60), 30), drawn(), np.zeros((240, 320, 3), np.uint8)]) == even


def test_extract_crops_the_frames_of_a_clip_to_its_face(tmp_path: Path) -> None:
    got = extract_features(film(tmp_path / "a.mp4", drawn()), FACE)
    square = detect_face_box([drawn()])
    assert square is not None
    true = np.array(Image.fromarray(square.crop(drawn())).resize((64, 64), Image.Resampling.BILINEAR))
    assert "no_face" not in got.flags
    for frame in got.frames:
        assert np.abs(frame.astype(int) - true).mean() < 8


def test_extract_without_a_face_crops_the_center_and_flags(tmp_path: Path) -> None:
    flat = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    clip = film(tmp_path / "a.mp4", flat)
    got = extract_features(clip, FACE)
    center = extract_features(clip, build_config({"video": {"resize_mode": "crop", "size": 64}}))
    assert "no_face" in got.flags
    assert "no_face" not in center.flags
    assert np.abs(got.frames.astype(int) - center.frames).mean() < 1


def test_extract_crops_an_image_to_its_face(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    clip = film(path, drawn())
    Image.fromarray(drawn()).save(tmp_path / "a.png")
    still = Clip("a", "a", "a", "train", video=tmp_path / "a.png", audio=path, is_image=True)
    one, other = extract_features(still, FACE), extract_features(clip, FACE)
    assert np.abs(one.frames.astype(int) - other.frames).mean() < 8


def test_planning_without_opencv_raises_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room._cascade.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=r"video\.resize_mode=face requires OpenCV") as caught:
        plan_preparation("cremad", source=tmp_path / "nothing", config={"video": {"resize_mode": "face"}})
    assert caught.value.hint == "pip install 'avdata[face]'"
