"""Decode video frames with PyAV, and only the packets that the requested frames need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.best_effort import BestEffortTimestamps
from avdata.media.container import open_container, video_stream
from avdata.media.display import Orientation
from avdata.media.packet_selection import TIME_TOLERANCE_S, PacketSelection
from avdata.media.resize import frame_thumbnail, frame_to_rgb, resize_frame
from avdata.media.types import Frame, FrameTimes

CODECS_WITH_NONREF = frozenset({"h264", "hevc"})
"""Codecs whose packets show whether other frames refer to them, so that unneeded ones can be skipped."""

CODECS_WITH_CORRUPT_FLAG = frozenset({"h264", "hevc"})
"""Codecs whose decoder flags corrupt frames, and logs errors for intact streams too.

The decoders of other codecs, such as VP6 and MJPEG, report damage only in ffmpeg's log.
"""


def frames_at(
    path: Path, frame_times: FrameTimes, times: Sequence[float], video: VideoConfig, quality: QualityConfig
) -> list[Frame]:
    """Decode the frame on screen at each of ascending times (s).

    Raises:
        MediaError: see `decode_frames`.
    """
    del video  # Frames keep their size.
    with open_container(path, quality) as container:
        stream = video_stream(container, path)
        frames = decode_frames(path, stream, container.demux(stream), None, times, quality)
        return to_images(frames, None, frame_times.pixel_aspect)


@dataclass
class _DecodedFrames:
    """The frame for each time so far, how many frames were decoded and corrupt, and whether in order."""

    frames: list[Any] = field(default_factory=list)
    num_decoded: int = 0
    num_corrupt: int = 0
    is_ascending: bool = True

    def is_corrupt(self, quality: QualityConfig) -> bool:
        return self.num_corrupt > quality.max_corrupt * self.num_decoded


def decode_frames(
    path: Path,
    stream: Any,
    packets: Iterable[Any],
    selection: PacketSelection | None,
    times: Sequence[float],
    quality: QualityConfig,
) -> list[Any]:
    """Decode the PyAV frame on screen at each of ascending times.

    Args:
        path: the file, for messages.
        stream: PyAV's video stream.
        packets: its packets, in decoding order, with the empty last one.
        selection: the packets to decode, if `packets` is a list; None decodes all.
        times: s.
        quality: limits.

    Raises:
        MediaError: NO_FRAMES or CORRUPT_FRAMES.
    """
    _configure(stream, quality)
    decoded = None
    if selection is not None and isinstance(packets, list):
        decoded = _take_at_times(_decode_selected(stream, packets, selection), times)
        if not _is_reliable(decoded, selection, quality):
            decoded = None
        stream.codec_context.flush_buffers()
    if decoded is None:
        decoded = _take_at_times(_decode_all(stream, packets), times)
    if not decoded.frames:
        raise MediaError(QuarantineReason.NO_FRAMES, f"{path.name}: no frame could be decoded")
    if decoded.is_corrupt(quality):
        detail = f"{path.name}: {decoded.num_corrupt} of {decoded.num_decoded} frames"
        raise MediaError(QuarantineReason.CORRUPT_FRAMES, detail)
    return decoded.frames


def decode_pts(stream: Any, packets: Iterable[Any], quality: QualityConfig) -> list[int]:
    """Decode all packets of a stream, and return the best effort pts of each frame, as decoded.

    Args:
        stream: PyAV's video stream.
        packets: its packets, in decoding order, with the empty last one.
        quality: limits.
    """
    _configure(stream, quality)
    with count_errors():
        all_pts = [frame.pts for frame, _ in _decode_all(stream, packets) if frame is not None]
    stream.codec_context.flush_buffers()
    return all_pts


def _configure(stream: Any, quality: QualityConfig) -> None:
    if stream.codec_context.is_open:
        return
    stream.thread_count = 1
    # A header may state a wrong size: with max_pixels, the decoder refuses before it allocates memory.
    stream.codec_context.options = {"max_pixels": str(quality.max_pixels)}


def _take_at_times(frames: Iterable[tuple[Any, bool]], times: Sequence[float]) -> _DecodedFrames:
    """Keep the frame on screen at each time, and stop when all times have one."""
    decoded = _DecodedFrames()
    on_screen = None
    with closing(frames), count_errors():  # type: ignore[type-var]
        for frame, is_corrupt in frames:
            decoded.num_decoded += 1
            decoded.num_corrupt += is_corrupt
            if frame is None or frame.time is None:
                continue
            decoded.is_ascending &= on_screen is None or frame.time > on_screen.time
            while len(decoded.frames) < len(times) and on_screen is not None:
                if times[len(decoded.frames)] + TIME_TOLERANCE_S >= frame.time:
                    break
                decoded.frames.append(on_screen)
            if len(decoded.frames) == len(times):
                return decoded
            on_screen = frame
    if on_screen is not None:
        decoded.frames += [on_screen] * (len(times) - len(decoded.frames))
    return decoded


def _is_reliable(decoded: _DecodedFrames, selection: PacketSelection, quality: QualityConfig) -> bool:
    """Return whether the selected packets gave the selected frames, in order and mostly undamaged."""
    if not decoded.frames or not decoded.is_ascending or decoded.is_corrupt(quality):
        return False
    return all(any(abs(frame.time - time) < 1e-6 for time in selection.times) for frame in decoded.frames)


def _decode_all(stream: Any, packets: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    stream.codec_context.skip_frame = "DEFAULT"
    timestamps = BestEffortTimestamps()
    for frame, is_corrupt in _decode(stream, packets):
        if frame is not None:
            frame.pts = timestamps.next_pts(frame)
        yield frame, is_corrupt


def _decode_selected(
    stream: Any, packets: Sequence[Any], selection: PacketSelection
) -> Iterator[tuple[Any, bool]]:
    context = stream.codec_context
    can_skip = context.name in CODECS_WITH_NONREF

    def run_packets(first: int, last: int) -> Iterator[Any]:
        for index in range(first, last + 1):
            if can_skip:
                context.skip_frame = "DEFAULT" if index in selection.selected else "NONREF"
            yield packets[index]
        # The last packet is empty: it flushes the frames that the decoder delays.
        yield packets[-1]

    for number, (first, last) in enumerate(selection.runs):
        if number:
            context.flush_buffers()
        yield from _decode(stream, run_packets(first, last))


def _decode(stream: Any, packets: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Yield each frame and whether it is corrupt; None for a packet that fails to decode."""
    import av  # noqa: PLC0415

    has_flag = stream.codec_context.name in CODECS_WITH_CORRUPT_FLAG
    for packet in packets:
        errors_before = 0 if has_flag else num_logged_errors()
        try:
            frames = packet.decode()
        except av.FFmpegError:
            yield None, True
            continue
        logged_error = not has_flag and num_logged_errors() > errors_before
        for frame in frames:
            yield frame, bool(frame.is_corrupt) or logged_error


def to_images(frames: Sequence[Any], video: VideoConfig | None, aspect: float) -> list[Frame]:
    """Convert PyAV frames to RGB or, with `video`, to squares; each distinct frame once.

    Args:
        frames: PyAV's.
        video: the settings.
        aspect: width of a stored pixel by its height.
    """
    from av.video.reformatter import VideoReformatter  # noqa: PLC0415

    images: dict[int, Frame] = {}
    reformatter, thumbnail_reformatter = VideoReformatter(), VideoReformatter()
    for frame in frames:
        if id(frame) not in images:
            if video is not None:
                pixels, displayed = resize_frame(frame, video, reformatter, aspect), 1.0
            else:
                pixels = frame_to_rgb(frame, reformatter)
                displayed = Orientation.of_frame(frame).displayed_aspect(aspect)
            thumbnail = frame_thumbnail(frame, thumbnail_reformatter)
            images[id(frame)] = Frame(pixels, float(frame.time), displayed, thumbnail)
    return [images[id(frame)] for frame in frames]


@contextmanager
def count_errors() -> Iterator[None]:
    """Let PyAV count the errors that ffmpeg logs, and keep them out of the program's log."""
    import av.logging  # noqa: PLC0415

    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=True):
            yield
    finally:
        av.logging.set_level(level)


def num_logged_errors() -> int:
    """Return the number of errors that ffmpeg has logged."""
    import av.logging  # noqa: PLC0415

    return int(av.logging.get_last_error()[0])
