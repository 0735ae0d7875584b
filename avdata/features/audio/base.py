"""What an audio feature provides."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from avdata.config.schema import AudioConfig


class AudioFeature(Protocol):
    """A feature of audio, with one row per frequency and one column per hop."""

    def bins(self, config: AudioConfig) -> int:
        """Return the number of rows, F."""
        ...

    def compute(self, waveform: np.ndarray, config: AudioConfig) -> np.ndarray:
        """Compute the feature of a window.

        Args:
            waveform: float32 [n], mono at `audio.sample_rate`.
            config: the settings of section `audio`.

        Returns:
            float32 [F, 1 + n // hop_length]; column k is centered on sample k * hop_length.
        """
        ...
