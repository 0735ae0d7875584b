"""Where the face is: one square for all frames of a clip, by OpenCV's cascade of Haar features.

The cascade comes inside OpenCV's wheels of version 4, so that nothing is fetched; `avdata[face]` installs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avdata.errors import UsageError

MAX_DETECTION_SIDE = 320
"""Pixels of the longer side of the pictures that are searched; larger ones are made smaller first."""

MIN_FACE_SIDE = 24
"""Pixels of the smallest face found there."""

MARGIN = 0.25
"""What is kept on each side of the face, as a share of its width: hair, chin and ears."""


class CropBox(NamedTuple):
    """A square part of a picture, in pixels."""

    top: int
    left: int
    side: int

    def crop(self, pixels: np.ndarray) -> np.ndarray:
        """That part of a picture [H, W, C]."""
        return pixels[self.top : self.top + self.side, self.left : self.left + self.side]


def require_detector() -> None:
    """See that faces can be found.

    Raises:
        UsageError: OpenCV is not installed, or is one without the cascade.
    """
    _cascade()


def detect_face_box(frames: Sequence[np.ndarray]) -> CropBox | None:
    """The square around the face that pictures of one size show, with a margin, inside the picture.

    It is the median of the largest face of each picture that shows one, so that the frames of a clip share
    it and one that was misjudged moves nothing.

    Args:
        frames: each uint8 [H, W, 3], RGB.

    Returns:
        None when no picture shows a face.
    """
    faces = [face for pixels in frames if (face := _largest_face(pixels)) is not None]
    if not faces:
        return None
    across, down, width = np.median(faces, axis=0).tolist()
    height, wide = frames[0].shape[:2]
    side = min(round(width * (1 + 2 * MARGIN)), height, wide)
    top = min(max(round(down - side / 2), 0), height - side)
    left = min(max(round(across - side / 2), 0), wide - side)
    return CropBox(top, left, side)


def _largest_face(pixels: np.ndarray) -> tuple[float, float, float] | None:
    """Middle, across and down, and width of the largest face, in pixels."""
    import cv2  # noqa: PLC0415

    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    scale = min(MAX_DETECTION_SIDE / max(gray.shape), 1.0)
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found = _cascade().detectMultiScale(
        cv2.equalizeHist(gray), scaleFactor=1.1, minNeighbors=5, minSize=(MIN_FACE_SIDE, MIN_FACE_SIDE)
    )
    if not len(found):
        return None
    # Of equally large ones the leftmost, then the topmost: the detector's order is not told.
    left, top, width, height = max((list(map(int, box)) for box in found), key=lambda b: (b[2], -b[0], -b[1]))
    return (left + width / 2) / scale, (top + height / 2) / scale, width / scale


@cache
def _cascade() -> Any:
    hint = "pip install 'avdata[face]'"
    try:
        import cv2  # noqa: PLC0415
    except ImportError as error:
        msg = f"video.resize_mode=face needs OpenCV, which cannot be loaded ({error})"
        raise UsageError(msg, hint=hint) from error
    # One thread, as everything in a worker.
    cv2.setNumThreads(1)
    found = getattr(cv2, "CascadeClassifier", None)
    # `cv2.data.haarcascades`, of which its types know nothing.
    facts = Path(cv2.__file__).with_name("data") / "haarcascade_frontalface_alt2.xml"
    cascade = found(str(facts)) if found else None
    if cascade is None or cascade.empty():
        msg = f"OpenCV {cv2.__version__} comes without the face detector that video.resize_mode=face uses"
        raise UsageError(msg, hint=hint)
    return cascade
