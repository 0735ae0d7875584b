"""What an audio feature provides."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from avdata.config.schema import AudioConfig
from avdata.features.audio.mel_filterbank import MelFilterbank


class AudioFeature(Protocol):
    """A feature of audio, with one row per frequency and one column per hop."""

    @property
    def mel_scale(self) -> str | None:
        """Scale of the mel bands in the rows, `slaney` or `htk`; None if the rows are bins of the STFT."""
        ...

    def bins(self, config: AudioConfig) -> int:
        """Return the number of rows, F."""
        ...

    def filterbank(self, config: AudioConfig) -> MelFilterbank | None:
        """Return the filterbank that `compute` needs; None if it needs none."""
        ...

    def compute(
        self, waveform: np.ndarray, config: AudioConfig, filterbank: MelFilterbank | None = None
    ) -> np.ndarray:
        """Compute the feature of a window.

        Args:
            waveform: float32 [n], mono at `audio.sample_rate`.
            config: the settings of section `audio`.
            filterbank: the result of `feature_filterbank(config)`; None computes it if it is needed.

        Returns:
            float32 [F, 1 + n // hop_length]; column k is centered on sample k * hop_length.
        """
        ...
