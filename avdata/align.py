"""One time axis for a clip: where a separate sound belongs, which window is used, what moment a step shows.

The axis is the video container's own, in seconds; a still has none, and its sound begins at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avdata.config import AlignConfig

MIN_OVERLAP = 0.5
"""Share of the shorter sound that must overlap for a lag to count."""


@dataclass(frozen=True, slots=True)
class Window:
    """The span of time a sample covers, [start, end) in seconds."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


def step_times(window: Window, steps: int) -> np.ndarray:
    """Middles of the `steps` equal steps of a window, in seconds on the clip's axis.

    >>> step_times(Window(0.0, 2.0), steps=4).tolist()
    [0.25, 0.75, 1.25, 1.75]
    """
    return window.start + (np.arange(steps) + 0.5) * (window.seconds / steps)


def measure_offset(separate: np.ndarray, own: np.ndarray, rate: int, max_lag: float) -> tuple[float, float]:
    """Where a separate sound lies within the container's own, by normalised cross-correlation.

    >>> noise = np.random.default_rng(0).normal(size=16000)
    >>> offset, peak = measure_offset(noise[160:], noise, 16000, 0.5)
    >>> round(offset, 4), round(peak, 2)
    (0.01, 1.0)

    Args:
        separate: mono [n].
        own: mono [m], at the same rate.
        rate: Hz.
        max_lag: s, the largest offset searched, either way.

    Returns:
        Seconds from the start of `own` to the start of `separate`, negative when it begins earlier, to a
        fraction of a sample by a parabola through the three highest points; and the correlation there, 1 for
        equal sounds and 0 when there is nothing to compare.
    """
    a, b = separate.astype(np.float64), own.astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    size = 1 << (len(a) + len(b) - 1).bit_length()
    spectrum = np.fft.rfft(b, size) * np.conj(np.fft.rfft(a, size))
    circular = np.fft.irfft(spectrum, size)
    reach = int(min(max_lag * rate, len(a) - 1, len(b) - 1))
    lags = np.arange(-reach, reach + 1)
    energy_a, energy_b = np.r_[0, np.cumsum(a**2)], np.r_[0, np.cumsum(b**2)]
    # At lag l, a[i] meets b[i + l]: i runs over first … last.
    first, last = np.maximum(0, -lags), np.minimum(len(a), len(b) - lags)
    overlap = np.maximum(last - first, 0)
    last = first + overlap
    power = (energy_a[last] - energy_a[first]) * (energy_b[last + lags] - energy_b[first + lags])
    enough = (overlap >= MIN_OVERLAP * min(len(a), len(b))) & (power > 1e-12)
    scores = np.where(enough, circular[lags] / np.sqrt(np.where(enough, power, 1.0)), 0.0)
    best = int(np.argmax(scores))
    shift = 0.0
    if 0 < best < len(scores) - 1:
        left, middle, right = scores[best - 1 : best + 2]
        bend = left - 2 * middle + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return float((lags[best] + shift) / rate), float(np.clip(scores[best], 0.0, 1.0))


def choose_window(align: AlignConfig, spans: list[tuple[float, float]]) -> Window:
    """The window of a clip whose streams cover `spans`, each [start, end) in seconds.

    `start` begins with the earliest stream; `centre` has its middle in that of all streams together, but
    begins no earlier; `whole` covers them all.
    """
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    if align.seconds is None:
        return Window(first, last)
    begin = first
    if align.window == "centre":
        begin = max(first, (first + last - align.seconds) / 2)
    return Window(begin, begin + align.seconds)


def pad_fraction(window: Window, spans: list[tuple[float, float]]) -> float:
    """Share of a window that not all streams cover.

    >>> pad_fraction(Window(0.0, 2.0), [(0.0, 1.5), (0.5, 2.0)])
    0.5
    """
    first, last = max(start for start, _ in spans), min(end for _, end in spans)
    covered = max(0.0, min(last, window.end) - max(first, window.start))
    return round(1.0 - covered / window.seconds, 6)


def cut(samples: np.ndarray, rate: int, start: float, window: Window, pad: str) -> np.ndarray:
    """A window's samples of a sound that starts at `start`, padded where there are none.

    Args:
        samples: mono [n] at `rate`.
        rate: Hz.
        start: s, when the first sample is heard.
        window: what to cut.
        pad: zeros; repeat, the sound again from its beginning; edge, its first or last value.

    Returns:
        [round(window.seconds · rate)], of the type of `samples`.
    """
    count = round(window.seconds * rate)
    places = np.arange(count) - round((start - window.start) * rate)
    inside = (places >= 0) & (places < len(samples))
    if pad == "repeat":
        return samples[places % len(samples)]
    held = samples[np.clip(places, 0, len(samples) - 1)]
    return held if pad == "edge" else np.where(inside, held, samples.dtype.type(0))
