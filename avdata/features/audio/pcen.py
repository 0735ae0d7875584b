"""Per-channel energy normalization (PCEN) of the mel spectrogram.

Wang et al., "Trainable frontend for robust and far-field keyword spotting", ICASSP 2017.
"""

from __future__ import annotations

import numpy as np

from avdata.config.schema import AudioConfig
from avdata.features.audio.librosa_errors import librosa_errors
from avdata.features.audio.mel_filterbank import MelFilterbank, mel_filterbank
from avdata.features.audio.spectrogram import mel_spectrogram

ENERGY_SCALE = 2.0**31
"""Factor that librosa's documentation recommends for samples in [-1, 1]."""


class PCEN:
    """Mel spectrogram with `librosa.pcen` in place of the logarithm, with librosa's default parameters."""

    mel_scale = "slaney"

    def bins(self, config: AudioConfig) -> int:
        """Return the number of mel bands."""
        return config.n_mels

    def filterbank(self, config: AudioConfig) -> MelFilterbank | None:
        """Return librosa's filterbank."""
        return mel_filterbank(config)

    def compute(
        self, waveform: np.ndarray, config: AudioConfig, filterbank: MelFilterbank | None = None
    ) -> np.ndarray:
        """Compute the normalized mel spectrogram, float32 [n_mels, columns]."""
        energy = mel_spectrogram(waveform, config, filterbank).astype(np.float64) * ENERGY_SCALE
        with librosa_errors():
            import librosa  # noqa: PLC0415  # only workers of this feature need its 200 MB

            values = librosa.pcen(energy, sr=config.sample_rate, hop_length=config.hop_length)
        return np.asarray(values, np.float32)
