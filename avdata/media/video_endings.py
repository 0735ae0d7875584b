"""Find out from the structure of containers whether their end is missing.

Each `find_*_fault(stream, size)` returns what is missing from a file of `size` bytes, or None.
"""

from __future__ import annotations

import math
import struct
from mmap import ACCESS_READ, mmap
from typing import BinaryIO

from avdata.media.audio_endings import is_open_size, missing_bytes
from avdata.media.formats import ts_packets

_FLV_TAGS = {8, 9, 18}
"""Tag types: audio, video and script data."""

_FLV_TOLERANCE, _FLV_TOLERANCE_S = 0.05, 0.1
"""Shares and seconds of its duration by which the last tag of a whole FLV file may begin earlier."""

_MOV_BOXES = {
    b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"ssix", b"free", b"skip", b"wide",
    b"uuid", b"pnot", b"PICT", b"meta", b"udta", b"emsg", b"prft", b"pdin",
}  # fmt: skip
"""Types of the boxes that a QuickTime or MP4 file consists of."""

_MOV_ESSENTIAL = {b"moov", b"mdat", b"moof"}

_DV_SEQUENCE_BYTES = 12_000

_PS_TAIL_BYTES = 256 << 10
"""Bytes at the end of a program stream that hold at least one pack."""

_OGG_TAIL_BYTES = 256 << 10
"""Bytes at the end of an Ogg file that hold the last page of each stream; a page has at most 65,307."""

_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")

_SEGMENT = 0x18538067


def find_avi_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the outermost RIFF chunks; OpenDML files have several."""
    position = 0
    while position + 12 <= size:
        stream.seek(position)
        kind, length = struct.unpack("<4sI", stream.read(8))
        if kind != b"RIFF" or is_open_size(length):
            return None
        # Some recorders count the 8 bytes of the chunk's own header.
        if position + length > size:
            return missing_bytes(size, position + 8 + length)
        position += 8 + length + length % 2
    return None


def find_flv_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the end of the last tag, without its trailing length, and with the metadata."""
    stream.seek(5)
    header = stream.read(4)
    position = int.from_bytes(header) + 4
    if len(header) < 4 or position >= size:
        return missing_bytes(size, max(13, position))
    metadata = _flv_metadata(stream, position)
    if metadata.get("filesize", 0.0) > size:
        return missing_bytes(size, round(metadata["filesize"]))
    last_time = _last_tag_time(stream, size)
    if last_time is not None:
        duration = metadata.get("duration", 0.0)
        is_short = last_time < duration - max(_FLV_TOLERANCE_S, _FLV_TOLERANCE * duration)
        return f"ends at {last_time:.3f} s, at {duration:.3f} s by its header" if is_short else None
    return _incomplete_tag(stream, size, position)


def _incomplete_tag(stream: BinaryIO, size: int, position: int) -> str | None:
    """Follow the tags from a position; return what the last one lacks."""
    # There is a tag every few milliseconds; a seek and a read for each take several times as long as mmap.
    with mmap(stream.fileno(), size, access=ACCESS_READ) as view:
        while position < size:
            if view[position] not in _FLV_TAGS:
                return None  # Bytes after the last tag.
            if position + 11 > size:
                return missing_bytes(size, position + 11)
            end = position + 11 + int.from_bytes(view[position + 1 : position + 4])
            if end > size:
                return missing_bytes(size, end)
            position = end + 4
    return None


def _last_tag_time(stream: BinaryIO, size: int) -> float | None:
    """Return the time in s of the FLV tag whose length are the last 4 bytes; None if there is none."""
    stream.seek(size - 4)
    length = int.from_bytes(stream.read(4))
    if not 11 <= length <= size - 4 - 13:
        return None
    stream.seek(size - 4 - length)
    kind, data, low, high = struct.unpack(">B3s3s1s", stream.read(8))
    if kind not in _FLV_TAGS or int.from_bytes(data) != length - 11:
        return None
    return int.from_bytes(high + low) / 1000


def _flv_metadata(stream: BinaryIO, position: int) -> dict[str, float]:
    """Return the finite numbers `duration` (s) and `filesize` of the script tag at a position."""
    stream.seek(position)
    tag = stream.read(4096)
    if tag[:1] != b"\x12":
        return {}
    found: dict[str, float] = {}
    for name in ("duration", "filesize"):
        key = len(name).to_bytes(2) + name.encode() + b"\0"
        at = tag.find(key) + len(key)
        if at >= len(key) and at + 8 <= len(tag):
            value = struct.unpack(">d", tag[at : at + 8])[0]
            found |= {name: value} if math.isfinite(value) else {}
    return found


def find_mov_fault(stream: BinaryIO, size: int) -> str | None:
    """Check that the boxes of QuickTime or MP4 are complete; bytes after them belong to no box."""
    position = 0
    kinds: set[bytes] = set()
    while position + 8 <= size:
        stream.seek(position)
        length, kind = struct.unpack(">I4s", stream.read(8))
        if length == 1:
            large_size = stream.read(8)
            length = struct.unpack(">Q", large_size)[0] if len(large_size) == 8 else size + 1
        has_media = {b"moov", b"mdat"} <= kinds
        if 0 < length < 8 or (has_media and kind not in _MOV_BOXES):
            return None
        kinds.add(kind)
        if length == 0:  # the box ends with the file
            break
        position += length
        if position > size:
            return missing_bytes(size, position) if kind in _MOV_ESSENTIAL or not has_media else None
    if b"moov" not in kinds:
        return f"{size:,} bytes without an index (moov box)"
    return None if b"mdat" in kinds else f"{size:,} bytes without media (mdat box)"


def find_matroska_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the end of the segment; its size may be unknown."""
    position = 0
    while position < size:
        stream.seek(position)
        head = stream.read(12)
        id_length = _vint_length(head)
        size_length = _vint_length(head[id_length:])
        if not id_length or not size_length or len(head) < id_length + size_length:
            return None
        length = int.from_bytes(head[id_length : id_length + size_length]) & (1 << 7 * size_length) - 1
        if length == (1 << 7 * size_length) - 1:
            return None
        position += id_length + size_length + length
        if int.from_bytes(head[:id_length]) == _SEGMENT:
            return missing_bytes(size, position)
    return missing_bytes(size, position)


def _vint_length(data: bytes) -> int:
    """Return the bytes of the EBML number at the start of data; 0 if there is none."""
    return 9 - data[0].bit_length() if data and data[0] else 0


def find_asf_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the end of the data object of ASF; a live stream has size 0 or one packet."""
    stream.seek(16)
    header = stream.read(8)
    if len(header) < 8:
        return missing_bytes(size, 30)
    position = int.from_bytes(header, "little")
    if position + 24 > size:
        return missing_bytes(size, position + 24)
    stream.seek(position)
    head = stream.read(24)
    length = int.from_bytes(head[16:], "little")
    return missing_bytes(size, position + length) if head[:16] == _ASF_DATA else None


def find_mxf_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the position of the footer, and with the end of the last KLV packet."""
    stream.seek(16)
    head = stream.read(41)
    length_bytes = 1 + (head[0] & 0x7F if head and head[0] & 0x80 else 0)
    footer = int.from_bytes(head[length_bytes + 24 : length_bytes + 32])
    if footer >= size:
        return missing_bytes(size, footer + 1)
    position = 0
    while position + 25 <= size:
        stream.seek(position)
        head = stream.read(25)
        if head[:4] != b"\x06\x0e\x2b\x34":
            return None
        extra = head[16] & 0x7F if head[16] & 0x80 else 0
        length = int.from_bytes(head[17 : 17 + extra]) if extra else head[16]
        position += 17 + extra + length
    return missing_bytes(size, position)


def find_dv_fault(stream: BinaryIO, size: int) -> str | None:
    """Check that raw DV ends with a whole frame."""
    stream.seek(3)
    is_pal = stream.read(1)[0] & 0x80
    frame = _DV_SEQUENCE_BYTES * (12 if is_pal else 10)
    return f"{size:,} bytes are no whole number of frames of {frame:,}" if size % frame else None


def find_mpeg_fault(stream: BinaryIO, size: int) -> str | None:
    """Check that the last packet of an MPEG program stream is complete. Its header states no duration."""
    start = max(0, size - _PS_TAIL_BYTES)
    stream.seek(start)
    tail = stream.read()
    position = tail.rfind(b"\x00\x00\x01\xba")
    if position < 0:
        return None
    is_mpeg2 = tail[position + 4 : position + 5] >= b"\x40"
    position += 14 + (tail[position + 13] & 7 if position + 13 < len(tail) else 0) if is_mpeg2 else 12
    while position + 6 <= len(tail) and tail[position : position + 3] == b"\x00\x00\x01":
        if tail[position + 3] < 0xBB:
            return None
        position += 6 + int.from_bytes(tail[position + 4 : position + 6])
    return missing_bytes(size, start + position)


def find_mpegts_fault(stream: BinaryIO, size: int) -> str | None:
    """Check that an MPEG transport stream ends with a whole packet. Its header states no duration."""
    stream.seek(0)
    packets = ts_packets(stream.read(2048))
    if packets is None:
        return None
    offset, packet_size = packets
    # The four bytes of a time code precede the packets of M2TS.
    incomplete = (size - offset + (packet_size == 192) * 4) % packet_size
    if not incomplete:
        return None
    stream.seek(size - incomplete + (packet_size == 192) * 4)
    return f"{size:,} bytes, its last packet is incomplete" if stream.read(1) in {b"G", b""} else None


def find_ogg_fault(stream: BinaryIO, size: int) -> str | None:
    """Check that the last page of each stream is complete and marked as the last."""
    start = max(0, size - _OGG_TAIL_BYTES)
    stream.seek(start)
    tail = stream.read()
    position = tail.find(b"OggS\0")
    is_last: dict[bytes, bool] = {}
    while position >= 0:
        num_segments = tail[position + 26 : position + 27]
        segments = tail[position + 27 : position + 27 + (num_segments[0] if num_segments else 0)]
        end = position + 27 + len(segments) + sum(segments)
        if not num_segments or len(segments) < num_segments[0] or end > len(tail):
            return missing_bytes(size, max(start + end, size + 1))
        is_last[tail[position + 14 : position + 18]] = bool(tail[position + 5] & 4)
        position = tail.find(b"OggS\0", end)
    if is_last and not all(is_last.values()):
        return "its last Ogg page is not marked as the end of the stream"
    return None
