"""Read still images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.formats import IMAGE_FORMATS, detect_format
from avdata.media.types import Frame


@contextmanager
def _ignore_warnings(*categories: type[Warning]) -> Iterator[None]:
    with warnings.catch_warnings():
        for category in categories:
            warnings.simplefilter("ignore", category)
        yield


def read_image(path: Path, quality: QualityConfig) -> Frame:
    """Read an image as RGB, oriented by its EXIF orientation.

    Of 16 bits per channel, the upper 8 are used. Transparency is ignored.

    Returns:
        A frame with uint8 pixels [H, W, 3] and time 0.

    Raises:
        MediaError: NOT_MEDIA, TOO_LARGE, UNREADABLE.
    """
    from PIL import Image  # noqa: PLC0415

    name = detect_format(path)
    if name not in IMAGE_FORMATS:
        raise MediaError(QuarantineReason.NOT_MEDIA, f"{path.name}: {name} file, expected an image")
    try:
        with (
            # Pillow warns of damaged EXIF, and of half the size that it refuses; the limit is `max_pixels`.
            _ignore_warnings(UserWarning, Image.DecompressionBombWarning),
            Image.open(path, formats=[name.upper()]) as image,
        ):
            if image.width * image.height > quality.max_pixels:
                raise MediaError(
                    QuarantineReason.TOO_LARGE, f"{path.name}: {image.width}×{image.height} pixels"
                )
            return Frame(_as_rgb(_upright(image)), 0.0)
    except Image.DecompressionBombError as error:
        raise MediaError(QuarantineReason.TOO_LARGE, f"{path.name}: {error}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise MediaError(QuarantineReason.UNREADABLE, f"{path.name}: {error}") from error


def _upright(image: Any) -> Any:
    """Orient a Pillow image by its EXIF orientation; without a readable one, return it unchanged."""
    from PIL import ImageOps  # noqa: PLC0415

    try:
        return ImageOps.exif_transpose(image)
    except SyntaxError:
        return image


def _as_rgb(image: Any) -> np.ndarray:
    """Convert a Pillow image to uint8 [H, W, 3]."""
    if image.mode.startswith("I"):
        # Pillow clips 16-bit gray to 8 bits; its modes are I;16 and, in older versions, I.
        gray = (np.array(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))
