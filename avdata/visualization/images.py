"""Arrays as images in data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

MAX_FRAMES = 10

FRAME_HEIGHT = 112

SPECTROGRAM_SIZE = (640, 112)
"""Maximum width and height in pixels."""


def frame_images(frames: np.ndarray, height: int = FRAME_HEIGHT) -> list[tuple[float, float, str]]:
    """Return at most `MAX_FRAMES` frames as (start, width, data URI).

    Start and width are fractions of the time axis.

    Args:
        frames: uint8 [T, H, W, C].
        height: largest height in pixels.
    """
    steps = len(frames)
    each = -(-steps // MAX_FRAMES)
    return [
        (
            step / steps,
            min(each, steps - step) / steps,
            _frame_image(frames[min(step + each // 2, steps - 1)], height),
        )
        for step in range(0, steps, each)
    ]


def _frame_image(frame: np.ndarray, height: int) -> str:
    from PIL import Image  # noqa: PLC0415

    image = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
    image.thumbnail((height, height))
    return _webp(image)


def spectrogram_image(mel: np.ndarray, limits: tuple[float, float] | None = None) -> str:
    """Return a spectrogram [F, columns] as a data URI, low frequencies at the bottom.

    Args:
        mel: the spectrogram.
        limits: values of the darkest and the brightest color; None: `color_limits` of the spectrogram.
    """
    from PIL import Image  # noqa: PLC0415

    low, high = limits or color_limits(mel)
    image = Image.fromarray(colorize(mel, low, high))
    image.thumbnail((max(SPECTROGRAM_SIZE[0], 1), 10_000))
    if image.height > SPECTROGRAM_SIZE[1]:
        image = image.resize((image.width, SPECTROGRAM_SIZE[1]))
    return _webp(image)


def color_limits(mel: np.ndarray) -> tuple[float, float]:
    """Return the first percentile above the padding and the largest value of a spectrogram."""
    # Padding is far below all other values: including it would compress the color range of the audio.
    audible = mel[mel > mel.min()]
    return (float(np.percentile(audible, 1)), float(mel.max())) if audible.size else (0.0, 1.0)


def colorize(mel: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a spectrogram [F, columns] as uint8 [F, columns, 3], low frequencies in the last row.

    The colormap begins at `low` and ends at `high`.
    """
    from matplotlib import colormaps  # noqa: PLC0415

    fractions = np.clip((mel[::-1] - low) / max(high - low, 1e-6), 0, 1)
    return np.asarray(colormaps["magma"](fractions)[..., :3] * 255).astype(np.uint8)


def image_data_uri(pixels: np.ndarray) -> str:
    """Return an image, uint8 [H, W, 3], as a data URI."""
    from PIL import Image  # noqa: PLC0415

    return _webp(Image.fromarray(pixels))


def _webp(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=80, method=4)
    return data_uri(buffer.getvalue(), "image/webp")


def data_uri(data: bytes, kind: str) -> str:
    """Return bytes of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
