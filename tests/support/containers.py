"""A small scene, and codecs for the containers that datasets use."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from avdata.testing.media import Scene

SMALL_SCENE = Scene(seconds=2.0, flashes=(1.0,), beeps=(1.0,), size=(160, 120), fps=Fraction(25))

CONTAINERS: dict[str, dict[str, Any]] = {
    "flv": {},
    "mp4": {"vcodec": "libx264", "acodec": "aac"},
    "mov": {"vcodec": "libx264", "acodec": "aac"},
    "avi": {"vcodec": "mjpeg", "acodec": "pcm_s16le", "pix_fmt": "yuvj420p"},
    "mkv": {"vcodec": "ffv1", "acodec": "flac", "pix_fmt": "bgr0"},
}
"""Options of `write_av` by suffix."""
