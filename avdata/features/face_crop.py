"""Detect one square around the face for all frames of a clip, with OpenCV.

The detector is OpenCV's cascade of Haar features. The wheels of OpenCV 4 contain it: nothing is downloaded.
The extra `avdata[face]` installs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avdata.errors import UsageError

MAX_DETECTION_SIDE = 320
"""Pixels of the longer side of a frame for detection; larger frames are scaled down first."""

MIN_FACE_SIDE = 24
"""Pixels of the smallest face that is detected, at that scale."""

MARGIN = 0.25
"""Margin on each side of the face, as a share of its width, for hair, chin and ears."""


class CropBox(NamedTuple):
    """Square part of a frame, in pixels."""

    top: int
    left: int
    side: int

    def crop(self, pixels: np.ndarray) -> np.ndarray:
        """Return this part of a frame [H, W, C]."""
        return pixels[self.top : self.top + self.side, self.left : self.left + self.side]


def require_detector() -> None:
    """Check that the face detector works.

    Raises:
        UsageError: OpenCV is not installed, or does not contain the cascade.
    """
    _cascade()


def detect_face_box(frames: Sequence[np.ndarray]) -> CropBox | None:
    """Return the square around the face in frames of one size, with a margin.

    The square is the median over the largest face of each frame, so that all frames of a clip share it and a
    single false detection has no effect. It lies inside the frame.

    Args:
        frames: RGB, each uint8 [H, W, 3].

    Returns:
        None if no frame shows a face.
    """
    faces = [face for pixels in frames if (face := _largest_face(pixels)) is not None]
    if not faces:
        return None
    center_x, center_y, face_width = np.median(faces, axis=0).tolist()
    height, width = frames[0].shape[:2]
    side = min(round(face_width * (1 + 2 * MARGIN)), height, width)
    top = min(max(round(center_y - side / 2), 0), height - side)
    left = min(max(round(center_x - side / 2), 0), width - side)
    return CropBox(top, left, side)


def _largest_face(pixels: np.ndarray) -> tuple[float, float, float] | None:
    """Return center x, center y and width of the largest face, in pixels."""
    import cv2  # noqa: PLC0415

    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    scale = min(MAX_DETECTION_SIDE / max(gray.shape), 1.0)
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    boxes = _cascade().detectMultiScale(
        cv2.equalizeHist(gray), scaleFactor=1.1, minNeighbors=5, minSize=(MIN_FACE_SIDE, MIN_FACE_SIDE)
    )
    if not len(boxes):
        return None
    # Of equally large faces, take the leftmost, then the topmost: the detector's order is unspecified.
    left, top, width, height = max((list(map(int, box)) for box in boxes), key=lambda b: (b[2], -b[0], -b[1]))
    return (left + width / 2) / scale, (top + height / 2) / scale, width / scale


@cache
def _cascade() -> Any:
    hint = "pip install 'avdata[face]'"
    try:
        import cv2  # noqa: PLC0415
    except ImportError as error:
        msg = f"video.resize_mode=face requires OpenCV, which cannot be imported ({error})"
        raise UsageError(msg, hint=hint) from error
    # One thread: the preparation runs one process per CPU.
    cv2.setNumThreads(1)
    classifier = getattr(cv2, "CascadeClassifier", None)
    # The folder is `cv2.data.haarcascades`, which OpenCV's type stubs lack.
    model = Path(cv2.__file__).with_name("data") / "haarcascade_frontalface_alt2.xml"
    cascade = classifier(str(model)) if classifier else None
    if cascade is None or cascade.empty():
        msg = (
            f"video.resize_mode=face requires a face detector that OpenCV {cv2.__version__} does not contain"
        )
        raise UsageError(msg, hint=hint)
    return cascade
