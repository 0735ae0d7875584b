"""Image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.container import IMAGE_FORMATS, detect_format
from avdata.media.types import Frame


@contextmanager
def _without_warnings(kind: type[Warning]) -> Iterator[None]:
    # PIL warns of half of what it refuses; the limit that counts is ours.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kind)
        yield


def read_image(path: Path, quality: QualityConfig) -> Frame:
    """A still image as RGB, turned as its EXIF says.

    Raises:
        MediaError: NOT_MEDIA, TOO_LARGE, UNREADABLE.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415

    name = detect_format(path)
    if name not in IMAGE_FORMATS:
        raise MediaError(QuarantineReason.NOT_MEDIA, f"{path.name} is {name}, not a still image")
    try:
        with (
            _without_warnings(Image.DecompressionBombWarning),
            Image.open(path, formats=[name.upper()]) as image,
        ):
            if image.width * image.height > quality.max_pixels:
                raise MediaError(
                    QuarantineReason.TOO_LARGE, f"{path.name}: {image.width}×{image.height} pixels"
                )
            turned = ImageOps.exif_transpose(image)
            return Frame(np.array(turned.convert("RGB")), 0.0)
    except Image.DecompressionBombError as error:
        raise MediaError(QuarantineReason.TOO_LARGE, f"{path.name}: {error}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise MediaError(QuarantineReason.UNREADABLE, f"{path.name}: {error}") from error
