"""Open media files and choose their streams.

All times are seconds on the container's own axis, from its presentation timestamps. The format is detected by
the first bytes and passed to ffmpeg, which may open no other file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.formats import IMAGE_FORMATS, detect_format
from avdata.media.integrity import check_not_truncated, detect_demuxer_truncation, has_open_size

DEFAULT_STREAM = 0x1
"""ffmpeg's AV_DISPOSITION_DEFAULT."""

PICTURE_STREAM = 0x400 | 0x800
"""ffmpeg's AV_DISPOSITION_ATTACHED_PIC and AV_DISPOSITION_TIMED_THUMBNAILS."""


def check_container(path: Path) -> str:
    """Return ffmpeg's name of a file's format, after checks that need no decoder.

    Raises:
        MediaError: TRUNCATED, NOT_MEDIA for an image, or an error of `detect_format`.
    """
    name = detect_format(path)
    if name in IMAGE_FORMATS:
        raise MediaError(QuarantineReason.NOT_MEDIA, f"{path.name}: {name} image, expected audio or video")
    check_not_truncated(path, name)
    return name


@contextmanager
def open_container(path: Path, quality: QualityConfig) -> Iterator[Any]:
    """Open a file as a container of the format that its first bytes show.

    Raises:
        MediaError: UNREADABLE or an error of `check_container`.
        OSError: the file cannot be read.
    """
    import av  # noqa: PLC0415

    name = check_container(path)
    options = {
        "protocol_whitelist": "file",
        "enable_drefs": "0",
        # It limits the decoders with which ffmpeg probes the first frames.
        "max_pixels": str(quality.max_pixels),
        # PyAV lets ffmpeg invent a missing pts; with B-frames, many are wrong.
        "fflags": "-genpts",
        **demuxer_options(path, name),
    }
    with detect_demuxer_truncation(path):
        try:
            with av.open(
                f"file:{os.path.abspath(path)}", format=name, options=options, metadata_errors="ignore"
            ) as container:
                yield container
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                _require_readable(path)
            raise MediaError(
                QuarantineReason.UNREADABLE, f"{path.name}: {error.strerror or error}"
            ) from error


def demuxer_options(path: Path, name: str) -> dict[str, str]:
    """Return the options of ffmpeg's demuxer with which a file of a format is read to its end."""
    return {"ignore_length": "1"} if name == "wav" and has_open_size(path) else {}


def _require_readable(path: Path) -> None:
    """Read a file to its end, because ffmpeg raises the errors of the disk for damaged files too."""
    with path.open("rb") as stream:
        while stream.read(1 << 20):
            pass


def media_streams(streams: Sequence[Any]) -> list[Any]:
    """Return the streams of one type that are no cover images, which ffmpeg lists as video."""
    return [stream for stream in streams if not stream.disposition & PICTURE_STREAM]


def has_multiple_streams(container: Any) -> bool:
    """Return whether a container has several video streams or several audio streams."""
    return any(
        len(media_streams(streams)) > 1 for streams in (container.streams.video, container.streams.audio)
    )


def video_stream(container: Any, path: Path, *, any_codec: bool = False) -> Any:
    """Return the default video stream, or the first, of those that PyAV can decode.

    Args:
        container: PyAV's container.
        path: the file, for messages.
        any_codec: if PyAV can decode none, choose among all, for a decoder with other codecs.

    Raises:
        MediaError: NO_VIDEO_STREAM or UNDECODABLE_VIDEO.
    """
    streams = media_streams(container.streams.video)
    if not streams:
        raise MediaError(QuarantineReason.NO_VIDEO_STREAM, f"{path.name}: no video stream")
    stream = _preferred(streams, any_codec=any_codec)
    if stream is None:
        raise MediaError(QuarantineReason.UNDECODABLE_VIDEO, f"{path.name}: unknown video codec")
    return stream


def audio_stream(container: Any, path: Path, *, any_codec: bool = False) -> Any:
    """Return the default audio stream, or the first; see `video_stream`.

    Raises:
        MediaError: NO_AUDIO_STREAM or UNDECODABLE_AUDIO.
    """
    streams = container.streams.audio
    if not streams:
        raise MediaError(QuarantineReason.NO_AUDIO_STREAM, f"{path.name}: no audio stream")
    stream = _preferred(streams, any_codec=any_codec)
    if stream is None:
        raise MediaError(QuarantineReason.UNDECODABLE_AUDIO, f"{path.name}: unknown audio codec")
    return stream


def _preferred(streams: Sequence[Any], *, any_codec: bool) -> Any | None:
    decodable = [stream for stream in streams if stream.codec_context is not None]
    candidates = list(streams) if any_codec and not decodable else decodable
    default = [stream for stream in candidates if stream.disposition & DEFAULT_STREAM]
    return next(iter(default or candidates), None)
