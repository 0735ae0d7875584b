"""Resize images and decoded frames to a square of the configured size and color."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.config.schema import VideoConfig
from avdata.media.display import Orientation

if TYPE_CHECKING:
    from av.video.reformatter import VideoReformatter

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a pixel's luma (BT.601)."""

MAX_SWSCALE_FACTOR = 32
"""Largest factor by which swscale reduces a frame; its filters are at most 256 pixels long."""

THUMBNAIL_SIZE = 128
"""Height and width of the image on which quality checks measure, for every size and shape of a frame."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How an image becomes a square.

    Attributes:
        size: height and width to scale to.
        crop: the part of the scaled image to keep: top, left, height, width.
        offset: where in the square that part begins: top, left.
    """

    size: tuple[int, int]
    crop: tuple[int, int, int, int]
    offset: tuple[int, int] = (0, 0)


def _layout(height: int, width: float, video: VideoConfig) -> _Layout:
    size = video.size
    if video.resize_mode == "stretch":
        return _Layout((size, size), (0, 0, size, size))
    if video.resize_mode == "letterbox":
        scale = size / max(height, width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        return _Layout((rows, columns), (0, 0, rows, columns), ((size - rows) // 2, (size - columns) // 2))
    short_side = (video.short_side or size) if video.resize_mode == "crop" else size
    scale = max(short_side, size) / min(height, width)
    rows, columns = max(size, int(height * scale)), max(size, int(width * scale))
    return _Layout((rows, columns), (round((rows - size) / 2), round((columns - size) / 2), size, size))


def resize_image(pixels: np.ndarray, video: VideoConfig, aspect: float = 1.0) -> np.ndarray:
    """Resize an image to the configured square: uint8 [H, W, 3] to uint8 [size, size, C].

    Pillow's antialiased bilinear filter is used. torchvision's is a copy of it: one value in some hundred
    differs, by 1.

    Args:
        pixels: the image.
        video: the settings.
        aspect: width of a pixel by its height, which `video.pixel_aspect` may ignore.
    """
    height, width = pixels.shape[:2]
    layout = _layout(height, width * _used_aspect(aspect, video), video)
    return _place_in_square(_scale(pixels, layout.size, layout.crop), layout, video)


def _used_aspect(aspect: float, video: VideoConfig) -> float:
    return aspect if video.pixel_aspect == "square" else 1.0


def with_square_pixels(pixels: np.ndarray, video: VideoConfig, aspect: float) -> np.ndarray:
    """Scale the width of an image [H, W, 3] so that its pixels are square, unless they are kept as stored."""
    height, width = pixels.shape[:2]
    columns = max(1, round(width * _used_aspect(aspect, video)))
    return _scale(pixels, (height, columns), (0, 0, height, columns))


def resize_frame(
    frame: Any, video: VideoConfig, reformatter: VideoReformatter, aspect: float = 1.0
) -> np.ndarray:
    """Convert a decoded frame to the configured square, oriented by its display matrix.

    If the frame shrinks, swscale scales it while it converts its colors, in a third of the time of
    `resize_image`. The mean difference from antialiased scaling of the exact colors is well below 1 of 255.

    Args:
        frame: PyAV's.
        video: the settings.
        reformatter: PyAV's; it keeps its tables from frame to frame.
        aspect: width of a stored pixel by its height.

    Returns:
        uint8 [size, size, C].
    """
    orientation = Orientation.of_frame(frame)
    is_sideways, aspect = orientation.is_transposed, orientation.displayed_aspect(aspect)
    height, width = (frame.width, frame.height) if is_sideways else (frame.height, frame.width)
    layout = _layout(height, width * _used_aspect(aspect, video), video)
    rows, columns = layout.size
    if not all(new <= old <= new * MAX_SWSCALE_FACTOR for old, new in ((height, rows), (width, columns))):
        return resize_image(frame_to_rgb(frame, reformatter), video, aspect)
    pixels = frame_to_rgb(frame, reformatter, (columns, rows) if is_sideways else (rows, columns))
    top, left, crop_height, crop_width = layout.crop
    return _place_in_square(pixels[top : top + crop_height, left : left + crop_width], layout, video)


def frame_to_rgb(
    frame: Any, reformatter: VideoReformatter, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Convert a decoded frame to RGB, uint8 [H, W, 3], oriented by its display matrix.

    Args:
        frame: PyAV's.
        reformatter: PyAV's.
        size: height and width to scale to, before it is oriented; None keeps the frame's.
    """
    from av.video.reformatter import Interpolation  # noqa: PLC0415

    # The flags make the rounding independent of the CPU. Planes instead of packed RGB: swscale's fast
    # conversion to packed RGB is 1 to 2 of 255 too dark, and its exact one takes three times as long.
    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
    height, width = size or (frame.height, frame.width)
    # One thread: starting and ending threads for each frame takes ten times as long as converting it.
    planes = reformatter.reformat(
        frame, width=width, height=height, format="gbrp",
        interpolation=Interpolation.BILINEAR | exact, threads=1,
    ).planes  # fmt: skip
    pixels = np.empty((height, width, 3), np.uint8)
    for channel, plane in zip((1, 2, 0), planes, strict=True):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        pixels[..., channel] = rows[:height, :width]
    return Orientation.of_frame(frame).apply(pixels)


def frame_thumbnail(frame: Any, reformatter: VideoReformatter) -> np.ndarray:
    """Scale the luma of a decoded frame by area: uint8 [128, 128], in 0.1 ms for a frame of 640×360.

    Args:
        frame: PyAV's.
        reformatter: PyAV's, used for thumbnails only, since it keeps the tables of one size.
    """
    from av.video.reformatter import Interpolation  # noqa: PLC0415

    side, exact = THUMBNAIL_SIZE, Interpolation.AREA | Interpolation.BITEXACT
    gray = reformatter.reformat(frame, width=side, height=side, format="gray", interpolation=exact, threads=1)
    return np.asarray(gray.to_ndarray())


def image_thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Scale the luma of an image [H, W, 3] by area: uint8 [128, 128]."""
    from PIL import Image  # noqa: PLC0415

    image = Image.fromarray(pixels).resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX)
    return np.array(image.convert("L"))


def _place_in_square(cropped: np.ndarray, layout: _Layout, video: VideoConfig) -> np.ndarray:
    """Place a scaled and cropped image in the square, and convert it to the configured color."""
    image = cropped
    if cropped.shape[:2] != (video.size, video.size):
        image = np.zeros((video.size, video.size, 3), np.uint8)
        (top, left), (height, width) = layout.offset, cropped.shape[:2]
        image[top : top + height, left : left + width] = cropped
    return (image @ LUMA)[..., None].astype(np.uint8) if video.color == "gray" else image


def _scale(pixels: np.ndarray, size: tuple[int, int], crop: tuple[int, int, int, int]) -> np.ndarray:
    """Scale an image to `size` (height, width) and crop (top, left, height, width)."""
    from PIL import Image  # noqa: PLC0415

    (rows, columns), (top, left, height, width) = size, crop
    if pixels.shape[:2] == size:
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])
    y_factor, x_factor = pixels.shape[0] / rows, pixels.shape[1] / columns
    box = (left * x_factor, top * y_factor, (left + width) * x_factor, (top + height) * y_factor)
    # Rounding must not move the box beyond the edge.
    box = (box[0], box[1], min(box[2], pixels.shape[1]), min(box[3], pixels.shape[0]))
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.array(image)
