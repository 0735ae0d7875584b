"""What a clip becomes: the log-mel of its window cut by step, and the frame of each step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avdata.config.schema import Config, VideoConfig
from avdata.errors import Flag, MediaError
from avdata.features.alignment import Window, choose_window, cut, measure_offset, pad_fraction, step_times
from avdata.features.audio.spectrogram import log_mel, resample
from avdata.features.face_crop import face_square
from avdata.features.quality import judge_clock, judge_files, judge_frames, judge_sound
from avdata.media.audio import read_sound
from avdata.media.decoders.decord import read_pictures_decord
from avdata.media.image import read_still
from avdata.media.resize import fit_picture
from avdata.media.types import Clock, Picture, Sound
from avdata.media.video import Film, open_film
from avdata.recipe import Clip

CORRELATION_RATE = 16_000


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

    def loudness(self) -> tuple[np.ndarray, int, float]:
        """The samples' squares, their rate, and when the first one is heard."""
        return np.square(self.sound.samples, dtype=np.float64), self.sound.rate, self.start


def extract(clip: Clip, config: Config) -> Features:
    """Decode a clip and make its sample.

    Raises:
        MediaError: the clip cannot become a sample; the reason says why.
    """
    judge_files((clip.video, clip.audio), config.quality)
    if clip.still:
        return _assemble(clip, None, _separate_sound(clip, config), config)
    has_own = clip.audio is None or config.audio.source == "container" or not clip.audio.is_file()
    with open_film(clip.video, config.quality, sound=has_own or config.align.correct != "none") as film:
        if has_own:
            own = film.own_sound()
            # Where the dataset has no separate sound, the video's own is no exception.
            placed = _Placed(own, own.start, flags=() if clip.audio is None else (Flag.CONTAINER_AUDIO,))
        else:
            placed = _beside(film, _separate_sound(clip, config), config)
        return _assemble(clip, film, placed, config)


def _assemble(clip: Clip, film: Film | None, placed: _Placed, config: Config) -> Features:
    """The features of a clip whose sound has its place; `film` is None for a still."""
    flags = [*placed.flags, *judge_sound(placed.sound, config.quality)]
    spans = [placed.span]
    clock = None
    if film is not None:
        clock = film.clock
        spans.append((clock.start, clock.end))
        flags += judge_clock(placed.span, clock, config)
    window = choose_window(
        config.align, spans, steps=config.video.frames, event=clip.event, loudness=placed.loudness
    )
    pictures, noticed = _pictures(clip, film, window, config)
    flags += noticed
    frames = np.stack([picture.pixels for picture in pictures])
    times = tuple(round(picture.time, 6) for picture in pictures)
    flags += [Flag.STATIC_FRAMES] if film is None else judge_frames(frames, times, config.quality)
    rate = config.audio.sample_rate
    samples = resample(placed.sound.samples, placed.sound.rate, rate)
    waveform = cut(samples, rate, placed.start, window, config.align.pad)
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
        frame_times=times,
        flags=tuple(sorted(set(flags))),
        source={**(clock.facts if clock else {}), **placed.sound.facts},
    )


def _separate_sound(clip: Clip, config: Config) -> _Placed:
    """The sound of a clip's own audio file, beginning at 0; of a still's file when it has no other."""
    path = clip.audio if clip.audio is not None and clip.audio.is_file() else clip.video
    return _Placed(read_sound(path, config.quality), 0.0)


def _beside(film: Film, placed: _Placed, config: Config) -> _Placed:
    """A separate sound where the config wants it on the axis of the film."""
    if config.align.correct == "none":
        return placed
    try:
        own = film.own_sound()
    except MediaError:
        return replace(placed, flags=(Flag.LOW_CORRELATION,))
    separate = placed.sound
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


def _pictures(
    clip: Clip, film: Film | None, window: Window, config: Config
) -> tuple[list[Picture], list[Flag]]:
    """The picture of each step, uint8 [size, size, C], and what was noticed of them."""
    video = config.video
    if film is None:
        return _fitted([read_still(clip.video, config.quality)] * video.frames, video)
    moments = _moments(clip, film.clock, window, config)
    if video.decoder == "decord":
        return _fitted(read_pictures_decord(clip.video, film.clock, moments), video)
    if video.fit == "face":
        return _fitted(film.pictures(moments, seek=video.seek), video)
    return film.pictures(moments, seek=video.seek, video=video), []


def _fitted(pictures: Sequence[Picture], video: VideoConfig) -> tuple[list[Picture], list[Flag]]:
    """Whole pictures as squares; one that stands for several steps is made once."""
    whole = {id(picture): picture for picture in pictures}
    square = face_square([picture.pixels for picture in whole.values()]) if video.fit == "face" else None
    made = {
        name: replace(one, pixels=fit_picture(square.of(one.pixels) if square else one.pixels, video))
        for name, one in whole.items()
    }
    missed = video.fit == "face" and square is None
    return [made[id(picture)] for picture in pictures], [Flag.NO_FACE] if missed else []


def _moments(clip: Clip, clock: Clock, window: Window, config: Config) -> list[float]:
    """The moment whose frame stands for each step, s."""
    video = config.video
    if video.pick == "middle":
        return [float(moment) for moment in step_times(window, video.frames, config.align.segment)]
    every = clock.times[:: video.every]
    if video.pick == "random-of-every":
        number = int.from_bytes(hashlib.sha256(clip.key.encode()).digest()[:8])
        return [float(every[number % len(every)])] * video.frames
    return [float(every[min(step, len(every) - 1)]) for step in range(video.frames)]
