"""Place decoded audio on the container's time axis, and downmix it to mono."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason

MIN_GAP_S = 0.05
"""Gaps in an audio track's timestamps from this length on, in seconds, are filled with silence."""


class AudioTimeline:
    """Time of the first sample of a track, and the gaps between its frames.

    Attributes:
        start: s, time of the first sample; None before the first frame.
        num_samples: number of samples so far, silence included.
    """

    def __init__(self, name: str, rate: int, max_seconds: float) -> None:
        self.start: float | None = None
        self.num_samples = 0
        self._name, self._rate, self._max_seconds = name, rate, max_seconds

    def place(self, time: float | None, num_samples: int) -> int:
        """Append the samples of a frame.

        Args:
            time: timestamp of the frame, s; None if it has none.
            num_samples: number of its samples.

        Returns:
            Number of samples of silence that precede the frame.

        Raises:
            MediaError: TOO_LONG.
        """
        num_silent = 0
        if self.start is None:
            self.start = 0.0 if time is None else float(time)
        elif time is not None and (gap := time - self.start - self.num_samples / self._rate) > MIN_GAP_S:
            if gap > self._max_seconds:
                detail = f"{self._name}: gap of {gap:.0f} s in the audio"
                raise MediaError(QuarantineReason.TOO_LONG, detail)
            num_silent = round(gap * self._rate)
        self.num_samples += num_silent + num_samples
        self.check_duration(self.num_samples)
        return num_silent

    def check_duration(self, num_samples: int) -> None:
        """Raise MediaError TOO_LONG if so many samples exceed the maximum duration."""
        if num_samples > self._max_seconds * self._rate:
            detail = f"{self._name}: audio longer than {self._max_seconds:g} s"
            raise MediaError(QuarantineReason.TOO_LONG, detail)


def check_audio_packets(name: str, num_corrupt: int, num_packets: int, quality: QualityConfig) -> None:
    """Raise MediaError CORRUPT_AUDIO if more packets failed to decode than `quality.max_corrupt_audio`."""
    # The first packet of a stream that was cut out of another often lacks the data that it refers to.
    if num_corrupt > max(1, quality.max_corrupt_audio * num_packets):
        detail = f"{name}: {num_corrupt} of {num_packets} packets"
        raise MediaError(QuarantineReason.CORRUPT_AUDIO, detail)


def downmix(channels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Average the channels, float32 [C, n] to [n], summed in their order."""
    if len(channels) == 1:
        return channels[0]
    total = channels[0] + channels[1]
    for channel in channels[2:]:
        total += channel
    total /= np.float32(len(channels))
    return np.asarray(total)
