"""A picture as a square of the config's size and colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from avdata.config import VideoConfig
from avdata.mel import one_thread

if TYPE_CHECKING:
    import torch

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def fit_picture(pixels: np.ndarray, video: VideoConfig) -> np.ndarray:
    """A picture as a square of the config's size and colour: uint8 [H, W, 3] to uint8 [size, size, C].

    Scaling is torchvision's antialiased bilinear one, through the torch function that it calls.
    """
    import torch  # noqa: PLC0415

    image = torch.from_numpy(pixels).permute(2, 0, 1)
    height, width = image.shape[1:]
    size = video.size
    with one_thread():
        if video.fit == "stretch":
            image = _scaled(image, size, size)
        elif video.fit == "letterbox":
            scale = size / max(height, width)
            image = _scaled(image, max(1, round(height * scale)), max(1, round(width * scale)))
            image = _centred(image, size)
        else:
            scale = max(video.short_side or size, size) / min(height, width)
            image = _scaled(image, max(size, int(height * scale)), max(size, int(width * scale)))
            top, left = (round((side - size) / 2) for side in image.shape[1:])
            image = image[:, top : top + size, left : left + size]
    fitted = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return (fitted @ LUMA)[..., None].astype(np.uint8) if video.colour == "grey" else fitted


def _scaled(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    from torch.nn.functional import interpolate  # noqa: PLC0415

    if image.shape[1:] == (height, width):
        return image
    return interpolate(image[None], size=(height, width), mode="bilinear", antialias=True)[0]


def _centred(image: torch.Tensor, size: int) -> torch.Tensor:
    """The image in the middle of a black square."""
    square = image.new_zeros(image.shape[0], size, size)
    top, left = ((size - side) // 2 for side in image.shape[1:])
    square[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return square
