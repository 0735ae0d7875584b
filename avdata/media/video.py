"""One reading of a video file: when its frames come on screen, its own sound, and its frames at given times.

The file is demuxed once. Sound is decoded on the way; the pictures' packets wait until it is known which are
wanted, and only the packets those need are decoded.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import Flag, MediaError, Reason
from avdata.media.audio import Soundtrack
from avdata.media.container import opened
from avdata.media.packet_selection import CLOSE, Route
from avdata.media.resize import fit_frame, frame_pixels
from avdata.media.types import Clock, Picture, Sound

HOLD = 64 << 20
"""Bytes of compressed pictures that are kept in memory; a larger file is read a second time."""

SKIPPABLE = frozenset({"h264", "hevc"})
"""Codecs that say of each packet whether others refer to it; what nobody needs is not decoded."""

MARKING = frozenset({"h264", "hevc"})
"""Codecs whose decoder marks corrupt frames, and logs errors about streams that are whole. Others, such as
VP6 and MJPEG, decode damage in silence but for the log."""


@dataclass
class Film:
    """A video that `open_film` has read.

    Attributes:
        clock: when its frames come on screen.
        sound: its first sound track, or why there is none; None when it was not asked for.
    """

    clock: Clock
    sound: Sound | MediaError | None
    _path: Path
    _quality: QualityConfig
    _stream: Any
    _packets: list[Any] | None = field(repr=False)

    def own_sound(self) -> Sound:
        """Its first sound track.

        Raises:
            MediaError: NO_AUDIO_STREAM or CORRUPT_AUDIO.
        """
        assert self.sound is not None
        if isinstance(self.sound, MediaError):
            raise self.sound
        return self.sound

    def pictures(
        self, moments: Sequence[float], *, seek: bool = False, video: VideoConfig | None = None
    ) -> list[Picture]:
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
            route = Route.of(self._packets[:-1], moments, base, seek=seek)
            frames = _frames(self._path, self._stream, self._packets, route, moments, self._quality)
            return _shown(frames, video)
        with opened(self._path, self._quality) as container:
            stream = _video_stream(container, self._path)
            frames = _frames(self._path, stream, container.demux(stream), None, moments, self._quality)
            return _shown(frames, video)


@contextmanager
def open_film(path: Path, quality: QualityConfig, *, sound: bool = True) -> Iterator[Film]:
    """Read a video: its clock and, when asked for, its sound; its pictures can be had until it is closed.

    Raises:
        MediaError: NO_VIDEO_STREAM, NO_FRAMES, TOO_LARGE, TOO_LONG, UNREADABLE or what `sniff` finds.
    """
    with opened(path, quality) as container:
        stream = _video_stream(container, path)
        _check_size(path, stream.codec_context, quality)
        tracks = container.streams.audio if sound else ()
        track = Soundtrack(path, tracks[0], quality) if tracks else None
        ticks = _Ticks(path, float(stream.time_base), quality.max_seconds)
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
                packets = packets if held <= HOLD else None
        clock = _clock(path, container, stream, ticks)
        yield Film(clock, _heard(path, track, asked=sound), path, quality, stream, packets)


def _heard(path: Path, track: Soundtrack | None, *, asked: bool) -> Sound | MediaError | None:
    if not asked:
        return None
    if track is None:
        return MediaError(Reason.NO_AUDIO_STREAM, f"{path.name} holds no sound")
    try:
        return track.finish()
    except MediaError as error:
        return error


def read_clock(path: Path, quality: QualityConfig) -> Clock:
    """The presentation times of a file's first video track, from its packets, without decoding.

    Raises:
        MediaError: as `open_film`.
    """
    with open_film(path, quality, sound=False) as film:
        return film.clock


def read_pictures(
    path: Path, moments: Sequence[float], quality: QualityConfig, *, seek: bool = False
) -> list[Picture]:
    """`Film.pictures` of a file that is opened for nothing else."""
    with open_film(path, quality, sound=False) as film:
        return film.pictures(moments, seek=seek)


class _Ticks:
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
                Reason.TOO_LONG, f"{self.path.name}: pictures longer than {self.max_seconds:g} s"
            )


def _clock(path: Path, container: Any, stream: Any, ticks: _Ticks) -> Clock:
    if not ticks.all:
        raise MediaError(Reason.NO_FRAMES, f"{path.name} holds no frames")
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
        raise MediaError(Reason.TOO_LONG, f"{path.name}: pictures longer than {ticks.max_seconds:g} s")
    context = stream.codec_context
    facts = {
        "container": container.format.name.partition(",")[0], "video_codec": context.name,
        "width": context.width, "height": context.height, "frames": len(times),
        "fps": round(1 / usual, 4) if usual else 0.0,
    }  # fmt: skip
    flags = [Flag.MULTIPLE_STREAMS] if len(container.streams.video) > 1 else []
    if uneven:
        flags.append(Flag.VARIABLE_RATE)
    return Clock(times, end, facts, tuple(flags))


def _video_stream(container: Any, path: Path) -> Any:
    # A cover picture in a sound file is a video stream to ffmpeg.
    moving = [stream for stream in container.streams.video if not stream.disposition & 0x400]
    if not moving:
        raise MediaError(Reason.NO_VIDEO_STREAM, f"{path.name} holds no pictures")
    return moving[0]


def _check_size(path: Path, picture: Any, quality: QualityConfig) -> None:
    width, height = picture.width, picture.height
    if width * height > quality.max_pixels:
        raise MediaError(Reason.TOO_LARGE, f"{path.name}: {width}×{height} pixels")


@dataclass
class _Chosen:
    """What decoding brought: the frame for each moment so far, frames seen, and how many were damaged."""

    frames: list[Any]
    seen: int
    corrupt: int


def _frames(
    path: Path,
    stream: Any,
    packets: Iterable[Any],
    route: Route | None,
    moments: Sequence[float],
    quality: QualityConfig,
) -> list[Any]:
    """The decoded frame for each moment."""
    stream.thread_count = 1
    # Headers can lie about the size: the decoder refuses a larger frame before it asks for memory.
    stream.codec_context.options = {"max_pixels": str(quality.max_pixels)}
    chosen = None
    if route is not None and isinstance(packets, list):
        found = _choose(_along(stream, packets, route), moments)
        chosen = found if _arrived(found, route, quality) else None
        stream.codec_context.flush_buffers()
    if chosen is None:
        chosen = _choose(_all(stream, packets), moments)
    if not chosen.frames:
        raise MediaError(Reason.NO_FRAMES, f"{path.name}: not one frame could be decoded")
    if chosen.corrupt > quality.max_corrupt * chosen.seen:
        detail = f"{path.name}: {chosen.corrupt} of {chosen.seen} frames"
        raise MediaError(Reason.CORRUPT_FRAMES, detail)
    return chosen.frames


def _choose(decoded: Iterable[tuple[Any, bool]], moments: Sequence[float]) -> _Chosen:
    chosen = _Chosen([], 0, 0)
    on_screen = None
    with closing(decoded), count_errors():  # type: ignore[type-var]
        for frame, damaged in decoded:
            chosen.seen, chosen.corrupt = chosen.seen + 1, chosen.corrupt + damaged
            if frame is None:
                continue
            while len(chosen.frames) < len(moments) and on_screen is not None:
                if moments[len(chosen.frames)] + CLOSE >= frame.time:
                    break
                chosen.frames.append(on_screen)
            if len(chosen.frames) == len(moments):
                return chosen
            on_screen = frame
    if on_screen is not None:
        chosen.frames += [on_screen] * (len(moments) - len(chosen.frames))
    return chosen


def _arrived(chosen: _Chosen, route: Route, quality: QualityConfig) -> bool:
    """Whether the short way showed what the whole way would; if in doubt, the whole way decides."""
    if not chosen.frames or chosen.corrupt > quality.max_corrupt * chosen.seen:
        return False
    return all(any(abs(frame.time - time) < 1e-6 for time in route.times) for frame in chosen.frames)


def _all(stream: Any, packets: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    stream.codec_context.skip_frame = "DEFAULT"
    return _decoded(stream, packets)


def _along(stream: Any, packets: Sequence[Any], route: Route) -> Iterator[tuple[Any, bool]]:
    context = stream.codec_context
    skips = context.name in SKIPPABLE

    def run(first: int, last: int) -> Iterator[Any]:
        for place in range(first, last + 1):
            if skips:
                context.skip_frame = "DEFAULT" if place in route.shown else "NONREF"
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


def _shown(frames: Sequence[Any], video: VideoConfig | None) -> list[Picture]:
    """The pictures of frames; one that stands for several moments is made once."""
    from av.video.reformatter import VideoReformatter  # noqa: PLC0415

    made: dict[int, Picture] = {}
    convert = VideoReformatter()
    for frame in frames:
        if id(frame) not in made:
            pixels = fit_frame(frame, video, convert) if video else frame_pixels(frame, convert)
            made[id(frame)] = Picture(pixels, float(frame.time))
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
