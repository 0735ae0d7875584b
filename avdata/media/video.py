"""Read the frame times, the audio and frames at given times of a video file.

The file is demuxed once. Audio is decoded on the way. Video packets are kept until the requested times are
known, and only the packets that those frames need are decoded.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import MediaError, QuarantineReason, SampleFlag
from avdata.media.audio import AudioTrackDecoder
from avdata.media.container import audio_stream, has_multiple_streams, open_container, video_stream
from avdata.media.decoders import DECODERS
from avdata.media.decoders.pyav import decode_frames, decode_pts, to_images
from avdata.media.display import pixel_aspect
from avdata.media.downmix import Channel
from avdata.media.packet_selection import PacketSelection
from avdata.media.types import AudioTrack, Frame, FrameTimes

MAX_BUFFERED_BYTES = 64 << 20
"""Bytes of video packets to keep in memory; a larger file is read a second time."""

UNEVEN_FACTOR = 1.6
"""Factor between a frame interval and the median from which the frame rate counts as variable."""

PTS_JITTER_S = 0.001
"""Jitter of timestamps in milliseconds, by one unit, which does not count as a variable frame rate."""


@dataclass
class VideoFile:
    """A video file that `open_video` has demuxed.

    Attributes:
        frame_times: presentation times of its frames.
        audio: its first audio track, or the error that reading it raised; None if it was not requested.
    """

    frame_times: FrameTimes
    audio: AudioTrack | MediaError | None
    _path: Path
    _quality: QualityConfig
    _stream: Any
    _packets: list[Any] | None = field(repr=False)

    def audio_track(self) -> AudioTrack:
        """Return its first audio track.

        Raises:
            MediaError: NO_AUDIO_STREAM or CORRUPT_AUDIO.
        """
        assert self.audio is not None
        if isinstance(self.audio, MediaError):
            raise self.audio
        return self.audio

    def frames_at(
        self, times: Sequence[float], *, seek: bool = False, video: VideoConfig | None = None
    ) -> list[Frame]:
        """Decode the frame on screen at each of ascending times.

        Before the first frame, the first is on screen; after the last frame, the last. If the codec allows
        it, frames that no requested frame needs are not decoded.

        Args:
            times: s.
            seek: start at the keyframes before the frames instead of at the first packet. This is faster, but
                damage between is not detected. Without pts, decoding begins at the first packet.
            video: resize the frames to the square that it configures; None keeps size, pixel
                aspect and color.

        Raises:
            MediaError: NO_FRAMES, TOO_LARGE, CORRUPT_FRAMES or UNREADABLE.
        """
        if self._packets is not None:
            selection = None
            if not self.frame_times.is_decoded:
                time_base = float(self._stream.time_base)
                selection = PacketSelection.select_packets(self._packets[:-1], times, time_base, seek=seek)
            frames = decode_frames(self._path, self._stream, self._packets, selection, times, self._quality)
            return to_images(frames, video, self.frame_times.pixel_aspect)
        with open_container(self._path, self._quality) as container:
            stream = video_stream(container, self._path)
            frames = decode_frames(self._path, stream, container.demux(stream), None, times, self._quality)
            return to_images(frames, video, self.frame_times.pixel_aspect)


@contextmanager
def open_video(
    path: Path,
    quality: QualityConfig,
    *,
    audio: bool = True,
    decoder: str = "pyav",
    channel: Channel = "mix",
) -> Iterator[VideoFile]:
    """Open a video file: read its frame times and, with `audio`, decode its audio.

    Frames can be decoded until the context ends.

    Args:
        path: the file.
        quality: limits.
        audio: whether to decode the audio.
        decoder: value of `video.decoder`. A decoder that also decodes audio opens the file again.
        channel: value of `audio.channel`.

    Raises:
        MediaError: NO_VIDEO_STREAM, NO_FRAMES, TOO_LARGE, TOO_LONG, UNREADABLE or an error of
            `detect_format`.
    """
    row = DECODERS[decoder]
    with open_container(path, quality) as container:
        stream = video_stream(container, path, any_codec=not row.reuses_packets)
        if stream.codec_context is not None:
            _check_size(path, stream.codec_context, quality)
        track = _open_audio(path, container, quality, channel) if audio and not row.decodes_audio else None
        audio_streams = [track.stream] if isinstance(track, AudioTrackDecoder) else []
        packet_times = _PacketTimes(path, float(stream.time_base), quality.max_seconds)
        packets: list[Any] | None = []
        buffered_bytes = 0
        for packet in container.demux(stream, *audio_streams):
            if packet.stream is not stream:
                track.add(packet)  # type: ignore[union-attr]
                continue
            packet_times.add(packet)
            buffered_bytes += packet.size
            if packets is not None:
                packets.append(packet)
                packets = packets if buffered_bytes <= MAX_BUFFERED_BYTES else None
        is_decoded = stream.codec_context is not None and not packet_times.are_reliable(stream)
        if is_decoded:
            packet_times.pts = _decoded_pts(path, stream, packets, quality)
        frame_times = _frame_times(path, container, stream, packet_times, is_decoded=is_decoded)
        finished: AudioTrack | MediaError | None
        if audio and row.decodes_audio:
            finished = _audio_or_error(
                lambda: row.decode_audio(
                    path, quality, audio_stream(container, path, any_codec=True).index, channel
                )
            )
        else:
            finished = _audio_or_error(track.finish) if isinstance(track, AudioTrackDecoder) else track
        yield VideoFile(frame_times, finished, path, quality, stream, packets)


def _decoded_pts(path: Path, stream: Any, packets: list[Any] | None, quality: QualityConfig) -> list[int]:
    """Return the pts of the frames of a stream by decoding it; `packets` is None if memory lacks them."""
    if packets is not None:
        return decode_pts(stream, packets, quality)
    with open_container(path, quality) as container:
        stream = video_stream(container, path)
        return decode_pts(stream, container.demux(stream), quality)


def _open_audio(
    path: Path, container: Any, quality: QualityConfig, channel: Channel
) -> AudioTrackDecoder | MediaError:
    try:
        return AudioTrackDecoder(path, audio_stream(container, path), quality, channel)
    except MediaError as error:
        return error


def _audio_or_error(decode: Callable[[], AudioTrack]) -> AudioTrack | MediaError:
    try:
        return decode()
    except MediaError as error:
        return error


def read_frame_times(path: Path, quality: QualityConfig) -> FrameTimes:
    """Return the presentation times of the first video track; it is decoded only if pts are missing.

    Raises:
        MediaError: see `open_video`.
    """
    with open_video(path, quality, audio=False) as video_file:
        return video_file.frame_times


def read_frames(
    path: Path, times: Sequence[float], quality: QualityConfig, *, seek: bool = False
) -> list[Frame]:
    """Open a file and return `VideoFile.frames_at` of it."""
    with open_video(path, quality, audio=False) as video_file:
        return video_file.frames_at(times, seek=seek)


class _PacketTimes:
    """Presentation times of packets, up to a maximum duration."""

    def __init__(self, path: Path, time_base: float, max_seconds: float) -> None:
        self.path, self.time_base, self.max_seconds = path, time_base, max_seconds
        self.pts: list[int] = []
        self.last_duration = 0
        self.first_pts: int | None = None
        self.is_pts_missing = False
        self.has_own_pts = False

    def add(self, packet: Any) -> None:
        if packet.is_discard or (packet.pts is None and packet.dts is None and not packet.size):
            return
        self.is_pts_missing |= packet.pts is None
        self.has_own_pts |= packet.pts != packet.dts
        pts = packet.dts if packet.pts is None else packet.pts
        if pts is None:
            return
        self.pts.append(pts)
        self.last_duration = packet.duration or self.last_duration
        self.first_pts = pts if self.first_pts is None else min(self.first_pts, pts)
        # Checked for each packet, so that a file of 100 hours is not read to its end.
        self.check_duration((pts - self.first_pts) * self.time_base)

    def are_reliable(self, stream: Any) -> bool:
        """Return whether each frame is presented at the pts of its packet."""
        if self.is_pts_missing or len(set(self.pts)) < len(self.pts):
            return False
        # Where frames may be reordered, equal pts and dts are the muxer's order, not that of presentation.
        return self.has_own_pts or not stream.codec_context.has_b_frames

    def check_duration(self, seconds: float) -> None:
        if seconds > self.max_seconds:
            detail = f"{self.path.name}: video longer than {self.max_seconds:g} s"
            raise MediaError(QuarantineReason.TOO_LONG, detail)


def _frame_times(
    path: Path, container: Any, stream: Any, packet_times: _PacketTimes, *, is_decoded: bool
) -> FrameTimes:
    if not packet_times.pts:
        raise MediaError(QuarantineReason.NO_FRAMES, f"{path.name}: no frames")
    ordered = sorted(set(packet_times.pts) if is_decoded else packet_times.pts)
    times = np.array(ordered, np.float64) * packet_times.time_base
    interval, is_uneven = _frame_interval(ordered, packet_times)
    if len(times) > 1 and not is_uneven:
        interval = float(times[-1] - times[0]) / (len(times) - 1)
    # The container's own duration of the last packet is often missing, or one unit of the time base.
    end = float(times[-1]) + interval
    packet_times.check_duration(end - float(times[0]))
    context = stream.codec_context
    # PyAV has no codec context for a codec that it cannot decode.
    size = {} if context is None else {"width": context.width, "height": context.height}
    metadata = {
        "container": container.format.name.partition(",")[0],
        "video_codec": "unknown" if context is None else context.name,
        **size,
        "pixel_aspect": round(pixel_aspect(stream.sample_aspect_ratio), 6),
        "frames": len(times),
        "fps": round(1 / interval, 4) if interval else 0.0,
    }
    flags = [SampleFlag.MULTIPLE_STREAMS] if has_multiple_streams(container) else []
    if is_uneven:
        flags.append(SampleFlag.VARIABLE_RATE)
    return FrameTimes(times, end, metadata, tuple(flags), is_decoded, stream.index)


def _frame_interval(ordered_pts: Sequence[int], packet_times: _PacketTimes) -> tuple[float, bool]:
    """Return the median interval between frames, s, and whether the intervals vary."""
    # Plain numbers: a short video has few frames, and each call of numpy takes longer than this loop.
    gaps = [after - before for before, after in pairwise(ordered_pts)]
    median = float(statistics.median(gaps) if gaps else packet_times.last_duration) * packet_times.time_base
    longest = UNEVEN_FACTOR * median / packet_times.time_base
    shortest = (median / UNEVEN_FACTOR - PTS_JITTER_S) / packet_times.time_base
    return median, len(gaps) > 1 and (max(gaps) > longest or min(gaps) < shortest)


def _check_size(path: Path, frame: Any, quality: QualityConfig) -> None:
    width, height = frame.width, frame.height
    if width * height > quality.max_pixels:
        raise MediaError(QuarantineReason.TOO_LARGE, f"{path.name}: {width}×{height} pixels")
