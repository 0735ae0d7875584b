"""Extract the features of a clip: its audio feature and frames, one per step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avdata.config.schema import Config, VideoConfig
from avdata.errors import MediaError, QuarantineReason, SampleFlag
from avdata.features.alignment import (
    Window,
    covered_samples,
    estimate_av_offset,
    pad_fraction,
    select_window,
    slice_audio,
    step_centers,
)
from avdata.features.audio import compute_audio_feature
from avdata.features.audio.mel_filterbank import MelFilterbank
from avdata.features.audio.spectrogram import resample
from avdata.features.face_crop import detect_face_box
from avdata.features.quality import check_audio, check_durations, check_file_sizes, check_frames
from avdata.media.audio import decode_audio
from avdata.media.decoders import DECODERS
from avdata.media.image import read_image
from avdata.media.resize import image_thumbnail, resize_image, with_square_pixels
from avdata.media.types import AudioTrack, Frame, FrameTimes
from avdata.media.video import VideoFile, open_video
from avdata.recipe import Clip

CORRELATION_RATE = 16_000
"""Hz, sample rate at which the offset of separate audio is estimated."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features of a sample.

    Attributes:
        mel: float16 [T, F, L].
        frames: uint8 [T, H, W, C]; None in a dataset of audio.
        waveform: float32 [n], the window's samples; None unless `audio.flac` is set.
        waveform_span: samples [first, last) of `waveform` that the audio covers; None without `waveform`.
        window: start and end, s on the clip's axis.
        av_offset: start of the separate audio on the axis, s; None if not measured.
        av_peak: the correlation at that offset; None if not measured.
        duration_audio: s.
        duration_video: s; None for a still image and without video.
        pad_fraction: share of the window that audio or video does not cover.
        frame_times: presentation time of each frame, s; empty without frames.
        flags: irregularities of the clip.
        source: codecs, sizes and rates of the files; never their embedded metadata.
    """

    mel: np.ndarray
    frames: np.ndarray | None
    waveform: np.ndarray | None
    waveform_span: tuple[int, int] | None
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
    """Audio with its start on the clip's axis, and the measured offset and its peak."""

    audio: AudioTrack
    start: float
    offset: float | None = None
    peak: float | None = None
    flags: tuple[SampleFlag, ...] = ()

    @property
    def span(self) -> tuple[float, float]:
        return self.start, self.start + len(self.audio.samples) / self.audio.rate

    def loudness(self) -> tuple[np.ndarray, int, float]:
        """Return the squares of the samples, their rate in Hz, and the time of the first, s."""
        return np.square(self.audio.samples, dtype=np.float64), self.audio.rate, self.start


def extract_features(clip: Clip, config: Config, filterbank: MelFilterbank | None = None) -> Features:
    """Decode a clip and compute the features of its sample.

    Args:
        clip: the clip.
        config: the settings.
        filterbank: the result of `feature_filterbank(config.audio)`; None computes it if it is needed.

    Raises:
        MediaError: the clip is quarantined, with `error.reason`.
    """
    check_file_sizes((clip.video, clip.audio), config.quality)
    if clip.is_image or clip.video is None:
        return _assemble(clip, None, _separate_audio(clip, config), config, filterbank)
    use_container = clip.audio is None or config.audio.source == "container" or not clip.audio.is_file()
    needs_audio = use_container or config.align.offset_correction != "none"
    with open_video(
        clip.video,
        config.quality,
        audio=needs_audio,
        decoder=config.video.decoder,
        channel=config.audio.channel,
    ) as video_file:
        if use_container:
            track = _container_audio(video_file, config)
            # If the dataset has no separate audio, the container's is the rule and not flagged.
            flags = () if clip.audio is None else (SampleFlag.CONTAINER_AUDIO,)
            aligned = _AlignedAudio(track, track.start, flags=flags)
        else:
            aligned = _align_audio(video_file, _separate_audio(clip, config), config)
        return _assemble(clip, video_file, aligned, config, filterbank)


def _container_audio(video_file: VideoFile, config: Config) -> AudioTrack:
    """Return the audio track of the video; without one, silence if `quality.no_audio` is `flag`."""
    try:
        return video_file.audio_track()
    except MediaError as error:
        if error.reason != QuarantineReason.NO_AUDIO_STREAM or config.quality.no_audio == "quarantine":
            raise
    times, rate = video_file.frame_times, config.audio.sample_rate
    silence = np.zeros(max(round((times.end - times.start) * rate), 1), np.float32)
    metadata = {"audio_codec": "none", "audio_rate": 0, "audio_channels": 0}
    return AudioTrack(silence, rate, times.start, metadata, (SampleFlag.NO_AUDIO,))


def _assemble(
    clip: Clip,
    video_file: VideoFile | None,
    aligned: _AlignedAudio,
    config: Config,
    filterbank: MelFilterbank | None,
) -> Features:
    """Return the features of a clip with aligned audio; an image, or a clip of audio, has no `video_file`."""
    flags = [*aligned.flags, *aligned.audio.flags]
    has_no_audio = SampleFlag.NO_AUDIO in flags
    if not has_no_audio:
        flags += check_audio(aligned.audio, config.quality)
    spans = [aligned.span]
    frame_times = None
    if video_file is not None:
        frame_times = video_file.frame_times
        spans.append((frame_times.start, frame_times.end))
        flags += check_durations(aligned.span, frame_times, config)
    _check_event(clip, spans)
    window = select_window(
        config.align, spans, steps=config.video.num_frames, event=clip.event, loudness=aligned.loudness
    )
    step_frames, frame_flags = _step_frames(clip, video_file, window, config)
    flags += frame_flags
    frames = np.stack([frame.pixels for frame in step_frames]) if step_frames else None
    times = tuple(round(frame.time, 6) for frame in step_frames)
    if step_frames and video_file is not None:
        thumbnails = [frame.thumbnail for frame in step_frames if frame.thumbnail is not None]
        flags += check_frames(thumbnails, times, config.quality)
    rate = config.audio.sample_rate
    samples = resample(aligned.audio.samples, aligned.audio.rate, rate)
    waveform = slice_audio(samples, rate, aligned.start, window, config.align.pad)
    mel = compute_audio_feature(waveform, config, filterbank)
    padding = pad_fraction(window, spans)
    if padding > config.quality.max_padding:
        flags.append(SampleFlag.PADDED)
    return Features(
        mel=mel.astype(np.float16),
        frames=frames,
        waveform=waveform if config.audio.flac else None,
        waveform_span=covered_samples(len(samples), rate, aligned.start, window)
        if config.audio.flac
        else None,
        window=(round(window.start, 6), round(window.end, 6)),
        av_offset=None if aligned.offset is None else round(aligned.offset, 7),
        av_peak=None if aligned.peak is None else round(aligned.peak, 6),
        duration_audio=0.0 if has_no_audio else round(aligned.span[1] - aligned.span[0], 6),
        duration_video=None if frame_times is None else round(frame_times.end - frame_times.start, 6),
        pad_fraction=padding,
        frame_times=times,
        flags=tuple(sorted(set(flags))),
        source={**(frame_times.metadata if frame_times else {}), **aligned.audio.metadata},
    )


def _check_event(clip: Clip, spans: Sequence[tuple[float, float]]) -> None:
    """Raise MediaError if the label applies at no time of the clip."""
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    if clip.event is not None and (clip.event[0] >= last or clip.event[1] < first):
        detail = f"event {clip.event[0]:g} to {clip.event[1]:g} s, clip {first:g} to {last:g} s"
        raise MediaError(QuarantineReason.NO_LABEL, detail)


def _separate_audio(clip: Clip, config: Config) -> _AlignedAudio:
    """Decode the clip's audio file, starting at 0; without one, its video file's audio."""
    path = clip.audio if clip.audio is not None and clip.audio.is_file() else clip.video or clip.audio
    assert path is not None
    track = decode_audio(path, config.quality, decoder=config.video.decoder, channel=config.audio.channel)
    return _AlignedAudio(track, 0.0)


def _align_audio(video_file: VideoFile, unaligned: _AlignedAudio, config: Config) -> _AlignedAudio:
    """Place separate audio on the axis of the video, as `align.offset_correction` defines it."""
    if config.align.offset_correction == "none":
        return unaligned
    try:
        own = video_file.audio_track()
    except MediaError:
        return replace(unaligned, flags=(SampleFlag.LOW_CORRELATION,))
    separate = unaligned.audio
    lag, peak = estimate_av_offset(
        resample(separate.samples, separate.rate, CORRELATION_RATE),
        resample(own.samples, own.rate, CORRELATION_RATE),
        CORRELATION_RATE,
        config.align.max_lag,
    )
    offset = own.start + lag
    is_correlated = peak >= config.align.min_peak
    flags = [] if is_correlated else [SampleFlag.LOW_CORRELATION]
    start = offset if is_correlated and config.align.offset_correction == "measured" else own.start
    if own.end - (start + len(separate.samples) / separate.rate) > config.align.max_mismatch:
        flags.append(SampleFlag.AUDIO_TRUNCATED)
    return _AlignedAudio(separate, start, offset, peak, tuple(flags))


def _step_frames(
    clip: Clip, video_file: VideoFile | None, window: Window, config: Config
) -> tuple[list[Frame], list[SampleFlag]]:
    """Return the frame of each step, uint8 [size, size, C], and flags; no frames without a video."""
    video = config.video
    if clip.video is None:
        return [], []
    if video_file is None:
        image = read_image(clip.video, config.quality)
        frames, flags = _resized_frames([image] * video.num_frames, video)
        return frames, [SampleFlag.STATIC_FRAMES, *flags]
    times = _step_frame_times(clip, video_file.frame_times, window, config)
    decoder = DECODERS[video.decoder]
    if not decoder.reuses_packets:
        frames = decoder.frames_at(clip.video, video_file.frame_times, times, video, config.quality)
        return _resized_frames(frames, video)
    if video.resize_mode == "face":
        return _resized_frames(video_file.frames_at(times, seek=video.seek), video)
    return video_file.frames_at(times, seek=video.seek, video=video), []


def _resized_frames(frames: Sequence[Frame], video: VideoConfig) -> tuple[list[Frame], list[SampleFlag]]:
    """Crop and resize frames of full size; a frame that is repeated is resized once."""
    unique = {id(frame): _with_thumbnail(frame) for frame in frames}
    use_face = video.resize_mode == "face"
    if use_face:
        unique = {key: _with_square_pixels(frame, video) for key, frame in unique.items()}
    images = [frame.pixels for frame in unique.values()]
    # Without a common size, there is no common box.
    can_detect = use_face and len({image.shape for image in images}) == 1
    box = detect_face_box(images) if can_detect else None
    resized = {}
    for key, frame in unique.items():
        pixels = box.crop(frame.pixels) if box else frame.pixels
        resized[key] = replace(
            frame, pixels=resize_image(pixels, video, frame.pixel_aspect), pixel_aspect=1.0
        )
    flags = [SampleFlag.NO_FACE] if use_face and box is None else []
    return [resized[id(frame)] for frame in frames], flags


def _with_thumbnail(frame: Frame) -> Frame:
    return frame if frame.thumbnail is not None else replace(frame, thumbnail=image_thumbnail(frame.pixels))


def _with_square_pixels(frame: Frame, video: VideoConfig) -> Frame:
    """Return a frame whose pixels are square, so that a square face is found."""
    pixels = with_square_pixels(frame.pixels, video, frame.pixel_aspect)
    return replace(frame, pixels=pixels, pixel_aspect=1.0)


def _step_frame_times(clip: Clip, frame_times: FrameTimes, window: Window, config: Config) -> list[float]:
    """Return the time whose frame represents each step, s."""
    video = config.video
    if video.frame_sampling == "middle":
        return [float(time) for time in step_centers(window, video.num_frames, config.align.segment)]
    every = frame_times.times[:: video.frame_interval]
    if video.frame_sampling == "random-of-every":
        number = int.from_bytes(hashlib.sha256(clip.key.encode()).digest()[:8])
        return [float(every[number % len(every)])] * video.num_frames
    return [float(every[min(step, len(every) - 1)]) for step in range(video.num_frames)]
