"""One reading of a video file: when its frames come on screen, its own sound, and its frames at given times.

The file is demuxed once. Sound is decoded on the way; the pictures' packets wait until it is known which are
wanted, and only the packets those need are decoded.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import MediaError, QuarantineReason, SampleFlag
from avdata.media.audio import AudioTrackDecoder
from avdata.media.container import open_container, video_stream
from avdata.media.decoders.pyav import decode_frames, to_images
from avdata.media.packet_selection import PacketSelection
from avdata.media.types import AudioTrack, Frame, FrameTimes

MAX_BUFFERED_BYTES = 64 << 20
"""Bytes of compressed pictures that are kept in memory; a larger file is read a second time."""


@dataclass
class VideoFile:
    """A video that `open_video` has read.

    Attributes:
        frame_times: when its frames come on screen.
        audio: its first sound track, or why there is none; None when it was not asked for.
    """

    frame_times: FrameTimes
    audio: AudioTrack | MediaError | None
    _path: Path
    _quality: QualityConfig
    _stream: Any
    _packets: list[Any] | None = field(repr=False)

    def audio_track(self) -> AudioTrack:
        """Its first sound track.

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
        """The frame on screen at each of ascending moments: the last one that has come by then.

        Before the first frame that is the first, after the last frame the last. Frames that are neither
        wanted nor needed by one that is are not decoded where the codec tells, and only wanted ones become
        pixels. With `seek`, groups of frames between keyframes are passed over where none is wanted. With
        `video`, they are squares as it says.

        Raises:
            MediaError: NO_FRAMES, TOO_LARGE, CORRUPT_FRAMES or UNREADABLE.
        """
        if self._packets is not None:
            base = float(self._stream.time_base)
            route = PacketSelection.select_packets(self._packets[:-1], times, base, seek=seek)
            frames = decode_frames(self._path, self._stream, self._packets, route, times, self._quality)
            return to_images(frames, video)
        with open_container(self._path, self._quality) as container:
            stream = video_stream(container, self._path)
            frames = decode_frames(self._path, stream, container.demux(stream), None, times, self._quality)
            return to_images(frames, video)


@contextmanager
def open_video(path: Path, quality: QualityConfig, *, audio: bool = True) -> Iterator[VideoFile]:
    """Read a video: its clock and, when asked for, its sound; its pictures can be had until it is closed.

    Raises:
        MediaError: NO_VIDEO_STREAM, NO_FRAMES, TOO_LARGE, TOO_LONG, UNREADABLE or what `sniff` finds.
    """
    with open_container(path, quality) as container:
        stream = video_stream(container, path)
        _check_size(path, stream.codec_context, quality)
        tracks = container.streams.audio if audio else ()
        track = AudioTrackDecoder(path, tracks[0], quality) if tracks else None
        ticks = _PacketTimes(path, float(stream.time_base), quality.max_seconds)
        packets: list[Any] | None = []
        held = 0
        for packet in container.demux(stream, *tracks[:1]):
            if packet.stream is not stream:
                track.add(packet)  # type: ignore[union-attr]
                continue
            ticks.add(packet)
            held += packet.size
            if packets is not None:
                packets.append(packet)
                packets = packets if held <= MAX_BUFFERED_BYTES else None
        frame_times = _frame_times(path, container, stream, ticks)
        yield VideoFile(frame_times, _read_audio(path, track, asked=audio), path, quality, stream, packets)


def _read_audio(
    path: Path, track: AudioTrackDecoder | None, *, asked: bool
) -> AudioTrack | MediaError | None:
    if not asked:
        return None
    if track is None:
        return MediaError(QuarantineReason.NO_AUDIO_STREAM, f"{path.name} holds no sound")
    try:
        return track.finish()
    except MediaError as error:
        return error


def read_frame_times(path: Path, quality: QualityConfig) -> FrameTimes:
    """The presentation times of a file's first video track, from its packets, without decoding.

    Raises:
        MediaError: as `open_video`.
    """
    with open_video(path, quality, audio=False) as video_file:
        return video_file.frame_times


def read_frames(
    path: Path, times: Sequence[float], quality: QualityConfig, *, seek: bool = False
) -> list[Frame]:
    """`VideoFile.frames_at` of a file that is opened for nothing else."""
    with open_video(path, quality, audio=False) as video_file:
        return video_file.frames_at(times, seek=seek)


class _PacketTimes:
    """The presentation times of packets, and no more of them than the limit allows."""

    def __init__(self, path: Path, base: float, max_seconds: float) -> None:
        self.path, self.base, self.max_seconds = path, base, max_seconds
        self.all: list[int] = []
        self.last = 0
        self.low: int | None = None

    def add(self, packet: Any) -> None:
        when = packet.dts if packet.pts is None else packet.pts
        if when is None or packet.is_discard:
            return
        self.all.append(when)
        self.last = packet.duration or self.last
        self.low = when if self.low is None else min(self.low, when)
        # Said here, so that a hundred hours are not read to their end first.
        if (when - self.low) * self.base > self.max_seconds:
            raise MediaError(
                QuarantineReason.TOO_LONG, f"{self.path.name}: pictures longer than {self.max_seconds:g} s"
            )


def _frame_times(path: Path, container: Any, stream: Any, ticks: _PacketTimes) -> FrameTimes:
    if not ticks.all:
        raise MediaError(QuarantineReason.NO_FRAMES, f"{path.name} holds no frames")
    # Plain numbers: of a short film there are few, and each call of numpy takes longer than the loop.
    ordered = sorted(ticks.all)
    times = np.array(ordered, np.float64) * ticks.base
    gaps = [after - before for before, after in pairwise(ordered)]
    usual = float(statistics.median(gaps) if gaps else ticks.last) * ticks.base
    # Clocks of a millisecond jitter by one tick; a frame left out is a whole frame more.
    most, least = 1.6 * usual / ticks.base, (usual / 1.6 - 0.001) / ticks.base
    uneven = len(gaps) > 1 and (max(gaps) > most or min(gaps) < least)
    if gaps and not uneven:
        usual = float(times[-1] - times[0]) / len(gaps)
    # A container's own duration of the last packet is often missing or that of a clock tick.
    end = float(times[-1]) + usual
    if end - times[0] > ticks.max_seconds:
        raise MediaError(
            QuarantineReason.TOO_LONG, f"{path.name}: pictures longer than {ticks.max_seconds:g} s"
        )
    context = stream.codec_context
    facts = {
        "container": container.format.name.partition(",")[0], "video_codec": context.name,
        "width": context.width, "height": context.height, "frames": len(times),
        "fps": round(1 / usual, 4) if usual else 0.0,
    }  # fmt: skip
    flags = [SampleFlag.MULTIPLE_STREAMS] if len(container.streams.video) > 1 else []
    if uneven:
        flags.append(SampleFlag.VARIABLE_RATE)
    return FrameTimes(times, end, facts, tuple(flags))


def _check_size(path: Path, frame: Any, quality: QualityConfig) -> None:
    width, height = frame.width, frame.height
    if width * height > quality.max_pixels:
        raise MediaError(QuarantineReason.TOO_LARGE, f"{path.name}: {width}×{height} pixels")
