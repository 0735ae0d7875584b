"""A window's samples as a log-mel (or log-STFT) picture, cut by step; librosa's numbers without librosa."""

from __future__ import annotations

from functools import cache

import numpy as np

from avdata.config.schema import AudioConfig, Config


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Mono samples at another rate, by soxr's high-quality filter, float32."""
    import soxr  # noqa: PLC0415

    if rate == wanted:
        return samples.astype(np.float32, copy=False)
    return np.asarray(soxr.resample(samples, rate, wanted, quality="HQ"), np.float32)


def compute_audio_feature(waveform: np.ndarray, config: Config) -> np.ndarray:
    """The log-mel (or log-STFT) of a window's samples, cut or repeated by step.

    The spectrogram is librosa's: centerd frames, the signal padded with zeros, Slaney filterbank. Column k is
    centerd on sample k · hop; with layout `step` each step has the L columns centerd inside it.

    Args:
        waveform: float32 [n], mono at `audio.sample_rate`.
        config: the settings; `video.num_frames` is T.

    Returns:
        float32 [T, F, L].
    """
    audio, steps = config.audio, config.video.num_frames
    spectrum = _normalized(_compress(spectrogram(waveform, audio), audio), audio)
    if audio.resize:
        spectrum = _resized(spectrum, audio.resize)
    if audio.layout == "repeat":
        return np.repeat(spectrum[None], steps, axis=0)
    columns, stride = config.mel_columns, config.step_columns
    return np.stack([spectrum[:, step * stride : step * stride + columns] for step in range(steps)])


BLOCK = 64
"""Columns transformed at once: few enough to stay in the processor's cache, which halves the time."""


def spectrogram(waveform: np.ndarray, audio: AudioConfig) -> np.ndarray:
    """Mel (or plain) spectrogram, float32 [F, 1 + n // hop], as `librosa.feature.melspectrogram` makes it.

    In numpy, and not by torch, which is ten times as much to load and to hold in memory as all the rest of a
    worker; bands are summed by elements, so that no library's threads decide the order of a sum.
    """
    signal = np.clip(waveform, -1, 1) if audio.clamp else waveform
    padded = np.pad(signal.astype(np.float32, copy=False), audio.n_fft // 2)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, audio.n_fft)[:: audio.hop_length]
    window = _hann(audio.n_fft)
    power = np.empty((1 + audio.n_fft // 2, len(pieces)), np.float32)
    for start in range(0, len(pieces), BLOCK):
        spectrum = np.fft.rfft(pieces[start : start + BLOCK] * window)
        power[:, start : start + BLOCK] = _power(spectrum, audio.power).T
    if audio.feature == "log-stft":
        return power
    mels = np.zeros((audio.n_mels, len(pieces)), np.float32)
    for band, (first, weights) in enumerate(_mel_filters(audio)):
        if len(weights):
            np.einsum("k,kc->c", weights, power[first : first + len(weights)], out=mels[band])
    return mels


def _power(spectrum: np.ndarray, exponent: float) -> np.ndarray:
    """|z| to an exponent."""
    if exponent == 2:
        return np.asarray(spectrum.real**2 + spectrum.imag**2)
    return np.abs(spectrum) if exponent == 1 else np.abs(spectrum) ** exponent


@cache
def _hann(size: int) -> np.ndarray:
    """The periodic Hann window, float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def _mel_filters(audio: AudioConfig) -> list[tuple[int, np.ndarray]]:
    return _sparse_mel_filters(audio.sample_rate, audio.n_fft, audio.n_mels, audio.fmin, audio.fmax)


@cache
def _sparse_mel_filters(
    rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float | None
) -> list[tuple[int, np.ndarray]]:
    """Of each band its first bin and its weights that are not zero; a narrow one has none."""
    cut = []
    for weights in _filterbank(rate, n_fft, n_mels, fmin, fmax):
        inside = np.flatnonzero(weights)
        cut.append((int(inside[0]), weights[inside[0] : inside[-1] + 1]) if len(inside) else (0, weights[:0]))
    return cut


@cache
def _filterbank(rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float | None) -> np.ndarray:
    """Slaney's triangles of unit area, float32 [n_mels, 1 + n_fft // 2], as `librosa.filters.mel` has them.

    Computed here because librosa takes seconds to import, in every worker; the tests hold the two together.
    """
    low, high = _hz_to_mel(np.array([fmin, fmax or rate / 2])).tolist()
    edges = _mel_to_hz(np.linspace(low, high, n_mels + 2))
    centers = np.fft.rfftfreq(n_fft, 1 / rate)
    ramps = edges[:, None] - centers
    widths = np.diff(edges)
    rising, falling = -ramps[:-2] / widths[:-1, None], ramps[2:] / widths[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def _hz_to_mel(hertz: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    return np.where(
        hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4)
    )


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))


def _compress(power: np.ndarray, audio: AudioConfig) -> np.ndarray:
    if audio.log == "pcen":
        return pcen(power, audio.sample_rate / audio.hop_length)
    if audio.log == "ln":
        return np.asarray(np.log(power + np.float32(audio.amin)))
    values = 10 * np.log10(np.maximum(power, np.float32(audio.amin)))
    if audio.ref == "max":
        values = values - 10 * np.log10(max(float(power.max()), audio.amin))
    if audio.top_db is not None:
        values = np.maximum(values, values.max() - audio.top_db)
    return values.astype(np.float32)


def pcen(energy: np.ndarray, rate: float) -> np.ndarray:
    """Per-channel energy normalization: each band against its own recent past, as `librosa.pcen` has it.

    Its defaults are used (Wang et al., 2017: gain 0.98, bias 2, power 0.5, 0.4 s), and the scale of 32-bit
    samples that its documentation advises.

    Args:
        energy: float32 [F, columns].
        rate: columns a second.

    Returns:
        float32 [F, columns].
    """
    gain, bias, power, seconds, small = 0.98, 2.0, 0.5, 0.4, 1e-6
    frames = seconds * rate
    keep = (np.sqrt(1 + 4 * frames**2) - 1) / (2 * frames**2)
    loud = energy.astype(np.float64) * 2.0**31
    smooth = np.empty_like(loud)
    past = np.ones(len(loud))
    for column in range(loud.shape[1]):
        past = keep * loud[:, column] + (1 - keep) * past
        smooth[:, column] = past
    scaled = loud * np.exp(-gain * (np.log(small) + np.log1p(smooth / small)))
    return (bias**power * np.expm1(power * np.log1p(scaled / bias))).astype(np.float32)


def _normalized(values: np.ndarray, audio: AudioConfig) -> np.ndarray:
    if audio.normalize == "minmax":
        low, high = values.min(), values.max()
        return (values - low) / max(high - low, 1e-9)
    if audio.normalize == "zscore":
        return (values - values.mean()) / max(values.std(), 1e-9)
    return values


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Another size, (bins, columns), by an antialiased triangle filter."""
    from PIL import Image  # noqa: PLC0415

    frame = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(frame.resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float32)
