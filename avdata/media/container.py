"""Detect the format of a media file and open it.

All times are seconds on the container's own axis, from its presentation timestamps. The format is detected by
the first bytes and passed to ffmpeg, which may open no other file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.integrity import check_not_truncated

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"

MAGIC_BYTES: tuple[tuple[int, bytes, str], ...] = (
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
"""Offset, bytes and ffmpeg's name of each supported container and image format."""

IMAGE_FORMATS = frozenset({"jpeg", "png", "webp"})

HEAD_BYTES = 64
"""Bytes at the start of a file by which its format is detected."""

ATTACHED_PICTURE = 0x400
"""ffmpeg's AV_DISPOSITION_ATTACHED_PIC."""


def detect_format(path: Path) -> str:
    """Return ffmpeg's name of a file's format, by its first bytes.

    Raises:
        MediaError: EMPTY_FILE, LFS_POINTER or NOT_MEDIA.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return detect_format_of(stream.read(HEAD_BYTES))


def detect_format_of(head: bytes) -> str:
    """Return ffmpeg's name of the format of a file that starts with `head`.

    Raises:
        MediaError: EMPTY_FILE, LFS_POINTER or NOT_MEDIA.
    """
    head = head[:HEAD_BYTES]
    if not head:
        raise MediaError(QuarantineReason.EMPTY_FILE, "0 bytes")
    if head.startswith(LFS_POINTER):
        raise MediaError(QuarantineReason.LFS_POINTER, "git-LFS pointer text")
    for offset, magic, name in MAGIC_BYTES:
        if head[offset : offset + len(magic)] == magic:
            return name
    if head[:1] == b"\xff" and head[1:2] and head[1] & 0xE6 == 0xE2:
        return "mp3"
    start = repr(head[:16]).removeprefix("b")
    raise MediaError(QuarantineReason.NOT_MEDIA, f"unknown format, first bytes {start}")


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
    """
    import av  # noqa: PLC0415

    name = check_container(path)
    try:
        # max_pixels limits the decoders with which ffmpeg probes the first frames.
        options = {"protocol_whitelist": "file", "enable_drefs": "0", "max_pixels": str(quality.max_pixels)}
        # PyAV lets ffmpeg invent a missing pts; with B-frames, many are wrong.
        options["fflags"] = "-genpts"
        with av.open(
            f"file:{os.path.abspath(path)}", format=name, options=options, metadata_errors="ignore"
        ) as container:
            yield container
    except av.FFmpegError as error:
        raise MediaError(QuarantineReason.UNREADABLE, f"{path.name}: {error.strerror or error}") from error


def video_stream(container: Any, path: Path) -> Any:
    """Return the first video stream that is not a cover image.

    Raises:
        MediaError: NO_VIDEO_STREAM.
    """
    # To ffmpeg, the cover image of an audio file is a video stream.
    streams = [stream for stream in container.streams.video if not stream.disposition & ATTACHED_PICTURE]
    if not streams:
        raise MediaError(QuarantineReason.NO_VIDEO_STREAM, f"{path.name}: no video stream")
    return streams[0]


def audio_stream(container: Any, path: Path) -> Any:
    """Return the first audio stream.

    Raises:
        MediaError: NO_AUDIO_STREAM.
    """
    if not container.streams.audio:
        raise MediaError(QuarantineReason.NO_AUDIO_STREAM, f"{path.name}: no audio stream")
    return container.streams.audio[0]


def require_codec(stream: Any, path: Path) -> None:
    """Raise MediaError UNREADABLE if PyAV has no decoder for a stream."""
    if stream.codec_context is None:
        raise MediaError(
            QuarantineReason.UNREADABLE, f"{path.name}: PyAV has no decoder for the {stream.type}"
        )
