"""Logarithm of Kaldi's mel filterbank energies, the input of AST.

The values are those of `torchaudio.compliance.kaldi.fbank` with `htk_compat=True, use_energy=False,
window_type="hanning", dither=0` of the waveform minus its mean, and a test compares them. They are computed
with numpy: importing torch costs every worker seconds and half a gigabyte.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from avdata.config.schema import AudioConfig
from avdata.features.audio.mel_filterbank import MelFilterbank
from avdata.features.audio.spectrogram import BLOCK_COLUMNS

PREEMPHASIS = 0.97

EPSILON = np.finfo(np.float32).eps
"""Lower bound of an energy, which keeps silence finite."""

FRAME_SECONDS = 0.025
"""Kaldi's default length of a frame."""

SHIFT_SECONDS = 0.01
"""Kaldi's default distance of frames."""

LOW_FREQUENCY_HZ = 20.0
"""Kaldi's default for `audio.fmin`."""


class KaldiFbank:
    """Log-mel filterbank energies of Kaldi, in frames of `audio.n_fft` samples.

    `audio.power`, `log`, `amin`, `ref` and `top_db` do not apply.
    """

    mel_scale = "htk"

    def bins(self, config: AudioConfig) -> int:
        """Return the number of mel bands."""
        return config.n_mels

    def filterbank(self, config: AudioConfig) -> MelFilterbank | None:
        """Return Kaldi's filterbank."""
        return kaldi_filterbank(config)

    def compute(
        self, waveform: np.ndarray, config: AudioConfig, filterbank: MelFilterbank | None = None
    ) -> np.ndarray:
        """Compute the energies of centered frames, float32 [n_mels, columns]."""
        signal = np.clip(waveform, -1, 1) if config.clamp else waveform
        signal = np.asarray(signal - signal.mean(dtype=np.float64), np.float32)
        return _energies(np.pad(signal, config.n_fft // 2), config, filterbank or kaldi_filterbank(config))


def kaldi_fbank(waveform: np.ndarray, sample_rate: int, n_mels: int = 128) -> np.ndarray:
    """Compute Kaldi's filterbank energies with its default frames, which lie within the waveform.

    Args:
        waveform: float32 [n], mono.
        sample_rate: Hz.
        n_mels: mel bands.

    Returns:
        float32 [frames, n_mels], of 25 ms frames every 10 ms; no frames if the waveform is shorter than one.
    """
    config = AudioConfig(
        sample_rate=sample_rate, n_fft=int(sample_rate * FRAME_SECONDS), n_mels=n_mels,
        hop_length=int(sample_rate * SHIFT_SECONDS), fmin=LOW_FREQUENCY_HZ,
    )  # fmt: skip
    if len(waveform) < config.n_fft:
        return np.zeros((0, n_mels), np.float32)
    signal = np.asarray(waveform - waveform.mean(dtype=np.float64), np.float32)
    return np.ascontiguousarray(_energies(signal, config, kaldi_filterbank(config)).T)


def _energies(signal: np.ndarray, config: AudioConfig, filterbank: MelFilterbank) -> np.ndarray:
    """Return the log energies of the frames within a signal, float32 [n_mels, frames]."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, config.n_fft)[:: config.hop_length]
    size, window = _fft_size(config.n_fft), _hanning(config.n_fft)
    energies = np.empty((config.n_mels, len(frames)), np.float32)
    for start in range(0, len(frames), BLOCK_COLUMNS):
        block = frames[start : start + BLOCK_COLUMNS]
        block = block - block.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        previous = np.concatenate([block[:, :1], block[:, :-1]], axis=1)
        spectrum = np.fft.rfft((block - np.float32(PREEMPHASIS) * previous) * window, size)
        power = np.asarray(spectrum.real**2 + spectrum.imag**2, np.float32)
        energies[:, start : start + len(block)] = filterbank.apply(np.ascontiguousarray(power.T))
    return np.log(np.maximum(energies, EPSILON))


@cache
def kaldi_filterbank(config: AudioConfig) -> MelFilterbank:
    """Compute Kaldi's filterbank: triangles on the HTK mel scale, without the bin at half the sample rate."""
    size = _fft_size(config.n_fft)
    top = config.fmax or config.sample_rate / 2
    low, high = _mel(np.array([config.fmin, top])).tolist()
    edges = np.linspace(low, high, config.n_mels + 2)[:, None]
    bins = _mel(np.arange(size // 2) * config.sample_rate / size)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (center - left), (right - bins) / (right - center))
    return MelFilterbank.from_dense(np.maximum(triangles, 0).astype(np.float32))


def _mel(frequencies: np.ndarray) -> np.ndarray:
    return np.asarray(1127.0 * np.log(1.0 + frequencies / 700.0))


def _fft_size(window: int) -> int:
    """Return the smallest power of two that is at least `window`."""
    return 1 << (window - 1).bit_length()


@cache
def _hanning(size: int) -> np.ndarray:
    """Return the symmetric Hann window, float32."""
    return np.hanning(size).astype(np.float32)
