"""One time axis for a clip: where a separate sound belongs, which window is used, what moment a step shows.

The axis is the video container's own, in seconds; a still has none, and its sound begins at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from avdata.config.schema import AlignConfig

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


def step_centers(window: Window, steps: int, segment: float | None = None) -> np.ndarray:
    """Middles of the steps of a window, in seconds on the clip's axis.

    >>> step_centers(Window(0.0, 2.0), steps=4).tolist()
    [0.25, 0.75, 1.25, 1.75]
    >>> step_centers(Window(0.0, 2.0), steps=3, segment=1.0).tolist()
    [0.5, 1.0, 1.5]

    Args:
        window: what the steps cover together.
        steps: how many.
        segment: length of each, s, the first at the window's start and the last at its end; None cuts the
            window into equal steps.
    """
    length = window.seconds / steps if segment is None else segment
    stride = length if segment is None or steps == 1 else (window.seconds - segment) / (steps - 1)
    if segment is None:
        return window.start + (np.arange(steps) + 0.5) * length
    return window.start + np.arange(steps) * stride + length / 2


def estimate_av_offset(
    separate: np.ndarray, own: np.ndarray, rate: int, max_lag: float
) -> tuple[float, float]:
    """Where a separate sound lies within the container's own, by normalized cross-correlation.

    >>> noise = np.random.default_rng(0).normal(size=16000)
    >>> offset, peak = estimate_av_offset(noise[160:], noise, 16000, 0.5)
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
    a, b = _centered(separate), _centered(own)
    reach = int(min(max_lag * rate, len(a) - 1, len(b) - 1))
    # Long enough that no lag within reach meets the other end of the circle.
    size = _fast_fft_length(max(len(a), len(b)) + reach)
    # Half the width is half the time, and moves the parabola by less than a hundredth of a sample.
    circular = np.fft.irfft(np.fft.rfft(b, size) * np.conj(np.fft.rfft(a, size)), size)
    lags = np.arange(-reach, reach + 1)
    energy_a, energy_b = _energy(a, reach, len(b) - reach), _energy(b, reach, len(a) - reach)
    # At lag l, a[i] meets b[i + l]: i runs over first … last.
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
        bend = left - 2 * middle + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return float((lags[best] + shift) / rate), float(np.clip(scores[best], 0.0, 1.0))


def _centered(samples: np.ndarray) -> np.ndarray:
    """Without their mean, float32."""
    narrow = samples.astype(np.float32, copy=False)
    return narrow - np.float32(narrow.mean(dtype=np.float64))


def _energy(samples: np.ndarray, head: int, tail: int) -> np.ndarray:
    """The sum of squares before each sample and, last, of all: float64 [n + 1].

    Between `head` and `tail` nothing is told: sums one after the other take as long as a transform.
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
    """A length, from `least` on, that is quick to transform: a power of two times a small odd number.

    >>> _fast_fft_length(48_001)
    49152
    """
    return min(odd << (-(-least // odd) - 1).bit_length() for odd in (1, 3, 5, 9, 15, 25, 45))


Loudness = Callable[[], tuple[np.ndarray, int, float]]
"""Gives the squares of a sound's samples [n], their rate in Hz, and when the first one is heard, s."""


def select_window(
    align: AlignConfig,
    spans: Sequence[tuple[float, float]],
    *,
    steps: int = 1,
    event: tuple[float, float] | None = None,
    loudness: Loudness | None = None,
) -> Window:
    """The window of a clip whose streams cover `spans`, each [start, end) in seconds.

    `start` and `segments` begin with the earliest stream; `center` has its middle in that of all streams
    together; `event` in that of the event, or as `center` when there is none; `loudest` is the earliest place
    with the most sound energy, where both streams are as long as they are long enough. None of them begins
    before the streams, or ends after them while they are long enough. `whole` covers them all.

    Args:
        align: the settings.
        spans: of sound and pictures.
        steps: T, for `segments`.
        event: [start, end) in seconds, for `event`.
        loudness: of the sound, for `loudest`.
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
"""Seconds between the places where the loudest window may begin."""


def _loudest(
    squares: np.ndarray, rate: int, start: float, first: float, last: float, seconds: float
) -> float:
    """Where between `first` and `last - seconds` a window hears the most energy."""
    places = first + LOUDEST_STEP_S * np.arange(
        max(int((last - seconds - first) / LOUDEST_STEP_S + 1e-6), 0) + 1
    )
    summed = np.r_[0.0, np.cumsum(squares)]

    def until(when: np.ndarray) -> np.ndarray:
        return summed[np.clip(np.round((when - start) * rate), 0, len(squares)).astype(np.int64)]

    energy = until(places + seconds) - until(places)
    # Rounding of the sums must not move the window: what is as loud but for it begins earliest.
    return float(places[np.argmax(energy >= energy.max() * (1 - 1e-9))])


def pad_fraction(window: Window, spans: Sequence[tuple[float, float]]) -> float:
    """Share of a window that not all streams cover.

    >>> pad_fraction(Window(0.0, 2.0), [(0.0, 1.5), (0.5, 2.0)])
    0.5
    """
    first, last = max(start for start, _ in spans), min(end for _, end in spans)
    covered = max(0.0, min(last, window.end) - max(first, window.start))
    return round(1.0 - covered / window.seconds, 6)


def slice_audio(samples: np.ndarray, rate: int, start: float, window: Window, pad: str) -> np.ndarray:
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
    # Where the window begins in the samples, and what of it they cover.
    begin = -round((start - window.start) * rate)
    if pad == "repeat":
        return samples[(begin + np.arange(count)) % len(samples)]
    before = min(max(-begin, 0), count)
    inside = samples[max(begin, 0) : max(begin + count, 0)]
    after = count - before - len(inside)
    values = (samples[0], samples[-1]) if pad == "edge" else (0, 0)
    return np.pad(inside, (before, after), constant_values=values)
