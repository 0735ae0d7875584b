"""Types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from avdata.errors import SampleFlag


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """A decoded sound track: mono float32 samples in [-1, 1], rate, when the first one is heard, facts."""

    samples: np.ndarray
    rate: int
    start: float
    metadata: dict[str, Any]

    @property
    def end(self) -> float:
        """When the last sample ends, s."""
        return self.start + len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """When each frame of a video comes on screen, s ascending; when the last one ends; facts; flags."""

    times: np.ndarray
    end: float
    metadata: dict[str, Any]
    flags: tuple[SampleFlag, ...]

    @property
    def start(self) -> float:
        """When the first frame comes on screen, s."""
        return float(self.times[0])


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame: uint8 [H, W, 3] and when it comes on screen, s."""

    pixels: np.ndarray
    time: float
