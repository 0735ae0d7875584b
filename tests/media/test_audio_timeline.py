"""Placement of samples whose values are their true times, so that each shows its own error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio_timeline import AudioTimeline

RATE = 8_000
FRAME = 160
MAX_ERROR_S = 0.010


def placed(times: list[float | None], samples: np.ndarray, rates: list[int] | None = None) -> AudioTimeline:
    timeline = AudioTimeline("a", 900.0)
    assert len(samples) == FRAME * len(times)
    for time, rate in zip(times, rates or [RATE] * len(times), strict=True):
        timeline.add(time, FRAME, rate)
    return timeline


def ramp(times: list[float], seconds: float = FRAME / RATE) -> np.ndarray:
    """Return samples whose values are their times plus 10 s, so that none is 0."""
    within = np.arange(FRAME) * seconds / FRAME
    return (10 + np.concatenate([time + within for time in times])).astype(np.float32)


def regular(count: int = 200, start: float = 0.0) -> list[float]:
    return [start + index * FRAME / RATE for index in range(count)]


def largest_error(samples: np.ndarray, start: float, margin: int = 0) -> float:
    """Return the largest difference between the true and the placed time of a sample, s."""
    expected = 10 + start + np.arange(len(samples)) / RATE
    is_sound = samples != 0
    is_sound[:margin] = False
    is_sound[len(samples) - margin :] = False
    return float(np.abs(samples - expected)[is_sound].max())


def rounded(times: list[float], unit: float) -> list[float]:
    return [round(time / unit) * unit for time in times]


def with_outliers(times: list[float], seconds: float, every: int) -> list[float]:
    return [time + seconds * (index % every == every - 1) for index, time in enumerate(times)]


def on_arrival(times: list[float], seconds: float) -> list[float]:
    noise = np.random.default_rng(0).uniform(-seconds, seconds, len(times))
    noise[:4], noise[-4:] = 0, 0
    return [time + float(late) for time, late in zip(times, noise, strict=True)]


@pytest.mark.parametrize(
    "times",
    [
        rounded(regular(), 0.001),
        rounded(regular(start=1.4), 1 / 90_000),
        rounded(regular(), 0.009),
        with_outliers(regular(), 0.0102, 7),
        with_outliers(regular(), -0.2, 30),
        on_arrival(regular(), 0.008),
        [None if index % 2 else time for index, time in enumerate(regular())],
        [None] * 200,
    ],
    ids=["milliseconds", "90 kHz", "9 ms", "vorbis", "rare", "arrival", "every second", "none"],
)
def test_place_keeps_every_sample_of_a_track_with_jitter(times: list[float | None]) -> None:
    samples = ramp(regular())
    result, start, flags = placed(times, samples).place(samples)
    assert np.array_equal(result, samples)
    assert start == pytest.approx(times[0] or 0.0, abs=1e-6)
    assert flags == ()


@given(
    parts=some.lists(
        some.tuples(
            some.integers(13, 60),
            some.floats(-0.2, 0.2).filter(lambda gap: abs(gap) > 0.022),
        ),
        min_size=2,
        max_size=6,
    ),
    unit=some.sampled_from([1e-6, 0.001]),
)
def test_place_puts_parts_with_gaps_and_overlaps_at_their_times(
    parts: list[tuple[int, float]], unit: float
) -> None:
    times: list[float] = []
    begin = 0.0
    for count, gap in parts:
        times += regular(count, begin)
        begin = times[-1] + FRAME / RATE + gap
    samples = ramp(times)
    result, start, _ = placed(rounded(times, unit), samples).place(samples)
    assert largest_error(result, start) < 0.002 + unit
    # Nothing is lost but what overlaps, and only gaps are silent.
    covered = np.zeros(len(result) + 200, bool)
    for time in times:
        first = round((time - start) * RATE)
        covered[max(first, 0) : first + FRAME] = True
    assert abs(np.count_nonzero(covered) - np.count_nonzero(result)) <= 20 * len(parts)


@given(
    slope=some.floats(-0.08, 0.08),
    unit=some.sampled_from([1e-6, 0.001]),
    start=some.sampled_from([0.0, 1.4]),
)
def test_place_is_right_within_10_ms_if_the_clock_has_another_rate(
    slope: float, unit: float, start: float
) -> None:
    seconds = FRAME / RATE * (1 + slope)
    times = [start + index * seconds for index in range(200)]
    samples = ramp(times, seconds)
    result, placed_start, flags = placed(rounded(times, unit), samples).place(samples)
    assert largest_error(result, placed_start, margin=FRAME) < MAX_ERROR_S
    # The median of the rounded timestamps may be half a unit away.
    if abs(abs(slope) * 4 - 0.02) > 0.002:
        assert flags == (("audio_clock_drift",) if abs(slope) * 4 > 0.02 else ())


def test_place_fills_no_gap_between_parts_of_a_wrong_rate() -> None:
    seconds = FRAME / RATE * 1.07
    times = [index * seconds for index in range(200)]
    samples = ramp(times, seconds)
    result, _, _ = placed(times, samples).place(samples)
    assert np.count_nonzero(result == 0) == 0
    assert len(result) == pytest.approx(200 * seconds * RATE, abs=2)


def test_place_is_right_where_a_wandering_clock_also_jumps() -> None:
    frames = np.arange(1_000) * FRAME / RATE
    times = (frames + 0.1 * np.sin(frames / 3) + 0.3 * (frames > 10)).tolist()
    samples = np.interp(np.arange(FRAME * 1_000), np.arange(1_000) * FRAME, times).astype(np.float32) + 10
    result, start, flags = placed(times, samples).place(samples)
    errors = np.abs(result - 10 - start - np.arange(len(result)) / RATE)[result != 0]
    # The filter rings where a segment ends: there are about 60.
    assert np.quantile(errors, 0.98) < MAX_ERROR_S
    assert np.count_nonzero(result == 0) / RATE == pytest.approx(0.3, abs=0.05)
    assert flags == ("audio_clock_drift",)


def test_place_resamples_frames_of_another_rate() -> None:
    times = regular(100) + [2.0 + index * FRAME / 16_000 for index in range(200)]
    samples = np.concatenate([ramp(times[:100]), ramp(times[100:], FRAME / 16_000)])
    timeline = placed(times, samples, [RATE] * 100 + [16_000] * 200)
    result, start, flags = timeline.place(samples)
    assert (timeline.rate, start, flags) == (RATE, 0.0, ())
    assert len(result) == 4 * RATE
    settled = np.r_[result[: 2 * RATE - 1], result[2 * RATE + FRAME :]]
    expected = 10 + np.delete(np.arange(4 * RATE), np.arange(2 * RATE - 1, 2 * RATE + FRAME)) / RATE
    assert np.abs(settled - expected)[:-FRAME].max() < 0.001


def test_place_of_timestamps_without_order_ends_within_the_limit_of_segments() -> None:
    times = np.random.default_rng(0).uniform(0, 100, 5_000).tolist()
    samples = ramp(regular(5_000))
    result, _, flags = placed(times, samples).place(samples)
    assert flags == ("audio_clock_drift",)
    assert len(result) / RATE < 201


def test_timeline_is_too_long_by_samples_and_by_timestamps() -> None:
    for times in ([0.0, 901.0], [0.0, -901.0]):
        timeline = AudioTimeline("a", 900.0)
        timeline.add(times[0], FRAME, RATE)
        with pytest.raises(MediaError) as caught:
            timeline.add(times[1], FRAME, RATE)
        assert caught.value.reason is QuarantineReason.TOO_LONG
    with pytest.raises(MediaError):
        AudioTimeline("a", 900.0).add(0.0, 901 * RATE, RATE)
