"""A picture as a square of the config's size and color."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.config.schema import VideoConfig

if TYPE_CHECKING:
    from av.video.reformatter import VideoReformatter

LUMA = np.array([0.299, 0.587, 0.114], np.float32)

MIN_SWSCALE_SIDE = 32
"""How many times smaller swscale makes a picture; its filters end at 256 pixels."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a picture becomes a square.

    Attributes:
        size: height and width it is scaled to.
        part: what is kept of that: top, left, height, width.
        place: where in the square that stands: top, left.
    """

    size: tuple[int, int]
    part: tuple[int, int, int, int]
    place: tuple[int, int] = (0, 0)


def _layout(height: int, width: int, video: VideoConfig) -> _Layout:
    size = video.size
    if video.resize_mode == "stretch":
        return _Layout((size, size), (0, 0, size, size))
    if video.resize_mode == "letterbox":
        scale = size / max(height, width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        return _Layout((tall, wide), (0, 0, tall, wide), ((size - tall) // 2, (size - wide) // 2))
    shorter = (video.short_side or size) if video.resize_mode == "crop" else size
    scale = max(shorter, size) / min(height, width)
    tall, wide = max(size, int(height * scale)), max(size, int(width * scale))
    return _Layout((tall, wide), (round((tall - size) / 2), round((wide - size) / 2), size, size))


def resize_image(pixels: np.ndarray, video: VideoConfig) -> np.ndarray:
    """A picture as a square of the config's size and color: uint8 [H, W, 3] to uint8 [size, size, C].

    Scaling is Pillow's antialiased bilinear one, of which torchvision's is a copy: one value in some hundred
    differs, by 1.
    """
    height, width = pixels.shape[:2]
    layout = _layout(height, width, video)
    return _place_in_square(_scaled(pixels, layout.size, layout.part), layout, video)


def resize_frame(frame: Any, video: VideoConfig, convert: VideoReformatter) -> np.ndarray:
    """A decoded frame as `resize_image` makes it of its pixels, turned as the display matrix says.

    A frame that becomes smaller is scaled by swscale while its colors are converted, in a third of the time:
    so exactly that the mean difference from the antialiased scaling of exact colors is well below 1 of 255.

    Args:
        frame: PyAV's.
        video: size, fit and color.
        convert: PyAV's `VideoReformatter`, which keeps its tables from frame to frame.

    Returns:
        uint8 [size, size, C].
    """
    turned = round(frame.rotation / 90) % 2
    height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
    layout = _layout(height, width, video)
    tall, wide = layout.size
    if not all(to <= of <= to * MIN_SWSCALE_SIDE for of, to in ((height, tall), (width, wide))):
        return resize_image(frame_to_rgb(frame, convert), video)
    pixels = frame_to_rgb(frame, convert, (wide, tall) if turned else (tall, wide))
    top, left, kept_height, kept_width = layout.part
    return _place_in_square(pixels[top : top + kept_height, left : left + kept_width], layout, video)


def frame_to_rgb(frame: Any, convert: VideoReformatter, size: tuple[int, int] | None = None) -> np.ndarray:
    """A decoded frame's pixels, uint8 [H, W, 3], turned as the display matrix says.

    Args:
        frame: PyAV's.
        convert: its `VideoReformatter`.
        size: height and width to scale to, before it is turned; None leaves it as it is.
    """
    from av.video.reformatter import Interpolation  # noqa: PLC0415

    # The flags, so that no processor has a rounding of its own. Planes, and not triples: what swscale writes
    # as triples without its slowest way is 1 to 2 of 255 too dark, and that way takes three times as long.
    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
    height, width = size or (frame.height, frame.width)
    # One thread: starting and ending threads for each frame takes ten times as long as converting it.
    planes = convert.reformat(
        frame, width=width, height=height, format="gbrp",
        interpolation=Interpolation.BILINEAR | exact, threads=1,
    ).planes  # fmt: skip
    pixels = np.empty((height, width, 3), np.uint8)
    for channel, plane in zip((1, 2, 0), planes, strict=True):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        pixels[..., channel] = rows[:height, :width]
    # The display matrix turns counter-clockwise, in degrees.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def _place_in_square(part: np.ndarray, layout: _Layout, video: VideoConfig) -> np.ndarray:
    """The kept part of a scaled picture in its place in the square, in the config's color."""
    image = part
    if part.shape[:2] != (video.size, video.size):
        image = np.zeros((video.size, video.size, 3), np.uint8)
        (top, left), (tall, wide) = layout.place, part.shape[:2]
        image[top : top + tall, left : left + wide] = part
    return (image @ LUMA)[..., None].astype(np.uint8) if video.color == "gray" else image


def _scaled(pixels: np.ndarray, size: tuple[int, int], part: tuple[int, int, int, int]) -> np.ndarray:
    """A part (top, left, height, width) of the picture scaled to a size (height, width)."""
    from PIL import Image  # noqa: PLC0415

    (tall, wide), (top, left, height, width) = size, part
    if pixels.shape[:2] == size:
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])
    down, across = pixels.shape[0] / tall, pixels.shape[1] / wide
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    # Rounding must not carry the box over the edge.
    box = (box[0], box[1], min(box[2], pixels.shape[1]), min(box[3], pixels.shape[0]))
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.array(image)
