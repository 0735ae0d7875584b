"""Open and decode one media file: what it is, its clocks, its frames at given times, its sound as mono.

All times are seconds on the container's own axis, as its presentation timestamps say. Streams are chosen by
type. ffmpeg is told the container's format, which the first bytes decide, and may open that one file only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config import QualityConfig
from avdata.errors import Flag, MediaError, Reason
from avdata.whole import check_whole

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"

MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"FLV\x01", "flv"),
    (8, b"WAVE", "wav"),
    (8, b"AVI ", "avi"),
    (8, b"WEBP", "webp"),
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
)
"""Offset, bytes and ffmpeg's name of each container and image type that is opened; nothing else is."""

STILLS = frozenset({"jpeg", "png", "webp"})
GAP = 0.05
"""Seconds of missing timestamps in a sound track that count as a hole, and are filled with silence."""


def sniff(path: Path) -> str:
    """The format of a file by its first bytes.

    Raises:
        MediaError: EMPTY_FILE, LFS_POINTER or NOT_MEDIA.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise MediaError(Reason.EMPTY_FILE, "0 bytes")
    if head.startswith(LFS_POINTER):
        raise MediaError(Reason.LFS_POINTER, "git-LFS pointer text")
    for offset, magic, name in MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    if head[:1] == b"\xff" and head[1:2] and head[1] & 0xE6 == 0xE2:
        return "mp3"
    raise MediaError(Reason.NOT_MEDIA, f"it begins with {head[:16]!r}")


@dataclass(frozen=True, slots=True)
class Sound:
    """A decoded sound track: mono float32 samples in [-1, 1], rate, when the first one is heard, facts."""

    samples: np.ndarray
    rate: int
    start: float
    facts: dict[str, Any]

    @property
    def end(self) -> float:
        """When the last sample ends, s."""
        return self.start + len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class Clock:
    """When each frame of a video comes on screen, s ascending; when the last one ends; facts; flags."""

    times: np.ndarray
    end: float
    facts: dict[str, Any]
    flags: tuple[Flag, ...]

    @property
    def start(self) -> float:
        """When the first frame comes on screen, s."""
        return float(self.times[0])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av  # noqa: PLC0415

    name = sniff(path)
    check_whole(path, name)
    try:
        options = {"protocol_whitelist": "file", "enable_drefs": "0"}
        with av.open(
            f"file:{path.resolve()}", format=name, options=options, metadata_errors="ignore"
        ) as container:
            yield container
    except av.FFmpegError as error:
        raise MediaError(Reason.UNREADABLE, f"{path.name}: {error.strerror or error}") from error


def read_sound(path: Path, quality: QualityConfig) -> Sound:
    """Decode a file's first sound track to mono, honouring priming, edit lists and late starts.

    Raises:
        MediaError: NO_AUDIO_STREAM, TOO_LONG, UNREADABLE, TRUNCATED or what `sniff` finds.
    """
    with _opened(path) as container:
        if not container.streams.audio:
            raise MediaError(Reason.NO_AUDIO_STREAM, f"{path.name} holds no sound")
        stream = container.streams.audio[0]
        rate, pieces, start, count = int(stream.rate), [], None, 0
        for frame in _frames(container, stream):
            piece = _mono(frame)
            if start is None:
                start = 0.0 if frame.time is None else float(frame.time)
            elif frame.time is not None and (hole := frame.time - start - count / rate) > GAP:
                if hole > quality.max_seconds:
                    raise MediaError(Reason.TOO_LONG, f"{path.name}: a hole of {hole:.0f} s in the sound")
                pieces.append(np.zeros(round(hole * rate), np.float32))
                count += len(pieces[-1])
            pieces.append(piece)
            count += len(piece)
            if count > quality.max_seconds * rate:
                raise MediaError(Reason.TOO_LONG, f"{path.name}: sound longer than {quality.max_seconds:g} s")
        if start is None:
            raise MediaError(Reason.NO_AUDIO_STREAM, f"{path.name}: not one sample of sound could be decoded")
        facts = {
            "audio_codec": stream.codec_context.name,
            "audio_rate": rate,
            "audio_channels": int(stream.channels),
        }
        return Sound(np.concatenate(pieces), rate, start, facts)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """A stream's frames; packets that cannot be decoded are passed over."""
    import av  # noqa: PLC0415

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            continue


def _mono(frame: Any) -> np.ndarray:
    """The mean of a sound frame's channels, float32 in [-1, 1]."""
    values = frame.to_ndarray()
    channels = frame.layout.nb_channels
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    if values.dtype == np.uint8:
        scaled = (values.astype(np.float32) - 128.0) / 128.0
    elif values.dtype.kind == "i":
        scaled = values.astype(np.float32) / float(-np.iinfo(values.dtype).min)
    else:
        scaled = values.astype(np.float32)
    mixed: np.ndarray = scaled[0] if channels == 1 else scaled.mean(axis=0, dtype=np.float32)
    return mixed


def read_clock(path: Path, quality: QualityConfig) -> Clock:
    """The presentation times of a file's first video track, from its packets, without decoding.

    Raises:
        MediaError: NO_VIDEO_STREAM, NO_FRAMES, TOO_LARGE, TOO_LONG, UNREADABLE or what `sniff` finds.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > quality.max_pixels:
            raise MediaError(Reason.TOO_LARGE, f"{path.name}: {width}×{height} pixels")
        ticks, last = [], 0
        for packet in container.demux(stream):
            when = packet.dts if packet.pts is None else packet.pts
            if when is None or packet.is_discard:
                continue
            ticks.append(when)
            last = packet.duration or last
        if not ticks:
            raise MediaError(Reason.NO_FRAMES, f"{path.name} holds no frames")
        times = np.sort(np.array(ticks, np.float64)) * float(stream.time_base)
        gaps = np.diff(times)
        usual = float(np.median(gaps)) if len(gaps) else float(last * stream.time_base)
        # Clocks of a millisecond jitter by one tick; a frame left out is a whole frame more.
        uneven = len(gaps) > 1 and bool(np.any(gaps > 1.6 * usual))
        if len(gaps) and not uneven:
            usual = float(np.mean(gaps))
        # A container's own duration of the last packet is often missing or that of a clock tick.
        end = float(times[-1]) + usual
        if end - times[0] > quality.max_seconds:
            raise MediaError(Reason.TOO_LONG, f"{path.name}: pictures longer than {quality.max_seconds:g} s")
        facts = {
            "container": container.format.name.partition(",")[0], "video_codec": stream.codec_context.name,
            "width": width, "height": height, "frames": len(times),
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


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame: uint8 [H, W, 3] and when it comes on screen, s."""

    pixels: np.ndarray
    time: float


def read_pictures(path: Path, moments: Sequence[float], quality: QualityConfig) -> list[Picture]:
    """The frame on screen at each of ascending moments: the last one that has come by then.

    Before the first frame that is the first, after the last frame the last. Frames are decoded in order up to
    the last one wanted, and only wanted ones become pixels.

    Raises:
        MediaError: NO_VIDEO_STREAM, NO_FRAMES, CORRUPT_FRAMES, UNREADABLE or what `sniff` finds.
    """
    from av.video.reformatter import VideoReformatter  # noqa: PLC0415

    with _opened(path) as container:
        stream = _video_stream(container, path)
        stream.thread_count = 1
        wanted: list[Any] = []
        on_screen, seen, corrupt = None, 0, 0
        for frame in _counted(container, stream):
            if frame is None:
                seen, corrupt = seen + 1, corrupt + 1
                continue
            seen, corrupt = seen + 1, corrupt + bool(frame.is_corrupt)
            while len(wanted) < len(moments) and on_screen is not None and moments[len(wanted)] < frame.time:
                wanted.append(on_screen)
            if len(wanted) == len(moments):
                break
            on_screen = frame
        if on_screen is None:
            raise MediaError(Reason.NO_FRAMES, f"{path.name}: not one frame could be decoded")
        if corrupt > quality.max_corrupt * seen:
            raise MediaError(Reason.CORRUPT_FRAMES, f"{path.name}: {corrupt} of {seen} frames")
        wanted += [on_screen] * (len(moments) - len(wanted))
        made: dict[int, Picture] = {}
        convert = VideoReformatter()
        return [
            made.setdefault(id(frame), made.get(id(frame)) or _picture(frame, convert)) for frame in wanted
        ]


def _counted(container: Any, stream: Any) -> Iterator[Any]:
    """A stream's frames with a clock, and None for each packet that cannot be decoded."""
    import av  # noqa: PLC0415

    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            yield None
            continue
        yield from (frame for frame in frames if frame.time is not None)


def _picture(frame: Any, convert: Any) -> Picture:
    # One thread: starting and ending threads for each frame takes ten times as long as converting it.
    pixels = convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
    # The display matrix turns counter-clockwise, in degrees.
    turns = round(frame.rotation / 90) % 4
    return Picture(np.ascontiguousarray(np.rot90(pixels, turns)), float(frame.time))


def read_pictures_decord(path: Path, clock: Clock, moments: Sequence[float]) -> list[Picture]:
    """The same frames as `read_pictures`, through decord; times come from the clock, which decord loses.

    Raises:
        MediaError: UNREADABLE.
    """
    import decord  # noqa: PLC0415

    places = np.clip(np.searchsorted(clock.times, moments, side="right") - 1, 0, len(clock.times) - 1)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        pixels = reader.get_batch([min(int(place), len(reader) - 1) for place in places]).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise MediaError(Reason.UNREADABLE, f"{path.name}: decord cannot read it") from error
    return [
        Picture(picture, float(clock.times[place])) for picture, place in zip(pixels, places, strict=True)
    ]


def read_still(path: Path, quality: QualityConfig) -> Picture:
    """A still image as RGB, turned as its EXIF says.

    Raises:
        MediaError: NOT_MEDIA, TOO_LARGE, UNREADABLE.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415

    name = sniff(path)
    if name not in STILLS:
        raise MediaError(Reason.NOT_MEDIA, f"{path.name} is {name}, not a still image")
    try:
        with Image.open(path, formats=[name.upper()]) as image:
            if image.width * image.height > quality.max_pixels:
                raise MediaError(Reason.TOO_LARGE, f"{path.name}: {image.width}×{image.height} pixels")
            turned = ImageOps.exif_transpose(image)
            return Picture(np.array(turned.convert("RGB")), 0.0)
    except (OSError, ValueError, SyntaxError) as error:
        raise MediaError(Reason.UNREADABLE, f"{path.name}: {error}") from error
