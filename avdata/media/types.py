"""Decoded audio, frame times and frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from avdata.errors import SampleFlag


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """A decoded audio track.

    Attributes:
        samples: float32 [n], mono, in [-1, 1].
        rate: Hz.
        start: s, time of the first sample on the container's axis.
        metadata: codec, rate and number of channels of the file.
        flags: irregularities of the track.
    """

    samples: np.ndarray
    rate: int
    start: float
    metadata: dict[str, Any]
    flags: tuple[SampleFlag, ...] = ()

    @property
    def end(self) -> float:
        """Time at which the last sample ends, s."""
        return self.start + len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """Presentation times of a video's frames.

    Attributes:
        times: float64 [n], s, ascending.
        end: s, time at which the last frame ends.
        metadata: container, codec, size, pixel aspect, number of frames and frame rate.
        flags: irregularities of the video track.
        is_decoded: whether they are the times of decoded frames, since the packets' pts are missing or wrong.
        stream_index: index of the track among all streams of the container; None if it is not known.
    """

    times: np.ndarray
    end: float
    metadata: dict[str, Any]
    flags: tuple[SampleFlag, ...]
    is_decoded: bool = False
    stream_index: int | None = None

    @property
    def start(self) -> float:
        """Presentation time of the first frame, s."""
        return float(self.times[0])

    @property
    def pixel_aspect(self) -> float:
        """Width of a stored pixel by its height."""
        return float(self.metadata.get("pixel_aspect", 1.0))


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame.

    Attributes:
        pixels: uint8 [H, W, 3] or [size, size, C].
        time: presentation time, s.
        pixel_aspect: width of a pixel by its height on screen.
        thumbnail: uint8 [128, 128], luma of the complete frame, not oriented; None if not computed.
    """

    pixels: np.ndarray
    time: float
    pixel_aspect: float = 1.0
    thumbnail: np.ndarray | None = None
