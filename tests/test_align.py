from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from avdata.align import Window, choose_window, cut, measure_offset, pad_fraction, step_times
from avdata.config import AlignConfig
from avdata.mock import Scene, sound

RATE = 16_000


@pytest.mark.parametrize("shift", [-0.2, -0.0371, 0.0, 0.00406, 0.1234, 0.2])
@pytest.mark.parametrize("gain", [1.0, 0.2])
def test_a_known_shift_is_measured_to_a_tenth_of_a_millisecond(shift: float, gain: float) -> None:
    own = sound(Scene(seconds=2.5, beeps=(0.7, 1.9), seed=4), RATE)
    spectrum = np.fft.rfft(own, 2 * len(own))
    turn = np.exp(2j * np.pi * np.fft.rfftfreq(2 * len(own), 1 / RATE) * shift)
    moved = np.fft.irfft(spectrum * turn)[: len(own)] * gain
    noise = np.random.default_rng(1).normal(size=len(own)) * 0.02 * gain
    offset, peak = measure_offset(moved + noise, own, RATE, max_lag=0.5)
    assert offset == pytest.approx(shift, abs=1e-4)
    assert peak > 0.8


def test_sounds_that_have_nothing_in_common_correlate_little() -> None:
    dice = np.random.default_rng(0)
    _, peak = measure_offset(dice.normal(size=RATE), dice.normal(size=RATE), RATE, max_lag=0.5)
    assert peak < 0.1


def test_silence_has_no_correlation_and_raises_nothing() -> None:
    assert measure_offset(np.zeros(RATE), np.zeros(RATE), RATE, max_lag=0.5)[1] == 0


@given(some.floats(-5, 5), some.floats(0.1, 20), some.integers(1, 64))
def test_step_middles_are_even_and_inside(start: float, seconds: float, steps: int) -> None:
    times = step_times(Window(start, start + seconds), steps)
    assert len(times) == steps
    assert start < times[0]
    assert times[-1] < start + seconds
    assert np.allclose(np.diff(times), seconds / steps)


@given(some.floats(-1, 1), some.floats(-1, 1), some.sampled_from(["zeros", "repeat", "edge"]))
def test_a_cut_has_the_windows_length_whatever_the_sound(start: float, begin: float, pad: str) -> None:
    samples = np.arange(1, 801, dtype=np.float32)
    got = cut(samples, 1000, start, Window(begin, begin + 1.0), pad)
    assert got.shape == (1000,)
    assert got.dtype == np.float32


def test_a_cut_puts_each_sample_at_its_time() -> None:
    samples = np.arange(1, 11, dtype=np.float32)
    window = Window(0.0, 0.016)
    assert cut(samples, 1000, 0.003, window, "zeros").tolist() == [0, 0, 0, *range(1, 11), 0, 0, 0]
    assert cut(samples, 1000, 0.003, window, "edge").tolist() == [1, 1, 1, *range(1, 11), 10, 10, 10]
    assert cut(samples, 1000, 0.003, window, "repeat").tolist() == [8, 9, 10, *range(1, 11), 1, 2, 3]


def test_the_window_begins_with_the_earliest_stream_or_lies_in_the_middle() -> None:
    spans = [(0.5, 4.5), (0.1, 4.1)]
    assert choose_window(AlignConfig(window="start", seconds=2.0), spans) == Window(0.1, 2.1)
    middle = choose_window(AlignConfig(window="centre", seconds=2.0), spans)
    assert (middle.start, middle.end) == pytest.approx((1.3, 3.3))
    assert choose_window(AlignConfig(window="whole", seconds=None), spans) == Window(0.1, 4.5)


def test_the_pad_fraction_is_what_not_both_streams_cover() -> None:
    assert pad_fraction(Window(0, 4), [(0, 2), (1, 9)]) == 0.75
    assert pad_fraction(Window(0, 4), [(0, 1), (2, 9)]) == 1.0
    assert pad_fraction(Window(0, 4), [(-1, 9)]) == 0.0
