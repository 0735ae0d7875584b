"""Place audio, window and steps of a clip on one time axis.

The axis is the video container's own, in seconds. A still image has none: its audio begins at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from avdata.config.schema import AlignConfig

MIN_OVERLAP = 0.5
"""Share of the shorter signal that must overlap at a lag for the lag to be considered."""


@dataclass(frozen=True, slots=True)
class Window:
    """Time interval of a sample, [start, end) in seconds."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Length, s."""
        return self.end - self.start


def step_centers(window: Window, steps: int, segment: float | None = None) -> np.ndarray:
    """Return the times of the middles of a window's steps, float64 [steps], in seconds.

    >>> step_centers(Window(0.0, 2.0), steps=4).tolist()
    [0.25, 0.75, 1.25, 1.75]
    >>> step_centers(Window(0.0, 2.0), steps=3, segment=1.0).tolist()
    [0.5, 1.0, 1.5]

    Args:
        window: interval that the steps cover together.
        steps: number of steps.
        segment: length of a step, s. The first step is at the window's start, the last at its end. None
            divides the window into equal steps.
    """
    length = window.seconds / steps if segment is None else segment
    stride = length if segment is None or steps == 1 else (window.seconds - segment) / (steps - 1)
    if segment is None:
        return window.start + (np.arange(steps) + 0.5) * length
    return window.start + np.arange(steps) * stride + length / 2


def estimate_av_offset(
    separate: np.ndarray, own: np.ndarray, rate: int, max_lag: float
) -> tuple[float, float]:
    """Estimate the offset of separate audio from the container's own by cross-correlation.

    >>> noise = np.random.default_rng(0).normal(size=16000)
    >>> offset, peak = estimate_av_offset(noise[160:], noise, 16000, 0.5)
    >>> round(offset, 4), round(peak, 2)
    (0.01, 1.0)

    Args:
        separate: mono [n].
        own: mono [m], at the same rate.
        rate: Hz.
        max_lag: s, the largest offset searched in either direction.

    Returns:
        The offset from the start of `own` to the start of `separate`, s, negative if `separate` begins
        earlier; and the correlation there, 1 for equal signals and 0 if none can be computed. A parabola
        through the three highest points gives fractions of a sample.
    """
    if not len(separate) or not len(own):
        return 0.0, 0.0
    a, b = _centered(separate), _centered(own)
    reach = int(min(max_lag * rate, len(a) - 1, len(b) - 1))
    # Long enough that the circular correlation does not wrap around within `reach`.
    size = _fast_fft_length(max(len(a), len(b)) + reach)
    # float32 takes half the time, and moves the parabola by less than a hundredth of a sample.
    circular = np.fft.irfft(np.fft.rfft(b, size) * np.conj(np.fft.rfft(a, size)), size)
    lags = np.arange(-reach, reach + 1)
    energy_a, energy_b = _energy(a, reach, len(b) - reach), _energy(b, reach, len(a) - reach)
    # At lag l, a[i] is multiplied by b[i + l] for first <= i < last.
    first, last = np.maximum(0, -lags), np.minimum(len(a), len(b) - lags)
    overlap = last - first
    power = (energy_a[last] - energy_a[first]) * (energy_b[last + lags] - energy_b[first + lags])
    enough = (overlap >= MIN_OVERLAP * min(len(a), len(b))) & (power > 1e-12)
    products = np.concatenate([circular[size - reach :], circular[: reach + 1]])
    scores = np.zeros(len(lags))
    np.divide(products, np.sqrt(power, where=enough, out=power), out=scores, where=enough)
    best = int(np.argmax(scores))
    shift = 0.0
    if 0 < best < len(scores) - 1:
        left, middle, right = scores[best - 1 : best + 2]
        curvature = left - 2 * middle + right
        shift = 0.5 * (left - right) / curvature if curvature < 0 else 0.0
    return float((lags[best] + shift) / rate), float(np.clip(scores[best], 0.0, 1.0))


def _centered(samples: np.ndarray) -> np.ndarray:
    """Subtract the mean; float32."""
    values = samples.astype(np.float32, copy=False)
    return values - np.float32(values.mean(dtype=np.float64))


def _energy(samples: np.ndarray, head: int, tail: int) -> np.ndarray:
    """Return the cumulative sums of squares, float64 [n + 1], up to `head` and from `tail`.

    The indices between are not needed and stay 0: a cumulative sum takes as long as an FFT.
    """
    squares = np.square(samples, dtype=np.float64)
    tail = min(max(tail, head), len(samples))
    sums = np.zeros(len(samples) + 1)
    np.cumsum(squares[:head], out=sums[1 : head + 1])
    sums[tail] = sums[head] + squares[head:tail].sum()
    np.cumsum(squares[tail:], out=sums[tail + 1 :])
    sums[tail + 1 :] += sums[tail]
    return sums


def _fast_fft_length(least: int) -> int:
    """Return an FFT length of at least `least`: a power of two times a small odd number.

    >>> _fast_fft_length(48_001)
    49152
    """
    return min(odd << (-(-least // odd) - 1).bit_length() for odd in (1, 3, 5, 9, 15, 25, 45))


Loudness = Callable[[], tuple[np.ndarray, int, float]]
"""Returns the squares of audio samples, float64 [n], their rate in Hz, and the time of the first, s."""


def select_window(
    align: AlignConfig,
    spans: Sequence[tuple[float, float]],
    *,
    steps: int = 1,
    event: tuple[float, float] | None = None,
    loudness: Loudness | None = None,
) -> Window:
    """Select the window of a clip by `align.window`.

    - `whole`: from the earliest start to the latest end of the streams.
    - `start`, `segments`: from the earliest start.
    - `center`: around the middle of that interval.
    - `event`: around the middle of the event; like `center` if the clip has none.
    - `loudest`: the earliest of the windows with the most audio energy. If the interval that all streams
      cover is long enough, the window lies within it.

    A window does not begin before the streams, and does not end after them if they are long enough.

    Args:
        align: the settings.
        spans: interval [start, end) of each stream, s.
        steps: T, for `segments`.
        event: [start, end), s, for `event`.
        loudness: of the audio, for `loudest`.
    """
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    if align.seconds is None:
        return Window(first, last)
    if align.window == "segments":
        return Window(first, first + float(align.window_seconds(steps)))
    begin = first
    if align.window == "center" or (align.window == "event" and event is None):
        begin = max(first, (first + last - align.seconds) / 2)
    elif align.window == "event" and event is not None:
        begin = max(first, min((event[0] + event[1] - align.seconds) / 2, last - align.seconds))
    elif align.window == "loudest" and loudness is not None:
        shared = max(start for start, _ in spans), min(end for _, end in spans)
        enough = shared[1] - shared[0] >= align.seconds
        begin = _loudest(*loudness(), *(shared if enough else (first, last)), align.seconds)
    return Window(begin, begin + align.seconds)


LOUDEST_STEP_S = 0.01
"""Seconds between the candidates for the start of the loudest window."""


def _loudest(
    squares: np.ndarray, rate: int, start: float, first: float, last: float, seconds: float
) -> float:
    """Return the start of the loudest window between `first` and `last`, s."""
    starts = first + LOUDEST_STEP_S * np.arange(
        max(int((last - seconds - first) / LOUDEST_STEP_S + 1e-6), 0) + 1
    )
    cumulative = np.r_[0.0, np.cumsum(squares)]

    def energy_before(times: np.ndarray) -> np.ndarray:
        return cumulative[np.clip(np.round((times - start) * rate), 0, len(squares)).astype(np.int64)]

    energy = energy_before(starts + seconds) - energy_before(starts)
    # Of windows that differ only by rounding of the sums, take the earliest.
    return float(starts[np.argmax(energy >= energy.max() * (1 - 1e-9))])


def pad_fraction(window: Window, spans: Sequence[tuple[float, float]]) -> float:
    """Return the share of a window that at least one stream does not cover.

    >>> pad_fraction(Window(0.0, 2.0), [(0.0, 1.5), (0.5, 2.0)])
    0.5
    """
    first, last = max(start for start, _ in spans), min(end for _, end in spans)
    covered = max(0.0, min(last, window.end) - max(first, window.start))
    return round(1.0 - covered / window.seconds, 6)


def covered_samples(count: int, rate: int, start: float, window: Window) -> tuple[int, int]:
    """Return the samples [first, last) of a window's waveform that the audio itself covers, without padding.

    >>> covered_samples(count=8000, rate=16000, start=0.25, window=Window(0.0, 1.0))
    (4000, 12000)

    Args:
        count: number of samples of the audio.
        rate: Hz.
        start: time of the audio's first sample, s.
        window: interval of the waveform.
    """
    first = round((start - window.start) * rate)
    size = round(window.seconds * rate)
    return min(max(first, 0), size), min(max(first + count, 0), size)


def slice_audio(samples: np.ndarray, rate: int, start: float, window: Window, pad: str) -> np.ndarray:
    """Return a window's samples of audio that starts at `start`, padded outside the audio.

    Args:
        samples: mono [n].
        rate: Hz.
        start: time of the first sample, s.
        window: interval to return.
        pad: `zeros`; `repeat`, the audio again from its beginning; `edge`, its first or last value.

    Returns:
        Array of shape [round(window.seconds * rate)] and the dtype of `samples`.
    """
    count = round(window.seconds * rate)
    # Index in `samples` of the window's first sample; may be negative.
    begin = -round((start - window.start) * rate)
    if pad == "repeat":
        return samples[(begin + np.arange(count)) % len(samples)]
    before = min(max(-begin, 0), count)
    inside = samples[max(begin, 0) : max(begin + count, 0)]
    after = count - before - len(inside)
    values = (samples[0], samples[-1]) if pad == "edge" else (0, 0)
    return np.pad(inside, (before, after), constant_values=values)
