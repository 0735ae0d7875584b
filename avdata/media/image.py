"""Image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, Reason
from avdata.media.container import STILLS, sniff
from avdata.media.types import Picture


@contextmanager
def _unwarned(kind: type[Warning]) -> Iterator[None]:
    # PIL warns of half of what it refuses; the limit that counts is ours.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kind)
        yield


def read_still(path: Path, quality: QualityConfig) -> Picture:
    """A still image as RGB, turned as its EXIF says.

    Raises:
        MediaError: NOT_MEDIA, TOO_LARGE, UNREADABLE.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415

    name = sniff(path)
    if name not in STILLS:
        raise MediaError(Reason.NOT_MEDIA, f"{path.name} is {name}, not a still image")
    try:
        with _unwarned(Image.DecompressionBombWarning), Image.open(path, formats=[name.upper()]) as image:
            if image.width * image.height > quality.max_pixels:
                raise MediaError(Reason.TOO_LARGE, f"{path.name}: {image.width}×{image.height} pixels")
            turned = ImageOps.exif_transpose(image)
            return Picture(np.array(turned.convert("RGB")), 0.0)
    except Image.DecompressionBombError as error:
        raise MediaError(Reason.TOO_LARGE, f"{path.name}: {error}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise MediaError(Reason.UNREADABLE, f"{path.name}: {error}") from error
