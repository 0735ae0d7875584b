"""Video frames by PyAV: decode only the packets that the requested frames need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.container import open_container, video_stream
from avdata.media.packet_selection import TIME_TOLERANCE_S, PacketSelection
from avdata.media.resize import frame_to_rgb, resize_frame
from avdata.media.types import Frame, FrameTimes

SKIPPABLE = frozenset({"h264", "hevc"})
"""Codecs that say of each packet whether others refer to it; what nobody needs is not decoded."""

MARKING = frozenset({"h264", "hevc"})
"""Codecs whose decoder marks corrupt frames, and logs errors about streams that are whole. Others, such as
VP6 and MJPEG, decode damage in silence but for the log."""


def frames_at(path: Path, frame_times: FrameTimes, times: Sequence[float]) -> list[Frame]:
    """The frame on screen at each of ascending times (s), of a file that is opened for nothing else.

    Raises:
        MediaError: as `decode_frames`.
    """
    del frame_times  # Decoded frames have their own timestamps.
    quality = QualityConfig()
    with open_container(path, quality) as container:
        stream = video_stream(container, path)
        frames = decode_frames(path, stream, container.demux(stream), None, times, quality)
        return to_images(frames, None)


@dataclass
class _DecodedFrames:
    """What decoding brought: the frame for each moment so far, frames seen, and how many were damaged."""

    frames: list[Any]
    seen: int
    corrupt: int


def decode_frames(
    path: Path,
    stream: Any,
    packets: Iterable[Any],
    route: PacketSelection | None,
    times: Sequence[float],
    quality: QualityConfig,
) -> list[Any]:
    """The decoded frame for each moment."""
    stream.thread_count = 1
    # Headers can lie about the size: the decoder refuses a larger frame before it asks for memory.
    stream.codec_context.options = {"max_pixels": str(quality.max_pixels)}
    chosen = None
    if route is not None and isinstance(packets, list):
        found = _choose(_selected_packets(stream, packets, route), times)
        chosen = found if _is_complete(found, route, quality) else None
        stream.codec_context.flush_buffers()
    if chosen is None:
        chosen = _choose(_all_packets(stream, packets), times)
    if not chosen.frames:
        raise MediaError(QuarantineReason.NO_FRAMES, f"{path.name}: not one frame could be decoded")
    if chosen.corrupt > quality.max_corrupt * chosen.seen:
        detail = f"{path.name}: {chosen.corrupt} of {chosen.seen} frames"
        raise MediaError(QuarantineReason.CORRUPT_FRAMES, detail)
    return chosen.frames


def _choose(decoded: Iterable[tuple[Any, bool]], times: Sequence[float]) -> _DecodedFrames:
    chosen = _DecodedFrames([], 0, 0)
    on_screen = None
    with closing(decoded), count_errors():  # type: ignore[type-var]
        for frame, damaged in decoded:
            chosen.seen, chosen.corrupt = chosen.seen + 1, chosen.corrupt + damaged
            if frame is None:
                continue
            while len(chosen.frames) < len(times) and on_screen is not None:
                if times[len(chosen.frames)] + TIME_TOLERANCE_S >= frame.time:
                    break
                chosen.frames.append(on_screen)
            if len(chosen.frames) == len(times):
                return chosen
            on_screen = frame
    if on_screen is not None:
        chosen.frames += [on_screen] * (len(times) - len(chosen.frames))
    return chosen


def _is_complete(chosen: _DecodedFrames, route: PacketSelection, quality: QualityConfig) -> bool:
    """Whether the short way showed what the whole way would; if in doubt, the whole way decides."""
    if not chosen.frames or chosen.corrupt > quality.max_corrupt * chosen.seen:
        return False
    return all(any(abs(frame.time - time) < 1e-6 for time in route.times) for frame in chosen.frames)


def _all_packets(stream: Any, packets: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    stream.codec_context.skip_frame = "DEFAULT"
    return _decoded(stream, packets)


def _selected_packets(
    stream: Any, packets: Sequence[Any], route: PacketSelection
) -> Iterator[tuple[Any, bool]]:
    context = stream.codec_context
    skips = context.name in SKIPPABLE

    def run(first: int, last: int) -> Iterator[Any]:
        for place in range(first, last + 1):
            if skips:
                context.skip_frame = "DEFAULT" if place in route.selected else "NONREF"
            yield packets[place]
        # The last packet is empty: it asks for the frames that the decoder holds back.
        yield packets[-1]

    for number, (first, last) in enumerate(route.runs):
        if number:
            context.flush_buffers()
        yield from _decoded(stream, run(first, last))


def _decoded(stream: Any, packets: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """The packets' frames that have a clock, each with whether it is damaged; None for one that is lost."""
    import av  # noqa: PLC0415

    marks = stream.codec_context.name in MARKING
    for packet in packets:
        before = 0 if marks else errors_logged()
        try:
            frames = packet.decode()
        except av.FFmpegError:
            yield None, True
            continue
        logged = not marks and errors_logged() > before
        for frame in frames:
            if frame.time is not None:
                yield frame, bool(frame.is_corrupt) or logged


def to_images(frames: Sequence[Any], video: VideoConfig | None) -> list[Frame]:
    """The pictures of frames; one that stands for several moments is made once."""
    from av.video.reformatter import VideoReformatter  # noqa: PLC0415

    made: dict[int, Frame] = {}
    convert = VideoReformatter()
    for frame in frames:
        if id(frame) not in made:
            pixels = resize_frame(frame, video, convert) if video else frame_to_rgb(frame, convert)
            made[id(frame)] = Frame(pixels, float(frame.time))
    return [made[id(frame)] for frame in frames]


@contextmanager
def count_errors() -> Iterator[None]:
    """Let PyAV count what ffmpeg logs as an error, and keep it from the log of the program."""
    import av.logging  # noqa: PLC0415

    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=True):
            yield
    finally:
        av.logging.set_level(before)


def errors_logged() -> int:
    """How many errors ffmpeg has logged so far."""
    import av.logging  # noqa: PLC0415

    return int(av.logging.get_last_error()[0])
