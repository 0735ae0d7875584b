"""Detect truncated files by their headers. Decoders ignore a missing end without an error."""

from __future__ import annotations

import os
import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

from avdata.errors import MediaError, QuarantineReason

_UNKNOWN_SIZES = {0, 0xFFFFFFFF}

_FLV_TAGS = {8, 9, 18}
"""Tag types: audio, video and script data."""


def check_not_truncated(path: Path, name: str) -> None:
    """Compare a file's size with the end of its outermost structure (RIFF, FLV or MP4).

    Args:
        path: the file.
        name: its format, as `detect_format` returns it. Other formats are not checked.

    Raises:
        MediaError: TRUNCATED.
    """
    find_end = {"wav": _wav_end, "avi": _avi_end, "flv": _flv_end, "mov": _mov_end}.get(name)
    if find_end is None:
        return
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        end = find_end(stream, size)
    if end > size:
        raise MediaError(
            QuarantineReason.TRUNCATED, f"{path.name}: {size:,} bytes, at least {end:,} by its header"
        )


def _wav_end(stream: BinaryIO, size: int) -> int:
    """Return the end of the first `data` chunk; streamed files leave its size open."""
    position = 12
    while position + 8 <= size:
        stream.seek(position)
        kind, length = struct.unpack("<4sI", stream.read(8))
        if kind == b"data":
            return size if length in _UNKNOWN_SIZES else position + 8 + int(length)
        position += 8 + length + length % 2
    return max(position, size)


def _avi_end(stream: BinaryIO, size: int) -> int:
    """Return the end of the outermost RIFF chunk."""
    stream.seek(4)
    length = int.from_bytes(stream.read(4), "little")
    return size if length in _UNKNOWN_SIZES else 8 + length


def _flv_end(stream: BinaryIO, size: int) -> int:
    """Return the end of the last tag, without its trailing length."""
    stream.seek(5)
    header = stream.read(4)
    if len(header) < 4:
        return size + 1
    position = struct.unpack(">I", header)[0] + 4
    if position >= size:
        return size
    if _ends_with_tag(stream, size):
        return size
    # There is a tag every few milliseconds; a seek and a read for each take several times as long as mmap.
    with mmap(stream.fileno(), size, access=ACCESS_READ) as view:
        while position < size:
            if position + 11 > size:
                return position + 11
            end = position + 11 + int.from_bytes(view[position + 1 : position + 4])
            if end > size:
                return end
            position = end + 4
    return size


def _ends_with_tag(stream: BinaryIO, size: int) -> bool:
    """Return whether the last 4 bytes are the length of an FLV tag that ends there."""
    stream.seek(size - 4)
    length = int.from_bytes(stream.read(4))
    if not 11 <= length <= size - 4 - 13:
        return False
    stream.seek(size - 4 - length)
    kind, data = struct.unpack(">B3s", stream.read(4))
    return kind in _FLV_TAGS and int.from_bytes(data) == length - 11


def _mov_end(stream: BinaryIO, size: int) -> int:
    """Return the end of the last top-level box; one of size 0 ends with the file."""
    position = 0
    while position + 8 <= size:
        stream.seek(position)
        length, _ = struct.unpack(">I4s", stream.read(8))
        if length == 1:
            large_size = stream.read(8)
            length = struct.unpack(">Q", large_size)[0] if len(large_size) == 8 else size + 1
        if length < 8:
            return size
        position += length
    return position
