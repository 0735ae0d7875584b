"""Parse the frame headers of MPEG audio (MP1, MP2, MP3) and AAC (ADTS), and the Xing header of MP3.

References: ISO/IEC 11172-3 and 13818-3 for MPEG audio, ISO/IEC 13818-7 for ADTS.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

_BITRATES_KBPS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates by version and layer, for the indices 1 to 14."""

_RATES_HZ = (44_100, 48_000, 32_000)

MAX_LEADING_ZEROS = 64 << 10
"""Zero bytes before the first frame that ffmpeg skips."""


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """Header of an MPEG audio frame.

    Attributes:
        version: 1, or 2 for MPEG-2 and its extension to lower rates.
        layer: 1 to 3.
        size: bytes of the frame.
        num_samples: samples of each channel.
        rate: Hz.
        is_mono: whether the frame has one channel.
    """

    version: int
    layer: int
    size: int
    num_samples: int
    rate: int
    is_mono: bool

    @classmethod
    def parse(cls, data: bytes) -> FrameHeader | None:
        """Parse the first 4 bytes of a frame; return None if they are no header."""
        if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
            return None
        version_bits, layer = data[1] >> 3 & 3, 4 - (data[1] >> 1 & 3)
        bitrate_index, rate_index = data[2] >> 4, data[2] >> 2 & 3
        if version_bits == 1 or layer == 4 or bitrate_index in {0, 15} or rate_index == 3:
            return None
        version = 1 if version_bits == 3 else 2
        rate = _RATES_HZ[rate_index] >> {3: 0, 2: 1, 0: 2}[version_bits]
        bits = 1000 * _BITRATES_KBPS[version, layer][bitrate_index - 1]
        num_samples = 384 if layer == 1 else 576 if (version, layer) == (2, 3) else 1152
        slot = 4 if layer == 1 else 1
        size = (num_samples // 8 // slot * bits // rate + (data[2] >> 1 & 1)) * slot
        return cls(version, layer, size, num_samples, rate, data[3] >> 6 == 3)


def is_mpeg_audio(data: bytes) -> bool:
    """Return whether data begins with a frame of MP3, or with two successive frames of MP1 or MP2."""
    header = FrameHeader.parse(data)
    if header is None:
        return False
    if header.layer == 3:
        return True
    following = FrameHeader.parse(data[header.size : header.size + 4])
    return following is not None and (following.layer, following.rate) == (header.layer, header.rate)


def is_adts(data: bytes) -> bool:
    """Return whether data begins with two successive frames of ADTS, or is one frame."""
    position = 0
    for _ in range(2):
        head = data[position : position + 7]
        if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
            return False
        size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if size < 7:
            return False
        position += size
        if position == len(data):
            return True
    return True


def id3v2_size(data: bytes) -> int:
    """Return the bytes of the ID3v2 tag at the start of data, 0 without one."""
    if len(data) < 10 or data[:3] != b"ID3" or 0xFF in data[3:5] or max(data[6:10]) > 0x7F:
        return 0
    size = data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9]
    has_footer = data[5] & 0x10
    return 10 + size + (10 if has_footer else 0)


def skip_tags(stream: BinaryIO) -> int:
    """Move a stream past ID3v2 tags and leading zeros; return the position of what follows."""
    position = 0
    while True:
        stream.seek(position)
        data = stream.read(MAX_LEADING_ZEROS)
        skipped = id3v2_size(data) or len(data) - len(data.lstrip(b"\0"))
        if not skipped:
            stream.seek(position)
            return position
        position += skipped


def read_xing_samples(stream: BinaryIO) -> tuple[int, int] | None:
    """Return the number of samples that a Xing, Info or VBRI header states, and their rate in Hz.

    The encoder's delay and padding, which decoders remove, are not counted if the header states them.
    """
    skip_tags(stream)
    frame = stream.read(2048)
    header = FrameHeader.parse(frame)
    if header is None or header.layer != 3:
        return None
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return int.from_bytes(frame[50:54]) * header.num_samples, header.rate
    side_info = {(1, False): 32, (1, True): 17, (2, False): 17, (2, True): 9}[header.version, header.is_mono]
    tag = frame[4 + side_info :]
    if tag[:4] not in {b"Xing", b"Info"} or len(tag) < 144:
        return None
    flags, num_frames = struct.unpack(">II", tag[4:12])
    if not flags & 1 or not num_frames:
        return None
    num_samples = num_frames * header.num_samples
    # LAME's extension follows the fields of which the flags say that they are present.
    lame = 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    if tag[lame : lame + 4] in {b"LAME", b"Lavf", b"Lavc"}:
        delays = int.from_bytes(tag[lame + 21 : lame + 24])
        num_samples -= (delays >> 12) + (delays & 0xFFF)
    return num_samples, header.rate
