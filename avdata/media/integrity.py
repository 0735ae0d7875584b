"""Does a file end where its own header says? Decoders pass over a missing end without a word."""

from __future__ import annotations

import os
import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

from avdata.errors import MediaError, QuarantineReason

_OPEN_SIZES = {0, 0xFFFFFFFF}

_FLV_TAGS = {8, 9, 18}
"""Sound, pictures and data."""


def check_not_truncated(path: Path, name: str) -> None:
    """Walk the outermost structure of a RIFF, FLV or MP4 file.

    Args:
        path: the file.
        name: its format, as `media.sniff` tells it; others are not looked at.

    Raises:
        MediaError: TRUNCATED, with the bytes that are missing.
    """
    walk = {"wav": _wav_end, "avi": _avi_end, "flv": _flv_end, "mov": _mov_end}.get(name)
    if walk is None:
        return
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        end = walk(stream, size)
    if end > size:
        raise MediaError(
            QuarantineReason.TRUNCATED, f"{path.name} has {size:,} bytes, its header speaks of {end:,}"
        )


def _wav_end(stream: BinaryIO, size: int) -> int:
    """Where the first `data` chunk says it ends; streamed files leave its size open."""
    at = 12
    while at + 8 <= size:
        stream.seek(at)
        kind, length = struct.unpack("<4sI", stream.read(8))
        if kind == b"data":
            return size if length in _OPEN_SIZES else at + 8 + int(length)
        at += 8 + length + length % 2
    return max(at, size)


def _avi_end(stream: BinaryIO, size: int) -> int:
    """Where the RIFF chunk that holds everything says it ends."""
    stream.seek(4)
    length = int.from_bytes(stream.read(4), "little")
    return size if length in _OPEN_SIZES else 8 + length


def _flv_end(stream: BinaryIO, size: int) -> int:
    """Where the last tag ends, its trailing length not counted."""
    stream.seek(5)
    header = stream.read(4)
    if len(header) < 4:
        return size + 1
    at = struct.unpack(">I", header)[0] + 4
    if at >= size:
        return size
    if _ends_with_tag(stream, size):
        return size
    # A tag every few milliseconds: seeking to each takes several times as long as looking at it.
    with mmap(stream.fileno(), size, access=ACCESS_READ) as view:
        while at < size:
            if at + 11 > size:
                return at + 11
            end = at + 11 + int.from_bytes(view[at + 1 : at + 4])
            if end > size:
                return end
            at = end + 4
    return size


def _ends_with_tag(stream: BinaryIO, size: int) -> bool:
    """Whether the file's last bytes give the length of a tag that stands before them and says the same."""
    stream.seek(size - 4)
    length = int.from_bytes(stream.read(4))
    if not 11 <= length <= size - 4 - 13:
        return False
    stream.seek(size - 4 - length)
    kind, data = struct.unpack(">B3s", stream.read(4))
    return kind in _FLV_TAGS and int.from_bytes(data) == length - 11


def _mov_end(stream: BinaryIO, size: int) -> int:
    """Where the last top-level box ends; one of size 0 goes to the end of the file."""
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        length, _ = struct.unpack(">I4s", stream.read(8))
        if length == 1:
            wide = stream.read(8)
            length = struct.unpack(">Q", wide)[0] if len(wide) == 8 else size + 1
        if length == 0:
            return size
        if length < 8:
            return size
        at += length
    return at
