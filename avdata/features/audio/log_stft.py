"""Logarithm of the short-time Fourier transform."""

from __future__ import annotations

import numpy as np

from avdata.config.schema import AudioConfig
from avdata.features.audio.mel_filterbank import MelFilterbank
from avdata.features.audio.spectrogram import compress_log, spectrogram


class LogSTFT:
    """Log-magnitude or log-power STFT, on the scale of `audio.log`."""

    mel_scale = None

    def bins(self, config: AudioConfig) -> int:
        """Return the number of bins of the STFT."""
        return config.n_fft // 2 + 1

    def filterbank(self, config: AudioConfig) -> MelFilterbank | None:
        """Return None: the rows are no mel bands."""
        return None

    def compute(
        self, waveform: np.ndarray, config: AudioConfig, filterbank: MelFilterbank | None = None
    ) -> np.ndarray:
        """Compute the log-STFT, float32 [1 + n_fft // 2, columns]."""
        return compress_log(spectrogram(waveform, config), config)
