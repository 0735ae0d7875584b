"""What a clip becomes: the log-mel of its window cut by step, and the frame of each step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avdata.config.schema import Config, VideoConfig
from avdata.errors import MediaError, SampleFlag
from avdata.features.alignment import (
    Window,
    estimate_av_offset,
    pad_fraction,
    select_window,
    slice_audio,
    step_centers,
)
from avdata.features.audio import compute_audio_feature
from avdata.features.audio.spectrogram import resample
from avdata.features.face_crop import detect_face_box
from avdata.features.quality import check_audio, check_durations, check_file_sizes, check_frames
from avdata.media.audio import decode_audio
from avdata.media.decoders import DECODERS
from avdata.media.image import read_image
from avdata.media.resize import resize_image
from avdata.media.types import AudioTrack, Frame, FrameTimes
from avdata.media.video import VideoFile, open_video
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
    flags: tuple[SampleFlag, ...]
    source: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _AlignedAudio:
    """A sound on the clip's axis."""

    audio: AudioTrack
    start: float
    offset: float | None = None
    peak: float | None = None
    flags: tuple[SampleFlag, ...] = ()

    @property
    def span(self) -> tuple[float, float]:
        return self.start, self.start + len(self.audio.samples) / self.audio.rate

    def loudness(self) -> tuple[np.ndarray, int, float]:
        """The samples' squares, their rate, and when the first one is heard."""
        return np.square(self.audio.samples, dtype=np.float64), self.audio.rate, self.start


def extract_features(clip: Clip, config: Config) -> Features:
    """Decode a clip and make its sample.

    Raises:
        MediaError: the clip cannot become a sample; the reason says why.
    """
    check_file_sizes((clip.video, clip.audio), config.quality)
    if clip.is_image:
        return _assemble(clip, None, _separate_audio(clip, config), config)
    has_own = clip.audio is None or config.audio.source == "container" or not clip.audio.is_file()
    with open_video(
        clip.video, config.quality, audio=has_own or config.align.offset_correction != "none"
    ) as video_file:
        if has_own:
            own = video_file.audio_track()
            # Where the dataset has no separate sound, the video's own is no exception.
            placed = _AlignedAudio(
                own, own.start, flags=() if clip.audio is None else (SampleFlag.CONTAINER_AUDIO,)
            )
        else:
            placed = _align_audio(video_file, _separate_audio(clip, config), config)
        return _assemble(clip, video_file, placed, config)


def _assemble(clip: Clip, video_file: VideoFile | None, placed: _AlignedAudio, config: Config) -> Features:
    """The features of a clip whose sound has its place; `video_file` is None for a still."""
    flags = [*placed.flags, *check_audio(placed.audio, config.quality)]
    spans = [placed.span]
    frame_times = None
    if video_file is not None:
        frame_times = video_file.frame_times
        spans.append((frame_times.start, frame_times.end))
        flags += check_durations(placed.span, frame_times, config)
    window = select_window(
        config.align, spans, steps=config.video.num_frames, event=clip.event, loudness=placed.loudness
    )
    pictures, noticed = _step_frames(clip, video_file, window, config)
    flags += noticed
    frames = np.stack([frame.pixels for frame in pictures])
    times = tuple(round(frame.time, 6) for frame in pictures)
    flags += [SampleFlag.STATIC_FRAMES] if video_file is None else check_frames(frames, times, config.quality)
    rate = config.audio.sample_rate
    samples = resample(placed.audio.samples, placed.audio.rate, rate)
    waveform = slice_audio(samples, rate, placed.start, window, config.align.pad)
    mel = compute_audio_feature(waveform, config)
    return Features(
        mel=mel.astype(np.float16),
        frames=frames,
        waveform=waveform if config.audio.flac else None,
        window=(round(window.start, 6), round(window.end, 6)),
        av_offset=placed.offset if placed.offset is None else round(placed.offset, 7),
        av_peak=placed.peak if placed.peak is None else round(placed.peak, 6),
        duration_audio=round(placed.span[1] - placed.span[0], 6),
        duration_video=None if frame_times is None else round(frame_times.end - frame_times.start, 6),
        pad_fraction=pad_fraction(window, spans),
        frame_times=times,
        flags=tuple(sorted(set(flags))),
        source={**(frame_times.metadata if frame_times else {}), **placed.audio.metadata},
    )


def _separate_audio(clip: Clip, config: Config) -> _AlignedAudio:
    """The sound of a clip's own audio file, beginning at 0; of a still's file when it has no other."""
    path = clip.audio if clip.audio is not None and clip.audio.is_file() else clip.video
    return _AlignedAudio(decode_audio(path, config.quality), 0.0)


def _align_audio(video_file: VideoFile, placed: _AlignedAudio, config: Config) -> _AlignedAudio:
    """A separate sound where the config wants it on the axis of the film."""
    if config.align.offset_correction == "none":
        return placed
    try:
        own = video_file.audio_track()
    except MediaError:
        return replace(placed, flags=(SampleFlag.LOW_CORRELATION,))
    separate = placed.audio
    lag, peak = estimate_av_offset(
        resample(separate.samples, separate.rate, CORRELATION_RATE),
        resample(own.samples, own.rate, CORRELATION_RATE),
        CORRELATION_RATE,
        config.align.max_lag,
    )
    offset = own.start + lag
    believed = peak >= config.align.min_peak
    flags = [] if believed else [SampleFlag.LOW_CORRELATION]
    start = offset if believed and config.align.offset_correction == "measured" else own.start
    if own.end - (start + len(separate.samples) / separate.rate) > config.align.max_mismatch:
        flags.append(SampleFlag.AUDIO_TRUNCATED)
    return _AlignedAudio(separate, start, offset, peak, tuple(flags))


def _step_frames(
    clip: Clip, video_file: VideoFile | None, window: Window, config: Config
) -> tuple[list[Frame], list[SampleFlag]]:
    """The picture of each step, uint8 [size, size, C], and what was noticed of them."""
    video = config.video
    if video_file is None:
        return _resized_frames([read_image(clip.video, config.quality)] * video.num_frames, video)
    times = _step_frame_times(clip, video_file.frame_times, window, config)
    decoder = DECODERS[video.decoder]
    if not decoder.reuses_packets:
        return _resized_frames(decoder.frames_at(clip.video, video_file.frame_times, times), video)
    if video.resize_mode == "face":
        return _resized_frames(video_file.frames_at(times, seek=video.seek), video)
    return video_file.frames_at(times, seek=video.seek, video=video), []


def _resized_frames(frames: Sequence[Frame], video: VideoConfig) -> tuple[list[Frame], list[SampleFlag]]:
    """Whole pictures as squares; one that stands for several steps is made once."""
    whole = {id(frame): frame for frame in frames}
    square = (
        detect_face_box([frame.pixels for frame in whole.values()]) if video.resize_mode == "face" else None
    )
    made = {
        name: replace(one, pixels=resize_image(square.crop(one.pixels) if square else one.pixels, video))
        for name, one in whole.items()
    }
    missed = video.resize_mode == "face" and square is None
    return [made[id(frame)] for frame in frames], [SampleFlag.NO_FACE] if missed else []


def _step_frame_times(clip: Clip, frame_times: FrameTimes, window: Window, config: Config) -> list[float]:
    """The moment whose frame stands for each step, s."""
    video = config.video
    if video.frame_sampling == "middle":
        return [float(moment) for moment in step_centers(window, video.num_frames, config.align.segment)]
    every = frame_times.times[:: video.frame_interval]
    if video.frame_sampling == "random-of-every":
        number = int.from_bytes(hashlib.sha256(clip.key.encode()).digest()[:8])
        return [float(every[number % len(every)])] * video.num_frames
    return [float(every[min(step, len(every) - 1)]) for step in range(video.num_frames)]
