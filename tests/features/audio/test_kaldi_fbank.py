"""Kaldi's filterbank against torchaudio."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi

from avdata.config.schema import build_config
from avdata.errors import UsageError
from avdata.features.audio import compute_audio_feature
from avdata.features.audio.kaldi_fbank import kaldi_fbank
from avdata.testing.media import Scene, scene_audio


def torchaudio_fbank(waveform: np.ndarray, rate: int, **options: float) -> np.ndarray:
    """Return the filterbank with the parameters of OGM-GE's data/KineticSound/process_audio.py."""
    signal = torch.from_numpy(waveform)[None]
    settings = {"num_mel_bins": 128, "frame_shift": 10, **options}
    return kaldi.fbank(
        signal - signal.mean(), htk_compat=True, sample_frequency=rate, use_energy=False,
        window_type="hanning", dither=0.0, **settings,
    ).numpy()  # fmt: skip


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_kaldi_fbank_equals_torchaudio(rate: int, offset: float) -> None:
    waveform = scene_audio(Scene(seconds=1.7, beeps=(0.4,), seed=rate), rate) + np.float32(offset)
    values = kaldi_fbank(waveform, rate)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, torchaudio_fbank(waveform, rate), atol=2e-3)


def test_kaldi_fbank_of_a_waveform_shorter_than_a_frame_has_no_rows() -> None:
    assert kaldi_fbank(np.ones(399, np.float32), 16_000).shape == (0, 128)
    assert kaldi_fbank(np.ones(400, np.float32), 16_000).shape == (1, 128)


def test_feature_kaldi_fbank_is_torchaudios_of_the_padded_window_with_the_settings() -> None:
    audio = {
        "feature": "kaldi-fbank",
        "n_fft": 400,
        "hop_length": 160,
        "fmin": 40.0,
        "fmax": 7_000.0,
        "n_mels": 80,
    }
    config = build_config({"audio": {**audio, "normalize": "ast"}})
    waveform = scene_audio(Scene(seconds=2.56, beeps=(1.0,), seed=3), 16_000)
    padded = np.pad(waveform - waveform.mean(), 200)
    signal = torch.from_numpy(padded)[None]
    expected = kaldi.fbank(
        signal, htk_compat=True, use_energy=False, window_type="hanning", dither=0.0, num_mel_bins=80,
        low_freq=40.0, high_freq=7_000.0,
    ).numpy()  # fmt: skip
    expected = (expected + 4.503877) / (2 * 5.141276)
    values = compute_audio_feature(waveform, config)
    assert values.shape == (4, 80, 64)
    np.testing.assert_allclose(np.concatenate(values, axis=1), expected[:256].T, atol=1e-3)


def test_normalize_ast_requires_kaldi_fbank() -> None:
    with pytest.raises(UsageError, match=r"audio\.normalize=ast requires audio\.feature=kaldi-fbank"):
        build_config({"audio": {"normalize": "ast"}})
