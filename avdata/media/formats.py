"""Detect the format of a file by its content. Only allowed formats are opened.

The name is passed to ffmpeg, so that no file is read as a playlist because of its suffix. See docs/formats.md
for the list that users read.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from avdata.errors import MediaError, QuarantineReason
from avdata.media.mpeg_audio import is_adts, is_mpeg_audio, skip_tags

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"

IMAGE_FORMATS = frozenset({"jpeg", "png", "webp"})

ALLOWED_FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"FLV\x01", "flv"),
    (8, b"WAVE", "wav"),
    (8, b"AVI ", "avi"),
    (8, b"WEBP", "webp"),
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
    (4, b"free", "mov"),
    (4, b"skip", "mov"),
    (4, b"styp", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "asf"),
    (0, b"\x1f\x07\x00\x3f", "dv"),
    (0, b"\x1f\x07\x00\xbf", "dv"),
    (0, b"nut/multimedia container\0", "nut"),
    (0, bytes.fromhex("060e2b34020501010d0102010102"), "mxf"),
    (8, b"AIFF", "aiff"),
    (8, b"AIFC", "aiff"),
    (0, b".snd", "au"),
    (0, b"caff", "caf"),
    (0, bytes.fromhex("726966662e91cf11a5d628db04c10000"), "w64"),
    (0, b"NIST_1A\n", "nistsphere"),
    (0, b"#!AMR", "amr"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
)
"""Offset, bytes and ffmpeg's name of each supported container and image format with a signature."""

OTHER_FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"8BPS", "PSD"),
    (0, b".RMF", "RealMedia"),
    (0, b".ra\xfd", "RealAudio"),
    (0, bytes.fromhex("b7d800203749da11"), "WTV"),
    (0, b"YUV4MPEG2", "YUV4MPEG2"),
    (0, b"DKIF", "IVF"),
    (0, b"FWS", "Flash"),
    (0, b"CWS", "Flash"),
    (0, b"BIKi", "Bink"),
    (0, b"SMK2", "Smacker"),
    (0, b"SMK4", "Smacker"),
    (0, b"\x00\x00\x01\xb3", "raw MPEG video"),
    (0, b"\x00\x00\x00\x01\x09", "raw H.264"),
    (0, b"\x00\x00\x00\x01\x27", "raw H.264"),
    (0, b"\x00\x00\x00\x01\x67", "raw H.264"),
    (0, b"\x00\x00\x00\x01\x40", "raw HEVC"),
    (0, b"\x00\x00\x00\x01\x46", "raw HEVC"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"TTA1", "TTA"),
    (0, b"tBaK", "TAK"),
    (0, b"MPCK", "Musepack"),
    (0, b"MP+", "Musepack"),
    (0, b"DSD ", "DSF"),
    (0, b"FRM8", "DSDIFF"),
    (0, b"qoaf", "QOA"),
    (0, b"\x0b\x77", "raw AC-3"),
    (0, b"\x7f\xfe\x80\x01", "raw DTS"),
    (0, b"Creative Voice File", "VOC"),
    (8, b"8SVX", "8SVX"),
    (0, b"MThd", "MIDI"),
)
"""Offset, bytes and name of media formats that are recognized and not read."""

_TS_SYNC = 0x47

_TS_PACKET_SIZES = (188, 192, 204)

HEAD_BYTES = 16 << 10
"""Bytes at the start of a file by which its format is detected.

They hold two frames of ADTS, or five packets of an MPEG transport stream.
"""


def detect_format(path: Path) -> str:
    """Return ffmpeg's name of a file's format, by its first bytes.

    Raises:
        MediaError: EMPTY_FILE, LFS_POINTER, FORMAT_NOT_ALLOWED or NOT_MEDIA.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return _detect(stream)


def detect_format_of(head: bytes) -> str:
    """Return ffmpeg's name of the format of a file that starts with `head`, of `HEAD_BYTES` or all bytes.

    Raises:
        MediaError: see `detect_format`.
    """
    return _detect(BytesIO(head))


def _detect(stream: BinaryIO) -> str:
    head = stream.read(HEAD_BYTES)
    if not head:
        raise MediaError(QuarantineReason.EMPTY_FILE, "0 bytes")
    if head.startswith(LFS_POINTER):
        raise MediaError(QuarantineReason.LFS_POINTER, "git-LFS pointer text")
    if (other := _find_signature(OTHER_FORMATS, head)) is not None:
        detail = f"{other} is not read; see the list of formats in docs/formats.md"
        raise MediaError(QuarantineReason.FORMAT_NOT_ALLOWED, detail)
    name = _find_signature(ALLOWED_FORMATS, head) or _detect_packets(stream, head)
    if name is None:
        start = repr(head[:16]).removeprefix("b")
        raise MediaError(QuarantineReason.NOT_MEDIA, f"unknown format, first bytes {start}")
    return name


def _find_signature(table: tuple[tuple[int, bytes, str], ...], head: bytes) -> str | None:
    for offset, signature, name in table:
        if head[offset : offset + len(signature)] == signature:
            return name
    return None


def _detect_packets(stream: BinaryIO, head: bytes) -> str | None:
    """Detect formats that have no signature, or one after an ID3v2 tag or zeros."""
    if ts_packets(head) is not None:
        return "mpegts"
    has_tag = skip_tags(stream) > 0
    data = stream.read(HEAD_BYTES) if has_tag else head
    if is_adts(data):
        return "aac"
    if is_mpeg_audio(data):
        return "mp3"
    if not has_tag:
        return None
    if data.startswith(b"fLaC"):
        return "flac"
    # Only the tag shows that damaged audio is MP3.
    return "mp3" if head.startswith(b"ID3") else None


def ts_packets(head: bytes) -> tuple[int, int] | None:
    """Return the offset of the first packet of an MPEG transport stream and the size of its packets.

    Returns:
        None if `head` holds no five successive packets; a short file must hold three, to its end.
    """
    for size in _TS_PACKET_SIZES:
        for offset in range(min(size, len(head))):
            starts = range(offset, min(offset + 5 * size, len(head) - 3), size)
            if len(starts) >= 3 and all(_is_ts_packet(head, start) for start in starts):
                return offset, size
    return None


def _is_ts_packet(head: bytes, start: int) -> bool:
    # A packet without adaptation field and payload is reserved.
    return head[start] == _TS_SYNC and head[start + 3] & 0x30 != 0
