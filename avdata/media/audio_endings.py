"""Find out from the headers of audio files whether their end is missing.

Each `find_*_fault(stream, size)` returns what is missing from a file of `size` bytes, or None.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

from avdata.media.mpeg_audio import skip_tags

OPEN_SIZE = 0x7FFFF000
"""32-bit sizes from this one on are written by programs that cannot seek back to the header.

sox writes 0x7FFFF000, ffmpeg 0xFFFFFFFF, and others INT32_MAX or 0xFFFFFFFF - 36.
"""

OPEN_SIZE_64 = 0x7FFFFFFFFFFFF000
"""The same for 64-bit sizes."""

_HEADER_BYTES = 44
"""Size of the usual WAV header; some recorders count it as data."""


def missing_bytes(size: int, end: int) -> str | None:
    """Return what a file of `size` bytes lacks if its header states `end`."""
    return f"{size:,} bytes, at least {end:,} by its header" if end > size else None


def is_open_size(length: int) -> bool:
    """Return whether a 32-bit size was never filled in."""
    return length == 0 or length >= OPEN_SIZE


def find_wav_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the first `data` chunk of RIFF, RIFX, RF64 or BW64."""
    start, length, _ = _find_wav_data(stream, size)
    return None if length is None else _missing_samples(start, length, size)


def is_open_rf64(stream: BinaryIO, size: int) -> bool:
    """Return whether the size in the `ds64` chunk of RF64 or BW64 was never filled in."""
    _, length, is_64_bit = _find_wav_data(stream, size)
    return is_64_bit and length is None


def _find_wav_data(stream: BinaryIO, size: int) -> tuple[int, int | None, bool]:
    """Return start and size of the samples, None if it was left open, and whether it is a 64-bit size."""
    stream.seek(0)
    order = ">" if stream.read(4) == b"RIFX" else "<"
    position = 12
    size_64 = None
    while position + 8 <= size:
        stream.seek(position)
        kind, length = struct.unpack(f"{order}4sI", stream.read(8))
        if kind == b"ds64":
            size_64 = int.from_bytes(stream.read(16)[8:], "little")
        if kind == b"data" and length == 0xFFFFFFFF and size_64 is not None:
            is_open = size_64 in {0, 0xFFFFFFFF} or size_64 >= OPEN_SIZE_64
            return position + 8, None if is_open else size_64, True
        if kind == b"data":
            return position + 8, None if is_open_size(length) else length, False
        position += 8 + length + length % 2
    return position, 0, False


def _missing_samples(start: int, length: int, size: int) -> str | None:
    counts_header = length in {size, size - 8} or 0 < start + length - size <= _HEADER_BYTES < length
    return None if counts_header else missing_bytes(size, start + length)


def find_w64_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the `data` chunk of Sony Wave64."""
    position = 40
    while position + 24 <= size:
        stream.seek(position)
        kind, length = struct.unpack("<4s12xQ", stream.read(24))
        if length < 24:
            return None
        if kind == b"data":
            return None if length >= OPEN_SIZE_64 else missing_bytes(size, position + length)
        position += (length + 7) // 8 * 8
    return missing_bytes(size, position)


def find_aiff_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the `SSND` chunk of AIFF or AIFF-C."""
    position = 12
    while position + 8 <= size:
        stream.seek(position)
        kind, length = struct.unpack(">4sI", stream.read(8))
        if kind == b"SSND":
            return None if is_open_size(length) else _missing_samples(position + 8, length, size)
        position += 8 + length + length % 2
    return missing_bytes(size, position)


def find_au_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the header of Sun's AU."""
    stream.seek(4)
    header = stream.read(8)
    if len(header) < 8:
        return missing_bytes(size, 24)
    start, length = struct.unpack(">II", header)
    return None if is_open_size(length) else _missing_samples(start, length, size)


def find_caf_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the `data` chunk of Apple's Core Audio Format; its size may be -1."""
    position = 8
    while position + 12 <= size:
        stream.seek(position)
        kind, length = struct.unpack(">4sq", stream.read(12))
        if kind == b"data":
            return None if length <= 0 else missing_bytes(size, position + 12 + length)
        if length < 0:
            return None
        position += 12 + length
    return missing_bytes(size, position)


def find_sphere_fault(stream: BinaryIO, size: int) -> str | None:
    """Compare with the header of NIST SPHERE, if its samples are not compressed."""
    stream.seek(0)
    header = stream.read(1024)
    fields = dict(re.findall(rb"^(\w+) -\w+ (\S+)$", header, re.MULTILINE))
    coding = fields.get(b"sample_coding", b"pcm")
    counts = [fields.get(name, b"") for name in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    lines = header.split(b"\n")
    start = lines[1].strip() if len(lines) > 1 else b""
    if b"," in coding or not all(number.isdigit() and len(number) < 16 for number in (start, *counts)):
        return None
    num_samples, channels, width = (int(number) for number in counts)
    return missing_bytes(size, int(start) + num_samples * channels * width)


def read_flac_samples(stream: BinaryIO) -> tuple[int, int] | None:
    """Return the number of samples that the STREAMINFO block of FLAC states, and their rate in Hz."""
    skip_tags(stream)
    header = stream.read(26)
    if len(header) < 26 or header[:4] != b"fLaC":
        return None
    packed = int.from_bytes(header[18:26])
    rate, num_samples = packed >> 44, packed & 0xFFFFFFFFF
    return (num_samples, rate) if num_samples else None
