"""A picture as a square of the config's size and colour."""

from __future__ import annotations

import numpy as np

from avdata.config import VideoConfig

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def fit_picture(pixels: np.ndarray, video: VideoConfig) -> np.ndarray:
    """A picture as a square of the config's size and colour: uint8 [H, W, 3] to uint8 [size, size, C].

    Scaling is Pillow's antialiased bilinear one, of which torchvision's is a copy: one value in some hundred
    differs, by 1. swscale would be faster and is 1 to 2 of 255 off, so it only converts colours.
    """
    height, width = pixels.shape[:2]
    size = video.size
    if video.fit == "stretch":
        image = _scaled(pixels, (size, size), (0, 0, size, size))
    elif video.fit == "letterbox":
        scale = size / max(height, width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        image = np.zeros((size, size, 3), np.uint8)
        top, left = (size - tall) // 2, (size - wide) // 2
        image[top : top + tall, left : left + wide] = _scaled(pixels, (tall, wide), (0, 0, tall, wide))
    else:
        scale = max(video.short_side or size, size) / min(height, width)
        tall, wide = max(size, int(height * scale)), max(size, int(width * scale))
        top, left = round((tall - size) / 2), round((wide - size) / 2)
        image = _scaled(pixels, (tall, wide), (top, left, size, size))
    return (image @ LUMA)[..., None].astype(np.uint8) if video.colour == "grey" else image


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
