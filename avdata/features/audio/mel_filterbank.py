"""Mel filterbank of librosa, in a form small enough for every shard job.

Workers receive the filterbank from the parent process: importing `librosa.filters` takes a second and 150 MB.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np

from avdata.config.schema import AudioConfig
from avdata.features.audio.librosa_errors import librosa_errors


@dataclass(frozen=True, slots=True, eq=False)
class MelFilterbank:
    """Mel filterbank without its zeros: 5 kB instead of 260 kB with the default settings.

    Attributes:
        first_bins: int32 [n_mels], the first STFT bin of each band.
        sizes: int32 [n_mels], the number of bins of each band; a narrow band may have none.
        weights: float32 [sum of sizes], the weights of all bands.
    """

    first_bins: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray

    @classmethod
    def from_dense(cls, weights: np.ndarray) -> MelFilterbank:
        """Return the filterbank of a matrix, float32 [n_mels, bins], whose rows are triangles."""
        is_used = weights > 0
        # The filters are triangles: the bins of a band are adjacent.
        return cls(
            first_bins=is_used.argmax(axis=1).astype(np.int32),
            sizes=is_used.sum(axis=1).astype(np.int32),
            weights=weights[is_used],
        )

    def apply(self, power: np.ndarray) -> np.ndarray:
        """Sum the bins of each band.

        einsum instead of a matrix product, so that the order of a sum does not depend on a library's threads.

        Args:
            power: float32 [1 + n_fft // 2, columns].

        Returns:
            float32 [n_mels, columns].
        """
        mels = np.zeros((len(self.sizes), power.shape[1]), np.float32)
        start = 0
        for band, (first, size) in enumerate(zip(self.first_bins.tolist(), self.sizes.tolist(), strict=True)):
            if size:
                weights = self.weights[start : start + size]
                np.einsum("k,kc->c", weights, power[first : first + size], out=mels[band])
            start += size
        return mels


@cache
def mel_filterbank(config: AudioConfig) -> MelFilterbank:
    """Compute `librosa.filters.mel` for the settings of section `audio`."""
    with librosa_errors(), warnings.catch_warnings():
        import librosa  # noqa: PLC0415  # see the module

        # A band between two bins is empty: a property of the settings, and no error.
        warnings.filterwarnings("ignore", "Empty filters detected", UserWarning)
        dense = librosa.filters.mel(
            sr=config.sample_rate,
            n_fft=config.n_fft,
            n_mels=config.n_mels,
            fmin=config.fmin,
            fmax=config.fmax,
        )
    return MelFilterbank.from_dense(dense)
