"""Logarithm of the mel spectrogram."""

from __future__ import annotations

import numpy as np

from avdata.config.schema import AudioConfig
from avdata.features.audio.mel_filterbank import MelFilterbank, mel_filterbank
from avdata.features.audio.spectrogram import compress_log, mel_spectrogram


class LogMel:
    """Log-mel spectrogram, on the scale of `audio.log`."""

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
        """Compute the log-mel spectrogram, float32 [n_mels, columns]."""
        return compress_log(mel_spectrogram(waveform, config, filterbank), config)
