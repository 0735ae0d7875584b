"""What a clip becomes: the log-mel of its window cut by step, and the frame of each step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.align import Window, choose_window, cut, measure_offset, pad_fraction, step_times
from avdata.config import AudioConfig, Config, VideoConfig
from avdata.errors import Flag, MediaError, Reason
from avdata.media import (
    Clock,
    Picture,
    Sound,
    read_clock,
    read_pictures,
    read_pictures_decord,
    read_sound,
    read_still,
)
from avdata.recipe import Clip

if TYPE_CHECKING:
    import torch

CORRELATION_RATE = 16_000
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, slots=True)
class Features:
    """What a sample holds.

    Attributes:
        mel: float16 [T, F, L].
        frames: uint8 [T, H, W, C].
        waveform: float32 [n], the window's samples, when the config keeps them.
        window: start and end, s on the clip's axis.
        av_offset: where the separate sound starts on the axis, s, when measured.
        av_peak: the correlation there, likewise.
        duration_audio: s.
        duration_video: s; None for a still.
        pad_fraction: share of the window outside audio ∩ video.
        frame_times: when each frame came on screen, s.
        flags: what was noticed.
        source: technical facts of the files; never their metadata.
    """

    mel: np.ndarray
    frames: np.ndarray
    waveform: np.ndarray | None
    window: tuple[float, float]
    av_offset: float | None
    av_peak: float | None
    duration_audio: float | None
    duration_video: float | None
    pad_fraction: float
    frame_times: tuple[float, ...]
    flags: tuple[Flag, ...]
    source: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A sound on the clip's axis."""

    sound: Sound
    start: float
    offset: float | None = None
    peak: float | None = None
    flags: tuple[Flag, ...] = ()

    @property
    def span(self) -> tuple[float, float]:
        return self.start, self.start + len(self.sound.samples) / self.sound.rate


def extract(clip: Clip, config: Config) -> Features:
    """Decode a clip and make its sample.

    Raises:
        MediaError: the clip cannot become a sample; the reason says why.
    """
    for path in filter(None, (clip.video, clip.audio)):
        if path.is_file() and path.stat().st_size > config.quality.max_bytes:
            raise MediaError(Reason.TOO_LARGE, f"{path.name}: {path.stat().st_size:,} bytes")
    clock = None if clip.still else read_clock(clip.video, config.quality)
    placed = _place_sound(clip, config)
    flags = [*placed.flags, *_judge_sound(placed.sound, config)]
    spans = [placed.span]
    if clock is not None:
        spans.append((clock.start, clock.end))
        flags += [*clock.flags, *_judge_durations(placed, clock, config)]
    window = choose_window(config.align, spans)
    pictures = _pictures(clip, clock, window, config)
    frames = np.stack([fit_picture(picture.pixels, config.video) for picture in pictures])
    flags += _judge_pictures(clip, pictures, frames, config)
    rate = config.audio.sample_rate
    waveform = cut(
        resample(placed.sound.samples, placed.sound.rate, rate), rate, placed.start, window, config.align.pad
    )
    with one_thread():
        mel = log_mel(waveform, config)
    return Features(
        mel=mel.astype(np.float16),
        frames=frames,
        waveform=waveform if config.audio.flac else None,
        window=(round(window.start, 6), round(window.end, 6)),
        av_offset=placed.offset if placed.offset is None else round(placed.offset, 7),
        av_peak=placed.peak if placed.peak is None else round(placed.peak, 6),
        duration_audio=round(placed.span[1] - placed.span[0], 6),
        duration_video=None if clock is None else round(clock.end - clock.start, 6),
        pad_fraction=pad_fraction(window, spans),
        frame_times=tuple(round(picture.time, 6) for picture in pictures),
        flags=tuple(sorted(set(flags))),
        source={**(clock.facts if clock else {}), **placed.sound.facts},
    )


def _place_sound(clip: Clip, config: Config) -> _Placed:
    """Choose the sound and say when its first sample is heard."""
    if clip.audio is None or config.audio.source == "container" or not clip.audio.is_file():
        own = read_sound(clip.video, config.quality)
        # Where the dataset has no separate sound, the video's own is no exception.
        return _Placed(own, own.start, flags=() if clip.audio is None else (Flag.CONTAINER_AUDIO,))
    separate = read_sound(clip.audio, config.quality)
    if clip.still or config.align.correct == "none":
        return _Placed(separate, 0.0)
    try:
        own = read_sound(clip.video, config.quality)
    except MediaError:
        return _Placed(separate, 0.0, flags=(Flag.LOW_CORRELATION,))
    lag, peak = measure_offset(
        resample(separate.samples, separate.rate, CORRELATION_RATE),
        resample(own.samples, own.rate, CORRELATION_RATE),
        CORRELATION_RATE,
        config.align.max_lag,
    )
    offset = own.start + lag
    believed = peak >= config.align.min_peak
    flags = [] if believed else [Flag.LOW_CORRELATION]
    start = offset if believed and config.align.correct == "measured" else own.start
    if own.end - (start + len(separate.samples) / separate.rate) > config.align.max_mismatch:
        flags.append(Flag.AUDIO_TRUNCATED)
    return _Placed(separate, start, offset, peak, tuple(flags))


def _judge_sound(sound: Sound, config: Config) -> list[Flag]:
    quality = config.quality
    seconds = len(sound.samples) / sound.rate
    if seconds < quality.min_seconds:
        raise MediaError(Reason.TOO_SHORT, f"{seconds:.3f} s of sound")
    peak = float(np.abs(sound.samples).max())
    level = 20 * np.log10(max(peak, 1e-9))
    if level >= quality.silence_dbfs:
        return []
    if quality.silent == "quarantine":
        raise MediaError(Reason.SILENT_AUDIO, f"its peak is {level:.0f} dBFS")
    return [Flag.SILENT_AUDIO]


def _judge_durations(placed: _Placed, clock: Clock, config: Config) -> list[Flag]:
    sound = placed.span[1] - placed.span[0]
    apart = abs(sound - (clock.end - clock.start)) > config.align.max_mismatch
    return [Flag.AV_MISMATCH] if apart else []


def _judge_pictures(clip: Clip, pictures: list[Picture], frames: np.ndarray, config: Config) -> list[Flag]:
    if clip.still:
        return [Flag.STATIC_FRAMES]
    channels = frames.shape[-1]
    luma = frames @ LUMA if channels == 3 else frames[..., 0]
    brightest = float(luma.mean(axis=(1, 2)).max())
    if brightest < config.quality.black_luma:
        if config.quality.black == "quarantine":
            raise MediaError(Reason.BLACK_FRAMES, f"the brightest frame's mean is {brightest:.1f} of 255")
        return [Flag.BLACK_FRAMES]
    different = len({picture.time for picture in pictures}) > 1
    if different and all(np.array_equal(frame, frames[0]) for frame in frames[1:]):
        return [Flag.FROZEN_FRAMES]
    return []


def _pictures(clip: Clip, clock: Clock | None, window: Window, config: Config) -> list[Picture]:
    steps = config.video.frames
    if clock is None:
        return [read_still(clip.video, config.quality)] * steps
    moments = _moments(clip, clock, window, config.video)
    if config.video.decoder == "decord":
        return read_pictures_decord(clip.video, clock, moments)
    return read_pictures(clip.video, moments, config.quality)


def _moments(clip: Clip, clock: Clock, window: Window, video: VideoConfig) -> list[float]:
    """The moment whose frame stands for each step, s."""
    if video.pick == "middle":
        return [float(moment) for moment in step_times(window, video.frames)]
    every = clock.times[:: video.every]
    if video.pick == "random-of-every":
        number = int.from_bytes(hashlib.sha256(clip.key.encode()).digest()[:8])
        return [float(every[number % len(every)])] * video.frames
    return [float(every[min(step, len(every) - 1)]) for step in range(video.frames)]


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Mono samples at another rate, by soxr's high-quality filter, float32."""
    import soxr  # noqa: PLC0415

    if rate == wanted:
        return samples.astype(np.float32, copy=False)
    return np.asarray(soxr.resample(samples, rate, wanted, quality="HQ"), np.float32)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whoever calls: torch with a single thread."""
    import torch  # noqa: PLC0415

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def log_mel(waveform: np.ndarray, config: Config) -> np.ndarray:
    """The log-mel (or log-STFT) of a window's samples, cut or repeated by step.

    The spectrogram is librosa's: centred frames, the signal padded with zeros, Slaney filterbank. Column k is
    centred on sample k · hop; with layout `step` the first T · L columns are cut into T steps.

    Args:
        waveform: float32 [n], mono at `audio.sample_rate`.
        config: the settings; `video.frames` is T.

    Returns:
        float32 [T, F, L].
    """
    audio, steps = config.audio, config.video.frames
    spectrum = _normalized(_logarithm(spectrogram(waveform, audio), audio), audio)
    if audio.resize:
        spectrum = _resized(spectrum, audio.resize)
    if audio.layout == "repeat":
        return np.repeat(spectrum[None], steps, axis=0)
    columns = config.mel_columns
    return np.stack([spectrum[:, step * columns : (step + 1) * columns] for step in range(steps)])


def spectrogram(waveform: np.ndarray, audio: AudioConfig) -> np.ndarray:
    """Mel (or plain) spectrogram, float32 [F, 1 + n // hop], as `librosa.feature.melspectrogram` makes it."""
    import torch  # noqa: PLC0415

    signal = np.clip(waveform, -1, 1) if audio.clamp else waveform
    window = torch.hann_window(audio.n_fft, periodic=True)
    stft = torch.stft(
        torch.from_numpy(np.ascontiguousarray(signal, np.float32)),
        audio.n_fft,
        audio.hop,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = stft.abs() if audio.power == 1 else stft.abs() ** audio.power
    if audio.kind == "log-stft":
        return np.asarray(power.numpy())
    bank = _filterbank(audio.sample_rate, audio.n_fft, audio.n_mels, audio.fmin, audio.fmax)
    return np.asarray((torch.from_numpy(bank) @ power).numpy())


@cache
def _filterbank(rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float | None) -> np.ndarray:
    """Slaney's triangles of unit area, float32 [n_mels, 1 + n_fft // 2], as `librosa.filters.mel` has them.

    Computed here because librosa takes seconds to import, in every worker; the tests hold the two together.
    """
    low, high = _hz_to_mel(np.array([fmin, fmax or rate / 2])).tolist()
    edges = _mel_to_hz(np.linspace(low, high, n_mels + 2))
    centres = np.fft.rfftfreq(n_fft, 1 / rate)
    ramps = edges[:, None] - centres
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


def _logarithm(power: np.ndarray, audio: AudioConfig) -> np.ndarray:
    if audio.log == "ln":
        return np.asarray(np.log(power + np.float32(audio.floor)))
    values = 10 * np.log10(np.maximum(power, np.float32(audio.floor)))
    if audio.reference == "max":
        values = values - 10 * np.log10(max(float(power.max()), audio.floor))
    if audio.top_db is not None:
        values = np.maximum(values, values.max() - audio.top_db)
    return values.astype(np.float32)


def _normalized(values: np.ndarray, audio: AudioConfig) -> np.ndarray:
    if audio.normalize == "minmax":
        low, high = values.min(), values.max()
        return (values - low) / max(high - low, 1e-9)
    if audio.normalize == "zscore":
        return (values - values.mean()) / max(values.std(), 1e-9)
    return values


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from torch import from_numpy  # noqa: PLC0415
    from torch.nn.functional import interpolate  # noqa: PLC0415

    picture = from_numpy(np.ascontiguousarray(values, np.float32))[None, None]
    return np.asarray(interpolate(picture, size=size, mode="bilinear", antialias=True)[0, 0].numpy())


def fit_picture(pixels: np.ndarray, video: VideoConfig) -> np.ndarray:
    """A picture as a square of the config's size and colour: uint8 [H, W, 3] to uint8 [size, size, C].

    Scaling is torchvision's antialiased bilinear one, through the torch function that it calls.
    """
    import torch  # noqa: PLC0415

    image = torch.from_numpy(pixels).permute(2, 0, 1)
    height, width = image.shape[1:]
    size = video.size
    with one_thread():
        if video.fit == "stretch":
            image = _scaled(image, size, size)
        elif video.fit == "letterbox":
            scale = size / max(height, width)
            image = _scaled(image, max(1, round(height * scale)), max(1, round(width * scale)))
            image = _centred(image, size)
        else:
            scale = max(video.short_side or size, size) / min(height, width)
            image = _scaled(image, max(size, int(height * scale)), max(size, int(width * scale)))
            top, left = (round((side - size) / 2) for side in image.shape[1:])
            image = image[:, top : top + size, left : left + size]
    fitted = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    return (fitted @ LUMA)[..., None].astype(np.uint8) if video.colour == "grey" else fitted


def _scaled(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    from torch.nn.functional import interpolate  # noqa: PLC0415

    if image.shape[1:] == (height, width):
        return image
    return interpolate(image[None], size=(height, width), mode="bilinear", antialias=True)[0]


def _centred(image: torch.Tensor, size: int) -> torch.Tensor:
    """The image in the middle of a black square."""
    square = image.new_zeros(image.shape[0], size, size)
    top, left = ((size - side) // 2 for side in image.shape[1:])
    square[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return square
