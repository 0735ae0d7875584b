"""Properties of every entry of `AUDIO_FEATURES`."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from avdata.config.schema import AudioConfig, build_config
from avdata.features.alignment import Window, slice_audio
from avdata.features.audio import AUDIO_FEATURES, compute_audio_feature, feature_bins
from avdata.testing.media import Scene, scene_audio

WAVEFORM = scene_audio(Scene(seconds=2.56, beeps=(1.0,), seed=2), 16_000)


def test_features_are_the_values_of_audio_feature() -> None:
    assert tuple(AUDIO_FEATURES) == get_args(AudioConfig.model_fields["feature"].annotation)


@pytest.mark.parametrize("name", AUDIO_FEATURES)
@pytest.mark.parametrize(("n_fft", "hop_length"), [(1024, 80), (511, 128)])
def test_feature_has_its_bins_and_one_column_per_hop(name: str, n_fft: int, hop_length: int) -> None:
    config = AudioConfig.model_validate({"feature": name, "n_fft": n_fft, "hop_length": hop_length})
    values = AUDIO_FEATURES[name].compute(WAVEFORM, config)
    assert values.dtype == np.float32
    columns = 1 + (len(WAVEFORM) - n_fft % 2) // hop_length
    assert values.shape == (AUDIO_FEATURES[name].bins(config), columns)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", AUDIO_FEATURES)
def test_feature_is_deterministic_and_leaves_the_waveform_unchanged(name: str) -> None:
    waveform, config = WAVEFORM.copy(), AudioConfig.model_validate({"feature": name, "clamp": True})
    first, second = (AUDIO_FEATURES[name].compute(waveform, config) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert np.array_equal(waveform, WAVEFORM)


@pytest.mark.parametrize("name", AUDIO_FEATURES)
def test_feature_of_silence_is_finite(name: str) -> None:
    config = AudioConfig.model_validate({"feature": name})
    assert np.isfinite(AUDIO_FEATURES[name].compute(np.zeros_like(WAVEFORM), config)).all()


@pytest.mark.parametrize("name", AUDIO_FEATURES)
def test_feature_of_a_column_is_centered_on_its_sample(name: str) -> None:
    impulse = np.zeros_like(WAVEFORM)
    impulse[300 * 80] = 1.0
    values = AUDIO_FEATURES[name].compute(impulse, AudioConfig.model_validate({"feature": name}))
    energy = values.sum(axis=0)
    assert abs(int(np.flatnonzero(energy > energy.min() + 1e-3)[0]) - (300 - 6)) <= 1


@pytest.mark.parametrize("name", AUDIO_FEATURES)
@pytest.mark.parametrize(
    "audio", [{}, {"layout": "repeat"}, {"layout": "repeat", "resize": [40, 60]}, {"normalize": "zscore"}]
)
def test_stored_feature_has_the_shape_of_the_settings(name: str, audio: dict[str, object]) -> None:
    config = build_config({"audio": {"feature": name, **audio}})
    values = compute_audio_feature(WAVEFORM, config)
    assert values.dtype == np.float32
    assert values.shape == (config.video.num_frames, feature_bins(config.audio), config.mel_columns)


@pytest.mark.parametrize("n_fft", [1023, 1024])
@pytest.mark.parametrize("seconds", [2.55998, 2.56, 2.56002])
def test_repeated_feature_has_mel_columns(seconds: float, n_fft: int) -> None:
    config = build_config({"audio": {"layout": "repeat", "n_fft": n_fft}, "align": {"seconds": seconds}})
    waveform = slice_audio(np.zeros(64_000, np.float32), 16_000, 0.0, Window(0.0, seconds), "zeros")
    assert compute_audio_feature(waveform, config).shape[2] == config.mel_columns
