"""Spectrograms with the values of librosa, and what features do to them.

The STFT is numpy's: librosa's needs twice the time and five times the memory of a worker, torch's even more.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from avdata.config.schema import AudioConfig
from avdata.features.audio.mel_filterbank import MelFilterbank, mel_filterbank

BLOCK_COLUMNS = 64
"""Columns transformed at once: few enough to stay in the processor's cache, which halves the time."""


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample mono samples with soxr's high-quality filter; rates in Hz, float32 [n]."""
    import soxr  # noqa: PLC0415

    if rate == new_rate:
        return samples.astype(np.float32, copy=False)
    return np.asarray(soxr.resample(samples, rate, new_rate, quality="HQ"), np.float32)


def spectrogram(waveform: np.ndarray, config: AudioConfig) -> np.ndarray:
    """Compute |STFT| to the power of `audio.power`.

    The values are librosa's: centered frames, zero padding, periodic Hann window.

    Returns:
        float32 [1 + n_fft // 2, 1 + n // hop_length].
    """
    signal = np.clip(waveform, -1, 1) if config.clamp else waveform
    padded = np.pad(signal.astype(np.float32, copy=False), config.n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
    window = _hann(config.n_fft)
    power = np.empty((1 + config.n_fft // 2, len(frames)), np.float32)
    for start in range(0, len(frames), BLOCK_COLUMNS):
        spectrum = np.fft.rfft(frames[start : start + BLOCK_COLUMNS] * window)
        power[:, start : start + BLOCK_COLUMNS] = _power(spectrum, config.power).T
    return power


def mel_spectrogram(
    waveform: np.ndarray, config: AudioConfig, filterbank: MelFilterbank | None = None
) -> np.ndarray:
    """Compute the mel spectrogram with the values of `librosa.feature.melspectrogram`.

    Args:
        waveform: float32 [n], mono at `audio.sample_rate`.
        config: the settings of section `audio`.
        filterbank: the result of `mel_filterbank(config)`; None computes it, which imports librosa.

    Returns:
        float32 [n_mels, 1 + n // hop_length].
    """
    return (filterbank or mel_filterbank(config)).apply(spectrogram(waveform, config))


def compress_log(power: np.ndarray, config: AudioConfig) -> np.ndarray:
    """Take the logarithm of a spectrogram by `audio.log`, `amin`, `ref` and `top_db`."""
    if config.log == "ln":
        return np.asarray(np.log(power + np.float32(config.amin)))
    values = 10 * np.log10(np.maximum(power, np.float32(config.amin)))
    if config.ref == "max":
        values = values - 10 * np.log10(max(float(power.max()), config.amin))
    if config.top_db is not None:
        values = np.maximum(values, values.max() - config.top_db)
    return values.astype(np.float32)


AST_MEAN, AST_STD = -4.503877, 5.141276
"""Mean and standard deviation of AST's input in the public code of OGM-GE and its successors."""


def normalize(values: np.ndarray, method: str) -> np.ndarray:
    """Normalize a sample's feature, as `audio.normalize` defines it: by its own values, or those of AST."""
    if method == "ast":
        return np.asarray((values - np.float32(AST_MEAN)) / np.float32(2 * AST_STD))
    if method == "minmax":
        low, high = values.min(), values.max()
        return (values - low) / max(high - low, 1e-9)
    if method == "zscore":
        return (values - values.mean()) / max(values.std(), 1e-9)
    return values


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a feature to (bins, columns) with an antialiased triangle filter."""
    from PIL import Image  # noqa: PLC0415

    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float32)


def _power(spectrum: np.ndarray, exponent: float) -> np.ndarray:
    if exponent == 2:
        return np.asarray(spectrum.real**2 + spectrum.imag**2)
    return np.abs(spectrum) if exponent == 1 else np.abs(spectrum) ** exponent


@cache
def _hann(size: int) -> np.ndarray:
    """Return the periodic Hann window, float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)
