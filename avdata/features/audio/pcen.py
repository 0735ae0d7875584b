"""Per-channel energy normalization (PCEN) of the mel spectrogram.

Wang et al., "Trainable frontend for robust and far-field keyword spotting", ICASSP 2017.
"""

from __future__ import annotations

import numpy as np

from avdata.config.schema import AudioConfig
from avdata.features.audio.spectrogram import mel_spectrogram


class PCEN:
    """Mel spectrogram with PCEN in place of the logarithm."""

    def bins(self, config: AudioConfig) -> int:
        """Return the number of mel bands."""
        return config.n_mels

    def compute(self, waveform: np.ndarray, config: AudioConfig) -> np.ndarray:
        """Compute the normalized mel spectrogram, float32 [n_mels, columns]."""
        return pcen(mel_spectrogram(waveform, config), config.sample_rate / config.hop_length)


def pcen(energy: np.ndarray, column_rate: float) -> np.ndarray:
    """Divide each band by its smoothed recent energy, as `librosa.pcen` does.

    The parameters are librosa's defaults: gain 0.98, bias 2, power 0.5 and a time constant of 0.4 s.
    Energies are scaled by 2^31, which librosa's documentation recommends for samples in [-1, 1].

    Args:
        energy: float32 [F, columns].
        column_rate: columns per second.

    Returns:
        float32 [F, columns].
    """
    gain, bias, power, time_constant_s, eps = 0.98, 2.0, 0.5, 0.4, 1e-6
    frames = time_constant_s * column_rate
    weight = (np.sqrt(1 + 4 * frames**2) - 1) / (2 * frames**2)
    scaled = energy.astype(np.float64) * 2.0**31
    smooth = np.empty_like(scaled)
    state = np.ones(len(scaled))
    for column in range(scaled.shape[1]):
        state = weight * scaled[:, column] + (1 - weight) * state
        smooth[:, column] = state
    normalized = scaled * np.exp(-gain * (np.log(eps) + np.log1p(smooth / eps)))
    return (bias**power * np.expm1(power * np.log1p(normalized / bias))).astype(np.float32)
