"""Place decoded audio on the container's time axis, by the timestamps of its frames.

The offset of a frame is its timestamp minus the time at which it would be played if all samples followed each
other without gaps. It is constant in an intact track. Jitter is removed from the offsets, which are then
approximated by segments of constant or linearly growing offset. A segment of constant offset keeps its
samples; the samples of a linear one are resampled, since they have another rate than they should. Silence
fills the gaps between segments, and of segments that overlap, the later one loses its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason, SampleFlag

MAX_ERROR_S = 0.005
"""Largest difference in seconds between an offset and the segment that approximates it."""

MAX_DRIFT_S = 0.02
"""Difference between the smallest and the largest offset, in seconds, from which a track is flagged."""

JITTER_S = 0.25
"""Deviations that return within this time, in seconds, are jitter."""

MAX_JITTER_FRAMES = 25

MIN_LINEAR_FRAMES = 5

MIN_LINEAR_S = 0.5
"""Length from which a segment may be linear: two frames always lie on a line."""

MAX_STRETCH = 2.0
"""Largest factor by which the length of a linear segment is corrected."""

MAX_SEGMENTS = 1_000

ROUNDING_S = 0.001
"""Gaps and overlaps of less than this, in seconds, are rounding errors."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """Frames `first` to `last - 1`: the time of the first sample, s, and the factor of their length."""

    first: int
    last: int
    start: float
    stretch: float = 1.0


class AudioTimeline:
    """Timestamps of the frames of a track, and the placement of their samples.

    Attributes:
        rate: Hz, the sample rate of the first frame; 0 before it. Frames of other rates are resampled to it.
    """

    def __init__(self, name: str, max_seconds: float) -> None:
        self.rate = 0
        self._name, self._max_seconds = name, max_seconds
        self._frames: list[tuple[float | None, int, int]] = []
        self._seconds = 0.0
        self._first_time: float | None = None

    def add(self, time: float | None, num_samples: int, rate: int) -> None:
        """Append a frame.

        Args:
            time: its timestamp, s; None if it has none.
            num_samples: number of its samples.
            rate: Hz.

        Raises:
            MediaError: TOO_LONG.
        """
        self._frames.append((time, num_samples, rate))
        self._seconds += num_samples / rate
        if self._first_time is None:
            self.rate = self.rate or rate
            self._first_time = time
        elif time is not None and abs(time - self._first_time) > self._max_seconds:
            raise too_long(self._name, self._max_seconds)
        self._check_seconds(self._seconds)

    def _check_seconds(self, seconds: float) -> None:
        if seconds > self._max_seconds:
            raise too_long(self._name, self._max_seconds)

    def place(self, samples: np.ndarray) -> tuple[np.ndarray, float, tuple[SampleFlag, ...]]:
        """Place the samples of all frames.

        Args:
            samples: float32 [n], the samples of all frames in their order, each at its own rate.

        Returns:
            The samples at `rate`, float32 [m]; the time of the first one, s; and CLOCK_DRIFT if the
            timestamps and the number of samples differ by more than `MAX_DRIFT_S`.

        Raises:
            MediaError: TOO_LONG.
        """
        times, counts, frame_rates = zip(*self._frames, strict=True)
        rates = np.array(frame_rates)
        durations = np.array(counts) / rates
        # Time at which each frame would begin if the track began at 0 and had no gap.
        begins = np.cumsum(durations) - durations
        offsets = _offsets(times, begins)
        start = float(offsets[0])
        drift = offsets - start
        has_one_rate = len(set(frame_rates)) == 1
        if has_one_rate and np.abs(drift).max() <= MAX_ERROR_S:
            return samples, start, ()
        drift = _without_jitter(drift, durations)
        flags = (SampleFlag.CLOCK_DRIFT,) if np.ptp(drift) > MAX_DRIFT_S else ()
        rate_changes = np.flatnonzero(np.diff(rates)) + 1
        bounds = [0, *rate_changes.tolist(), len(drift)]
        segments = sorted(_segments(drift, begins, bounds), key=lambda segment: segment.start)
        # Without the negative zeros of a line's start.
        first = round(start + segments[0].start, 6) + 0.0
        return self._join(samples, segments), first, flags

    def _join(self, samples: np.ndarray, segments: list[_Segment]) -> np.ndarray:
        ends = np.cumsum([0, *(num_samples for _, num_samples, _ in self._frames)])
        pieces: list[np.ndarray] = []
        position = 0
        for segment in segments:
            piece = samples[ends[segment.first] : ends[segment.last]]
            piece = _resample(piece, self._frames[segment.first][2], self.rate * segment.stretch)
            gap = round((segment.start - segments[0].start) * self.rate) - position
            if abs(gap) <= ROUNDING_S * self.rate:
                gap = 0
            pieces += [np.zeros(max(gap, 0), np.float32), piece[max(-gap, 0) :]]
            position += len(pieces[-2]) + len(pieces[-1])
            self._check_seconds(position / self.rate)
        return np.concatenate(pieces)


def _offsets(times: tuple[float | None, ...], begins: np.ndarray) -> np.ndarray:
    """Return the offset of each frame, s; a frame without a timestamp has that of the one before it."""
    if None not in times:
        return np.array(times) - begins
    is_known = np.array([time is not None for time in times])
    if not is_known.any():
        return np.zeros(len(begins))
    offsets = np.array([time or 0.0 for time in times]) - begins
    latest = np.maximum.accumulate(np.where(is_known, np.arange(len(begins)), is_known.argmax()))
    return np.asarray(offsets[latest])


def _without_jitter(offsets: np.ndarray, durations: np.ndarray) -> np.ndarray:
    """Replace offsets by their moving median, which keeps slopes and steps that last.

    The window is centered on each frame, and shorter at the ends of the track.
    """
    frames = round(JITTER_S / max(float(np.median(durations)), 1e-4))
    reach = min(max(frames, 2), MAX_JITTER_FRAMES, (len(offsets) - 1) // 2)
    windows = np.lib.stride_tricks.sliding_window_view(offsets, 2 * reach + 1)
    begin = [np.median(offsets[: 2 * frame + 1]) for frame in range(reach)]
    end = [np.median(offsets[len(offsets) - 2 * frame - 1 :]) for frame in reversed(range(reach))]
    return np.concatenate([begin, np.median(windows, axis=1), end])


def _segments(offsets: np.ndarray, begins: np.ndarray, bounds: list[int]) -> Iterator[_Segment]:
    """Approximate the offsets by segments that do not cross the bounds."""
    pending = list(pairwise(bounds))[::-1]
    constant = 0.0
    num_segments = 0
    while pending:
        first, last = pending.pop()
        values = offsets[first:last]
        low, high = float(values.min()), float(values.max())
        num_segments += 1
        if high - low <= 2 * MAX_ERROR_S or num_segments + len(pending) > MAX_SEGMENTS:
            if not high - MAX_ERROR_S <= constant <= low + MAX_ERROR_S:
                median = float(np.median(values))
                constant = max(min(median, low + MAX_ERROR_S), high - MAX_ERROR_S)
            yield _Segment(first, last, float(begins[first]) + constant)
        elif line := _fit_line(values, begins[first:last]):
            start, slope = line
            constant = float(values[-1])
            yield _Segment(first, last, float(begins[first]) + start, 1 + slope)
        else:
            middle = _split(values)
            pending += [(first + middle, last), (first, first + middle)]
            num_segments -= 1


def _fit_line(offsets: np.ndarray, begins: np.ndarray) -> tuple[float, float] | None:
    """Return the first value and the slope of the line through the offsets; None if they are not on one."""
    times = begins - begins[0]
    if len(offsets) < MIN_LINEAR_FRAMES or times[-1] < MIN_LINEAR_S:
        return None
    centered = times - times.mean()
    slope = float((centered * offsets).sum() / np.square(centered).sum())
    start = float(offsets.mean() - slope * times.mean())
    is_line = np.abs(start + slope * times - offsets).max() <= MAX_ERROR_S
    return (start, slope) if is_line and 1 / MAX_STRETCH <= 1 + slope <= MAX_STRETCH else None


def _split(offsets: np.ndarray) -> int:
    """Return the index behind the largest step; if there is none, the middle."""
    steps = np.abs(np.diff(offsets))
    largest = int(steps.argmax())
    return largest + 1 if steps[largest] > MAX_ERROR_S else len(offsets) // 2


def _resample(samples: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Resample with soxr's high-quality filter; rates in Hz, float32 [n]."""
    if rate == new_rate:
        return samples
    import soxr  # noqa: PLC0415

    return np.asarray(soxr.resample(samples, rate, new_rate, quality="HQ"), np.float32)


def too_long(name: str, max_seconds: float) -> MediaError:
    """Return the error for audio that exceeds `quality.max_seconds`."""
    return MediaError(QuarantineReason.TOO_LONG, f"{name}: audio longer than {max_seconds:g} s")


def check_audio_packets(name: str, num_corrupt: int, num_packets: int, quality: QualityConfig) -> None:
    """Raise MediaError CORRUPT_AUDIO if more packets failed to decode than `quality.max_corrupt_audio`."""
    # The first packet of a stream that was cut out of another often lacks the data that it refers to.
    if num_corrupt > max(1, quality.max_corrupt_audio * num_packets):
        detail = f"{name}: {num_corrupt} of {num_packets} packets"
        raise MediaError(QuarantineReason.CORRUPT_AUDIO, detail)
