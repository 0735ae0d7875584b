"""Mels of torchaudio against those that a preparation stores."""

from __future__ import annotations

from typing import Any

import librosa
import numpy as np
import pytest
import torch

from avdata.config.schema import Config
from avdata.errors import UsageError
from avdata.features.audio import compute_audio_feature
from avdata.streaming.collate import MelNormalization
from snnergy.layers.waveform_mel import WaveformMel

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "repeat": {"layout": "repeat"},
    "clamp": {"clamp": True},
    "ln": {"log": "ln", "amin": 1e-6},
    "magnitude": {"power": 1.0},
    "cube": {"power": 3.0, "amin": 1e-12},
    "max": {"ref": "max", "top_db": 80.0},
    "top_db": {"top_db": 30.0},
    "bands": {"n_mels": 40, "fmin": 50.0, "fmax": 7000.0},
    "stft": {"feature": "log-stft", "n_fft": 512},
    "odd window": {"feature": "log-stft", "n_fft": 511},
    "minmax": {"normalize": "minmax"},
    "zscore": {"normalize": "zscore", "layout": "repeat"},
    "rate": {"sample_rate": 22_050, "hop_length": 441},
}


def config_of(audio: dict[str, Any], **others: Any) -> Config:
    return Config.model_validate({"audio": audio, "align": {"seconds": 0.64}, **others})


def waveforms(config: Config, count: int = 3) -> np.ndarray:
    """Return noise under chirps of different loudness; the first one exceeds ±1 and ends in silence."""
    rng, samples = np.random.default_rng(0), round(0.64 * config.audio.sample_rate)
    chirp = librosa.chirp(fmin=60, fmax=6000, sr=config.audio.sample_rate, length=samples)
    loudness = 10.0 ** -np.arange(count)[:, None]
    made = 1.5 * loudness * (chirp + 0.1 * rng.standard_normal((count, samples)))
    made[0, -samples // 8 :] = 0
    return made.astype(np.float32)


@pytest.mark.parametrize("name", SETTINGS)
def test_waveform_mel_equals_stored_mel(name: str) -> None:
    config = config_of(SETTINGS[name])
    audio = waveforms(config)
    made = WaveformMel(config)(torch.from_numpy(audio))
    stored = np.stack([compute_audio_feature(row, config) for row in audio])
    assert made.shape == (3, 4, 1, *stored.shape[2:])
    np.testing.assert_allclose(made[:, :, 0], stored.astype(np.float16), rtol=2e-3, atol=2e-3)


def test_waveform_mel_equals_librosa() -> None:
    config = config_of({"layout": "repeat"})
    audio = waveforms(config)
    power = librosa.feature.melspectrogram(
        y=audio, sr=16_000, n_fft=1024, hop_length=80, n_mels=128, pad_mode="constant"
    )
    expected = librosa.power_to_db(power, amin=1e-10, top_db=None)
    made = WaveformMel(config)(torch.from_numpy(audio))
    np.testing.assert_allclose(made[:, 0, 0], expected, atol=2e-3)


def test_waveform_mel_cuts_overlapping_segments() -> None:
    align = {"window": "segments", "seconds": 0.2, "hop": 0.1}
    config = config_of({}, align=align)
    audio = waveforms(config)[:, : round(0.5 * 16_000)]
    made = WaveformMel(config)(torch.from_numpy(audio))
    stored = np.stack([compute_audio_feature(row, config) for row in audio])
    assert made.shape[-1] == 40
    np.testing.assert_allclose(made[:, :, 0], stored, rtol=2e-3, atol=2e-3)


def test_waveform_mel_does_not_depend_on_other_samples() -> None:
    config = config_of({"top_db": 30.0, "ref": "max", "normalize": "minmax"})
    audio = torch.from_numpy(waveforms(config))
    mel = WaveformMel(config)
    torch.testing.assert_close(mel(audio)[1:2], mel(audio[1:2]))


def test_waveform_mel_is_normalized_by_statistics() -> None:
    config = config_of({})
    audio = torch.from_numpy(waveforms(config))
    mean, factor = torch.linspace(-40, -20, 128)[:, None], torch.linspace(0.1, 0.2, 128)[:, None]
    made = WaveformMel(config, MelNormalization(mean, factor))(audio)
    torch.testing.assert_close(made, (WaveformMel(config)(audio) - mean) * factor)
    assert not WaveformMel(config, MelNormalization(mean, factor)).state_dict().keys() & {"mean", "factor"}


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ({"feature": "pcen"}, "audio.feature=pcen"),
        ({"resize": (64, 64), "layout": "repeat"}, r"audio.resize=\(64, 64\)"),
        ({"n_fft": 1023}, "audio.n_fft=1023"),
        ({"sample_rate": 11_025, "hop_length": 9}, "audio.sample_rate=11025"),
    ],
)
def test_waveform_mel_rejects_settings_without_equivalent(audio: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"does not support {message}") as raised:
        WaveformMel(config_of(audio))
    assert "--features stored" in str(raised.value.hint)
