"""Open one media file: what it is, and the types of what `film`, `soundtrack` and this room read from it.

All times are seconds on the container's own axis, as its presentation timestamps say. Streams are chosen by
type. ffmpeg is told the container's format, which the first bytes decide, and may open that one file only.
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
"""Offset, bytes and ffmpeg's name of each container and image type that is opened; nothing else is."""

IMAGE_FORMATS = frozenset({"jpeg", "png", "webp"})


def detect_format(path: Path) -> str:
    """The format of a file by its first bytes.

    Raises:
        MediaError: EMPTY_FILE, LFS_POINTER or NOT_MEDIA.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise MediaError(QuarantineReason.EMPTY_FILE, "0 bytes")
    if head.startswith(LFS_POINTER):
        raise MediaError(QuarantineReason.LFS_POINTER, "git-LFS pointer text")
    for offset, magic, name in MAGIC_BYTES:
        if head[offset : offset + len(magic)] == magic:
            return name
    if head[:1] == b"\xff" and head[1:2] and head[1] & 0xE6 == 0xE2:
        return "mp3"
    shown = repr(head[:16]).removeprefix("b")
    raise MediaError(QuarantineReason.NOT_MEDIA, f"it begins with {shown}")


@contextmanager
def open_container(path: Path, quality: QualityConfig) -> Iterator[Any]:
    """The container of a file: of the format its first bytes tell, whole, and of that one file only.

    Raises:
        MediaError: TRUNCATED, UNREADABLE, NOT_MEDIA for a still image, or what `detect_format` finds.
    """
    import av  # noqa: PLC0415

    name = detect_format(path)
    if name in IMAGE_FORMATS:
        raise MediaError(QuarantineReason.NOT_MEDIA, f"{path.name} is a still image ({name})")
    check_not_truncated(path, name)
    try:
        # max_pixels is for the decoders that look at the first frames to learn what they are.
        options = {"protocol_whitelist": "file", "enable_drefs": "0", "max_pixels": str(quality.max_pixels)}
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
    moving = [stream for stream in container.streams.video if not stream.disposition & 0x400]
    if not moving:
        raise MediaError(QuarantineReason.NO_VIDEO_STREAM, f"{path.name} holds no pictures")
    return moving[0]
