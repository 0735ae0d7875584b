from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from avdata.config.schema import AlignConfig, QualityConfig, build_config
from avdata.errors import UsageError
from avdata.features.alignment import (
    Window,
    estimate_av_offset,
    pad_fraction,
    select_window,
    slice_audio,
    step_centers,
)
from avdata.features.audio.spectrogram import resample
from avdata.media.audio import decode_audio
from avdata.testing.media import Scene, scene_audio, write_av

RATE = 16_000


@pytest.mark.parametrize("shift", [-0.2, -0.0371, 0.0, 0.00406, 0.1234, 0.2])
@pytest.mark.parametrize("gain", [1.0, 0.2])
def test_estimate_av_offset_is_accurate_to_a_tenth_of_a_millisecond(shift: float, gain: float) -> None:
    own = scene_audio(Scene(seconds=2.5, beeps=(0.7, 1.9), seed=4), RATE)
    spectrum = np.fft.rfft(own, 2 * len(own))
    phase = np.exp(2j * np.pi * np.fft.rfftfreq(2 * len(own), 1 / RATE) * shift)
    moved = np.fft.irfft(spectrum * phase)[: len(own)] * gain
    noise = np.random.default_rng(1).normal(size=len(own)) * 0.02 * gain
    offset, peak = estimate_av_offset(moved + noise, own, RATE, max_lag=0.5)
    assert offset == pytest.approx(shift, abs=1e-4)
    assert peak > 0.8


def test_unrelated_audio_has_a_low_peak() -> None:
    rng = np.random.default_rng(0)
    _, peak = estimate_av_offset(rng.normal(size=RATE), rng.normal(size=RATE), RATE, max_lag=0.5)
    assert peak < 0.1


@pytest.mark.parametrize(("separate", "own"), [(0, 8), (8, 0), (0, 0)])
def test_estimate_av_offset_of_no_samples_is_zero(separate: int, own: int) -> None:
    assert estimate_av_offset(np.ones(separate), np.ones(own), 16_000, 1.0) == (0.0, 0.0)


@pytest.mark.parametrize(("separate", "own"), [(400, 900), (900, 400), (700, 700), (60, 900), (8, 8)])
def test_estimate_av_offset_equals_the_definition(separate: int, own: int) -> None:
    rng = np.random.default_rng(separate)
    noise = np.cumsum(rng.normal(size=1500))
    a, b = noise[100 : 100 + separate] + rng.normal(size=separate), noise[137 : 137 + own]
    a, b = a - a.mean(), b - b.mean()
    scores = {}
    for lag in range(-min(300, separate - 1, own - 1), min(300, separate - 1, own - 1) + 1):
        first, last = max(0, -lag), min(separate, own - lag)
        if last - first >= 0.5 * min(separate, own):
            x, y = a[first:last], b[first + lag : last + lag]
            scores[lag] = float(x @ y / np.sqrt((x @ x) * (y @ y)))
    best = max(scores, key=scores.__getitem__)
    offset, peak = estimate_av_offset(a, b, 1000, max_lag=0.3)
    assert offset * 1000 == pytest.approx(best, abs=0.51)
    assert peak == pytest.approx(scores[best], abs=1e-4)


def test_silence_has_peak_zero() -> None:
    assert estimate_av_offset(np.zeros(RATE), np.zeros(RATE), RATE, max_lag=0.5)[1] == 0


@given(some.floats(-5, 5), some.floats(0.1, 20), some.integers(1, 64))
def test_step_centers_are_equidistant_and_inside_the_window(start: float, seconds: float, steps: int) -> None:
    times = step_centers(Window(start, start + seconds), steps)
    assert len(times) == steps
    assert start < times[0]
    assert times[-1] < start + seconds
    assert np.allclose(np.diff(times), seconds / steps)


@given(some.floats(-1, 1), some.floats(-1, 1), some.sampled_from(["zeros", "repeat", "edge"]))
def test_slice_audio_has_the_length_of_the_window(start: float, begin: float, pad: str) -> None:
    samples = np.arange(1, 801, dtype=np.float32)
    values = slice_audio(samples, 1000, start, Window(begin, begin + 1.0), pad)
    assert values.shape == (1000,)
    assert values.dtype == np.float32


def test_slice_audio_keeps_the_time_of_each_sample() -> None:
    samples = np.arange(1, 11, dtype=np.float32)
    window = Window(0.0, 0.016)
    assert slice_audio(samples, 1000, 0.003, window, "zeros").tolist() == [0, 0, 0, *range(1, 11), 0, 0, 0]
    assert slice_audio(samples, 1000, 0.003, window, "edge").tolist() == [1, 1, 1, *range(1, 11), 10, 10, 10]
    assert slice_audio(samples, 1000, 0.003, window, "repeat").tolist() == [8, 9, 10, *range(1, 11), 1, 2, 3]


def test_select_window_start_center_and_whole() -> None:
    spans = [(0.5, 4.5), (0.1, 4.1)]
    assert select_window(AlignConfig(window="start", seconds=2.0), spans) == Window(0.1, 2.1)
    middle = select_window(AlignConfig(window="center", seconds=2.0), spans)
    assert (middle.start, middle.end) == pytest.approx((1.3, 3.3))
    assert select_window(AlignConfig(window="whole", seconds=None), spans) == Window(0.1, 4.5)


def test_pad_fraction_is_the_share_that_a_stream_does_not_cover() -> None:
    assert pad_fraction(Window(0, 4), [(0, 2), (1, 9)]) == 0.75
    assert pad_fraction(Window(0, 4), [(0, 1), (2, 9)]) == 1.0
    assert pad_fraction(Window(0, 4), [(-1, 9)]) == 0.0


def loud_at(time: float, seconds: float = 10.0) -> tuple[np.ndarray, int, float]:
    """Return the squares of audio from 0.25 s on that is loud for 0.5 s around a time."""
    sample_times = 0.25 + np.arange(round(seconds * 1000)) / 1000
    return np.where(abs(sample_times - time) < 0.25, 1.0, 1e-6), 1000, 0.25


@given(some.floats(1.0, 9.5))
def test_loudest_window_contains_the_loudest_audio(time: float) -> None:
    spans = [(0.25, 10.25), (0.0, 10.0)]
    align = AlignConfig(window="loudest", seconds=2.0)
    window = select_window(align, spans, loudness=lambda: loud_at(time))
    assert window.start <= time - 0.24 or window.start == 0.25
    assert window.end >= time + 0.24 or window.end > 9.99
    assert window.start >= 0.25
    assert window.end <= 10.0 + 1e-9


def test_loudest_window_is_the_earliest_of_equals() -> None:
    align = AlignConfig(window="loudest", seconds=2.0)
    even = np.ones(10_000), 1000, 0.0
    assert select_window(align, [(0.0, 10.0), (0.0, 10.0)], loudness=lambda: even) == Window(0.0, 2.0)


@pytest.mark.parametrize(
    ("event", "start"),
    [((4.0, 6.0), 4.0), ((0.0, 1.0), 0.1), ((9.0, 10.0), 8.1), (None, 4.1), ((3.0, 3.0), 2.0)],
)
def test_event_window_is_around_the_event_and_inside_the_clip(
    event: tuple[float, float] | None, start: float
) -> None:
    align = AlignConfig(window="event", seconds=2.0)
    window = select_window(align, [(0.1, 10.1), (0.1, 10.1)], event=event)
    assert (window.start, window.end) == pytest.approx((start, start + 2.0))


def test_segments_have_their_own_length_and_hop() -> None:
    ten = AlignConfig(window="segments", seconds=1.0)
    window = select_window(ten, [(0.0, 9.7), (0.0, 10.0)], steps=10)
    assert window == Window(0.0, 10.0)
    assert step_centers(window, 10, ten.segment).tolist() == [n + 0.5 for n in range(10)]
    overlapping = AlignConfig(window="segments", seconds=1.0, hop=0.5)
    window = select_window(overlapping, [(0.0, 10.0)], steps=4)
    assert window == Window(0.0, 2.5)
    assert step_centers(window, 4, overlapping.segment).tolist() == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    "align", [{"hop": 0.5}, {"window": "segments", "hop": 0.3337, "seconds": 1.0}, {"window": "whole"}]
)
def test_config_rejects_inconsistent_windows(align: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        build_config({"align": align})


def through_mp3(wave: np.ndarray, rate: int, folder: Path) -> np.ndarray:
    """Return the audio after MP3 encoding and decoding, with the encoder's delay removed."""
    write_av(
        folder / "a.mkv",
        Scene(seconds=len(wave) / rate, rate=rate),
        vcodec=None,
        acodec="libmp3lame",
        samples=wave,
    )
    audio = decode_audio(folder / "a.mkv", QualityConfig())
    return slice_audio(audio.samples, rate, audio.start, Window(0.0, len(wave) / rate), "zeros")


def shifted(wave: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """Return the audio advanced by `seconds` (delayed if negative), to a fraction of a sample."""
    size = 2 * len(wave)
    phase = np.exp(2j * np.pi * np.fft.rfftfreq(size, 1 / rate) * seconds)
    return np.fft.irfft(np.fft.rfft(wave, size) * phase)[: len(wave)].astype(np.float32)


@pytest.mark.parametrize("shift", [-0.2, -0.1503, -0.0127, 0.0, 0.00406, 0.0333, 0.1, 0.2])
@pytest.mark.parametrize("treatment", ["noise", "gain", "resampled", "mp3", "all"])
def test_offset_with_a_high_peak_is_accurate_to_a_millisecond(
    tmp_path: Path, treatment: str, shift: float
) -> None:
    rng = np.random.default_rng(7)
    own = scene_audio(Scene(seconds=2.5, beeps=(0.7, 1.9), seed=4), RATE)
    audio = shifted(own, RATE, shift)
    if treatment in {"resampled", "all"}:
        audio = resample(resample(audio, RATE, 11_025), 11_025, RATE)
    if treatment in {"mp3", "all"}:
        audio = through_mp3(audio, RATE, tmp_path)
    if treatment in {"gain", "all"}:
        audio = audio * np.float32(0.05)
    if treatment in {"noise", "all"}:
        level = 0.5 * float(np.sqrt(np.mean(audio**2)))
        audio = audio + rng.normal(size=len(audio)).astype(np.float32) * np.float32(level)
    offset, peak = estimate_av_offset(audio, own, RATE, max_lag=0.5)
    assert peak >= 0.5
    assert abs(offset - shift) <= 1e-3


@given(some.floats(-0.2, 0.2), some.floats(0.01, 3.0), some.integers(0, 99))
def test_noise_leaves_the_offset_accurate_or_the_peak_low(shift: float, noise: float, seed: int) -> None:
    own = np.random.default_rng(seed).normal(size=RATE)
    # Like speech, the noise is correlated between neighboring samples.
    own = np.convolve(own, np.hanning(17) / np.hanning(17).sum(), mode="same").astype(np.float32)
    audio = shifted(own, RATE, shift)
    audio = audio + np.random.default_rng(seed + 1).normal(size=RATE) * noise * audio.std()
    offset, peak = estimate_av_offset(audio, own, RATE, max_lag=0.5)
    assert peak < 0.5 or abs(offset - shift) <= 1e-3
