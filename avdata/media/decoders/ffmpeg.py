"""Decode video frames and audio with the system's `ffmpeg` program.

It decodes codecs that PyAV's wheels lack, and uses hardware decoders. Pixels and samples come through a pipe,
their timestamps from the log lines of the filters `showinfo` and `ashowinfo`. Damage is counted as the PyAV
decoder counts it.
"""

from __future__ import annotations

import math
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import IO, Any

import numpy as np

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio_timeline import AudioTimeline, check_audio_packets, too_long
from avdata.media.container import check_container, demuxer_options
from avdata.media.decoders.ffmpeg_log import AudioFrame, AudioLog, VideoLog
from avdata.media.downmix import Channel, Downmixer
from avdata.media.ffmpeg_program import (
    TIMEOUT_SHARE,
    input_file,
    passthrough_option,
    require_ffmpeg,
    require_hwaccel,
    run_ffmpeg,
)
from avdata.media.packet_selection import TIME_TOLERANCE_S
from avdata.media.types import AudioTrack, Frame, FrameTimes

EXACT_COLORS = "bilinear+accurate_rnd+full_chroma_int+bitexact"
"""swscale's flags of the PyAV decoder."""

MAX_TIME_ERROR_S = 1e-6
"""Difference from which a decoded frame is not the requested one."""

READ_SAMPLES = 1 << 16
"""Samples of each channel to convert at once."""


def check_available(video: VideoConfig) -> None:
    """Check that the program and the hardware decoder can be used.

    Raises:
        UsageError: they cannot.
    """
    program = require_ffmpeg()
    if video.hwaccel is not None:
        require_hwaccel(program, video.hwaccel)


def frames_at(
    path: Path, frame_times: FrameTimes, times: Sequence[float], video: VideoConfig, quality: QualityConfig
) -> list[Frame]:
    """Decode the frame on screen at each of ascending times (s).

    ffmpeg returns the frames at `frame_times` that are on screen at the times, and stops after the last. If
    one is missing, its timestamps are read from the decoded video in place of the container.

    Raises:
        MediaError: UNREADABLE, NO_FRAMES, NO_VIDEO_STREAM, TOO_LARGE, CORRUPT_FRAMES, TIMEOUT or an error of
            `check_container`.
    """
    decoder = _FrameDecoder(path, frame_times, video, quality)
    requested = _frames_on_screen(frame_times.times, times)
    frames = decoder.decode(requested, frame_times.times)
    if not _are_requested(frames, requested):
        decoded_times = decoder.decoded_times()
        requested = _frames_on_screen(decoded_times, times)
        frames = decoder.decode(requested, decoded_times)
    decoder.log.check_damage(path.name, quality)
    if not frames:
        raise MediaError(QuarantineReason.NO_FRAMES, f"{path.name}: no frame could be decoded")
    indices = _indices_on_screen(np.array([frame.time for frame in frames]), times)
    return [frames[index] for index in indices]


def _indices_on_screen(frame_times: np.ndarray, times: Sequence[float]) -> np.ndarray:
    latest = np.asarray(times) + TIME_TOLERANCE_S
    return np.clip(np.searchsorted(frame_times, latest, side="right") - 1, 0, len(frame_times) - 1)


def _frames_on_screen(frame_times: np.ndarray, times: Sequence[float]) -> np.ndarray:
    """Return the times of the frames on screen, ascending, each once."""
    return np.unique(frame_times[_indices_on_screen(frame_times, times)])


def _are_requested(frames: Sequence[Frame], requested: np.ndarray) -> bool:
    return len(frames) == len(requested) and all(
        abs(frame.time - time) < MAX_TIME_ERROR_S for frame, time in zip(frames, requested, strict=True)
    )


class _FrameDecoder:
    """Runs ffmpeg on the video of one file; all runs share one time limit.

    Attributes:
        log: facts from the log of the last run.
    """

    def __init__(
        self, path: Path, frame_times: FrameTimes, video: VideoConfig, quality: QualityConfig
    ) -> None:
        self._path, self._max_pixels = path, quality.max_pixels
        self._codec = str(frame_times.metadata.get("video_codec"))
        # `V` are the video streams without cover images.
        self._stream = "V:0" if frame_times.stream_index is None else str(frame_times.stream_index)
        self._deadline = time.monotonic() + TIMEOUT_SHARE * quality.timeout
        self._format = check_container(path)
        self._options = {} if video.hwaccel is None else {"hwaccel": video.hwaccel}
        self.log = VideoLog(self._codec)

    def decode(self, requested: np.ndarray, known: np.ndarray) -> list[Frame]:
        """Decode the frames at the requested times, of all known times; both in s, ascending."""
        max_decoded = int(np.searchsorted(known, requested[-1], side="right"))
        tolerance = _selection_tolerance(known)
        is_requested = _balanced_sum(
            [f"between(t,{moment - tolerance:.9f},{moment + tolerance:.9f})" for moment in requested]
        )
        frames = (
            self._video()
            .filter("select", is_requested)
            .filter("showinfo")
            .filter("scale", flags=EXACT_COLORS)
            .filter("format", "rgb24")
        )
        options = {"vcodec": "ppm", "frames:v": len(requested), **passthrough_option(require_ffmpeg())}
        images = self._run(frames.output("pipe:1", format="image2pipe", **options), max_decoded)
        facts = zip(images, self.log.times, self.log.aspects, strict=False)
        return [Frame(pixels, moment, aspect) for pixels, moment, aspect in facts]

    def decoded_times(self) -> np.ndarray:
        """Decode the video without returning a frame; return the times of its frames, s, ascending.

        Raises:
            MediaError: NO_FRAMES.
        """
        options = passthrough_option(require_ffmpeg())
        stream = self._video().filter("showinfo").output("pipe:1", format="null", **options)
        self._run(stream, None)
        times = np.unique([moment for moment in self.log.times if not math.isnan(moment)])
        if not len(times):
            raise MediaError(QuarantineReason.NO_FRAMES, f"{self._path.name}: no frame could be decoded")
        return times

    def _video(self) -> Any:
        file = input_file(self._path, self._format, max_pixels=self._max_pixels, **self._options)
        return file[self._stream]

    def _run(self, stream: Any, max_decoded: int | None) -> list[np.ndarray]:
        self.log = VideoLog(self._codec, max_decoded)
        images = []
        with run_ffmpeg(self._path, stream, self.log.read_line, self._deadline) as stdout:
            while (pixels := _read_ppm(stdout, self._max_pixels)) is not None:
                images.append(pixels)
        self.log.check_opened(self._path, QuarantineReason.NO_VIDEO_STREAM)
        return images


def _balanced_sum(terms: Sequence[str]) -> str:
    """Return the sum of terms in parentheses; ffmpeg's expressions may be nested 100 deep, as `a+b+c` is."""
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return f"({_balanced_sum(terms[:half])}+{_balanced_sum(terms[half:])})"


def _selection_tolerance(frame_times: np.ndarray) -> float:
    """Return the difference in s up to which a decoded frame may be the requested one.

    It covers the rounding of timestamps and separates all frames.
    """
    gaps = np.diff(frame_times)
    return min(0.0005, float(gaps[gaps > 0].min()) / 4 if (gaps > 0).any() else 0.0005)


def _read_ppm(stream: IO[bytes], max_pixels: int) -> np.ndarray | None:
    """Read a binary PPM image, uint8 [H, W, 3]; return None at the end of the stream."""
    header = b"".join(stream.readline(32) for _ in range(3))
    size = re.fullmatch(rb"P6\n(\d+) (\d+)\n255\n", header)
    if size is None or int(size[1]) * int(size[2]) > max_pixels:
        return None
    width, height = int(size[1]), int(size[2])
    pixels = stream.read(width * height * 3)
    if len(pixels) < width * height * 3:
        return None
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def decode_audio(
    path: Path, quality: QualityConfig, stream_index: int, channel: Channel = "mix"
) -> AudioTrack:
    """Decode the audio track of a file with the given index among all streams to mono.

    ffmpeg converts a track to the rate and channels of its first frame. If they change, it is decoded again
    without that conversion.

    Raises:
        MediaError: UNREADABLE, NO_AUDIO_STREAM, UNDECODABLE_AUDIO, CORRUPT_AUDIO, TOO_LONG, TIMEOUT or an
            error of `check_container`.
    """
    decoder = _AudioDecoder(path, quality, stream_index)
    downmixer = Downmixer(channel)
    mono = decoder.decode(downmixer)
    frames = decoder.log.frames
    if len({(frame.rate, frame.channels) for frame in frames}) > 1:
        downmixer = Downmixer(channel)
        mono = decoder.decode(downmixer, frames)
    check_audio_packets(path.name, decoder.log.num_corrupt, decoder.log.num_corrupt + len(frames), quality)
    timeline = AudioTimeline(path.name, quality.max_seconds)
    for frame, num_samples in zip(frames, _fitted_counts(frames, len(mono)), strict=True):
        timeline.add(frame.time, num_samples, frame.rate)
    metadata = {
        "audio_codec": decoder.log.codec,
        "audio_rate": timeline.rate,
        "audio_channels": frames[0].channels,
    }
    samples, start, flags = timeline.place(mono)
    return AudioTrack(samples, timeline.rate, start, metadata, (*flags, *downmixer.flags()))


def _fitted_counts(frames: Sequence[AudioFrame], num_samples: int) -> list[int]:
    """Return the number of samples of each frame, so that their sum is the number of decoded samples."""
    ends = np.minimum(np.cumsum([frame.num_samples for frame in frames]), num_samples)
    ends[-1] = num_samples
    return [int(count) for count in np.diff(ends, prepend=0)]


class _AudioDecoder:
    """Runs ffmpeg on the audio of one file; all runs share one time limit.

    Attributes:
        log: facts from the log of the last run.
    """

    def __init__(self, path: Path, quality: QualityConfig, stream_index: int) -> None:
        self._path, self._max_seconds = path, quality.max_seconds
        self._stream_index = stream_index
        self._deadline = time.monotonic() + TIMEOUT_SHARE * quality.timeout
        self._format = check_container(path)
        self.log = AudioLog()

    def decode(self, downmixer: Downmixer, frames: Sequence[AudioFrame] = ()) -> np.ndarray:
        """Decode the track to mono, float32 [n].

        Args:
            downmixer: mixes the channels.
            frames: the frames of a track whose rate or channels change, to keep those of each frame.

        Raises:
            MediaError: UNREADABLE, NO_AUDIO_STREAM, UNDECODABLE_AUDIO, TOO_LONG or TIMEOUT.
        """
        self.log = AudioLog()
        file = input_file(self._path, self._format, **demuxer_options(self._path, self._format))
        audio = file[str(self._stream_index)].filter("ashowinfo")
        if frames:
            # With one rate for all frames, ffmpeg does not resample; channels that a frame lacks are silent.
            count = max(frame.channels for frame in frames)
            channels = "|".join(f"c{index}=c{index}" for index in range(count))
            audio = audio.filter("asetrate", frames[0].rate).filter("pan", args=f"{count}c|{channels}")
        stream = audio.output("pipe:1", format="au", acodec="pcm_f32be")
        samples = np.zeros(0, np.float32)
        with run_ffmpeg(self._path, stream, self.log.read_line, self._deadline) as stdout:
            header = _read_au_header(stdout)
            if header is not None:
                parts = [(frame.num_samples, frame.channels) for frame in frames]
                samples = self._read_mono(stdout, header, parts, downmixer)
        self.log.check_opened(self._path, QuarantineReason.NO_AUDIO_STREAM)
        if not len(samples) or not self.log.frames:
            detail = f"{self._path.name}: no audio sample could be decoded"
            raise MediaError(QuarantineReason.UNDECODABLE_AUDIO, detail)
        return samples

    def _read_mono(
        self, stream: IO[bytes], header: _AuHeader, parts: Sequence[tuple[int, int]], downmixer: Downmixer
    ) -> np.ndarray:
        """Read interleaved big-endian floats, and return them as mono float32 [n].

        Args:
            stream: ffmpeg's output.
            header: its header.
            parts: number of samples and channels of each part to read; without any, everything is read.
            downmixer: mixes the channels.

        Raises:
            MediaError: TOO_LONG.
        """
        chunks = []
        num_samples = 0
        sample_bytes = 4 * header.channels
        for size, num_channels in parts or repeat((READ_SAMPLES, header.channels)):
            data = stream.read(size * sample_bytes)
            values = np.frombuffer(data[: len(data) // sample_bytes * sample_bytes], ">f4")
            channels = values.astype(np.float32).reshape(-1, header.channels).T
            chunks.append(downmixer.mix(channels[:num_channels]))
            num_samples += len(chunks[-1])
            if not parts and num_samples > self._max_seconds * header.rate:
                raise too_long(self._path.name, self._max_seconds)
            if len(data) < size * sample_bytes:
                break
        return np.concatenate(chunks)


@dataclass(frozen=True, slots=True)
class _AuHeader:
    rate: int
    channels: int


def _read_au_header(stream: IO[bytes]) -> _AuHeader | None:
    """Read the header of Sun's AU format of 32-bit floats; return None at the end of the stream."""
    header = stream.read(24)
    if len(header) < 24:
        return None
    magic, offset, _, encoding, rate, channels = struct.unpack(">4s5I", header)
    assert (magic, encoding) == (b".snd", 6)
    stream.read(offset - 24)
    return _AuHeader(rate, channels)
