"""Read still images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.formats import IMAGE_FORMATS, detect_format
from avdata.media.types import Frame


@contextmanager
def _ignore_warnings(category: type[Warning]) -> Iterator[None]:
    # PIL warns at half the size that it refuses; `quality.max_pixels` is the limit here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


def read_image(path: Path, quality: QualityConfig) -> Frame:
    """Read an image as RGB, rotated by its EXIF orientation.

    Returns:
        A frame with uint8 pixels [H, W, 3] and time 0.

    Raises:
        MediaError: NOT_MEDIA, TOO_LARGE, UNREADABLE.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415

    name = detect_format(path)
    if name not in IMAGE_FORMATS:
        raise MediaError(QuarantineReason.NOT_MEDIA, f"{path.name}: {name} file, expected an image")
    try:
        with (
            _ignore_warnings(Image.DecompressionBombWarning),
            Image.open(path, formats=[name.upper()]) as image,
        ):
            if image.width * image.height > quality.max_pixels:
                raise MediaError(
                    QuarantineReason.TOO_LARGE, f"{path.name}: {image.width}×{image.height} pixels"
                )
            upright = ImageOps.exif_transpose(image)
            return Frame(np.array(upright.convert("RGB")), 0.0)
    except Image.DecompressionBombError as error:
        raise MediaError(QuarantineReason.TOO_LARGE, f"{path.name}: {error}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise MediaError(QuarantineReason.UNREADABLE, f"{path.name}: {error}") from error
