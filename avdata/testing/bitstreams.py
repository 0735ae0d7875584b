"""Rewrite video streams as encoders and muxers other than ffmpeg's write them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VOP_START = b"\x00\x00\x01\xb6"
"""Start code of a frame of MPEG-4 part 2."""

PACKED_USER_DATA = b"\x00\x00\x01\xb2DivX503b1393p"
"""User data by which DivX 5 and XviD mark packed B-frames."""

TRACK_NAME, CODEC_PRIVATE = b"\x53\x6e", b"\x63\xa2"
"""IDs of elements of a track in Matroska."""


def pack_b_frames(source: Path, target: Path) -> None:
    """Copy an AVI file, with the B-frames of its MPEG-4 video packed as DivX 5 and XviD do.

    Each B-frame shares the packet of the P-frame before it, and an empty frame takes its place.

    Args:
        source: file with video of the encoder `mpeg4`, with at most one B-frame in a row (`bf=1`).
        target: AVI file to write.
    """
    import av  # noqa: PLC0415

    def pack(frames: Sequence[bytes]) -> list[bytes]:
        head, start, body = frames[0].partition(VOP_START)
        packed = [head + PACKED_USER_DATA + start + body]
        for frame, following in zip(frames[1:], [*frames[2:], b""], strict=True):
            if _is_b_frame(following):
                packed += [frame + following, empty]
            elif not _is_b_frame(frame):
                packed.append(frame)
        return packed

    with av.open(str(source)) as container:
        video: Any = container.streams.video[0]
        empty = _empty_vop(video.average_rate.numerator)
    _copy_packets(source, target, pack)


def _empty_vop(ticks_per_second: int) -> bytes:
    """Return a P-frame at time 0 that is not coded: it repeats the frame before it."""
    time = "0" * (ticks_per_second - 1).bit_length()
    bits = f"0101{time}100"
    bits += "1" * (-len(bits) % 8)
    return VOP_START + int(bits, 2).to_bytes(len(bits) // 8)


def _is_b_frame(data: bytes) -> bool:
    _, _, frame = data.partition(VOP_START)
    return bool(frame) and frame[0] >> 6 == 2


def store_as_vfw(source: Path, target: Path) -> None:
    """Copy a file to Matroska with its video as a codec of Video for Windows, whose timestamps are dts.

    Args:
        source: file with video of the encoder `mpeg4`.
        target: Matroska file to write.
    """
    # The header of Windows replaces the track's name, which is as long.
    _copy_packets(source, target, list, video_title="x" * 40)
    data = target.read_bytes()
    at = data.index(TRACK_NAME + b"\xa8" + b"x" * 40)
    header = struct.pack("<IiiHH4sIiiII", 40, *_size(source), 1, 24, b"FMP4", 0, 0, 0, 0, 0)
    data = data[:at] + data[at:].replace(CODEC_PRIVATE, TRACK_NAME, 1)
    data = data[:at] + CODEC_PRIVATE + b"\xa8" + header + data[at + 43 :]
    target.write_bytes(data.replace(b"V_MPEG4/ISO/ASP", b"V_MS/VFW/FOURCC"))


def _size(path: Path) -> tuple[int, int]:
    import av  # noqa: PLC0415

    with av.open(str(path)) as container:
        return container.streams.video[0].width, container.streams.video[0].height


def _copy_packets(
    source: Path, target: Path, convert: Callable[[Sequence[bytes]], list[bytes]], video_title: str = ""
) -> None:
    """Copy a file with converted video packets, whose timestamps count from 0 in the order of decoding."""
    import av  # noqa: PLC0415

    with av.open(str(source)) as reader, av.open(str(target), "w", options={"fflags": "+bitexact"}) as writer:
        video: Any = reader.streams.video[0]
        audio = reader.streams.audio[0]
        outputs = {stream: writer.add_stream_from_template(stream) for stream in (video, audio)}
        if video_title:
            outputs[video].metadata["title"] = video_title
        packets = [packet for packet in reader.demux(video, audio) if packet.size]
        for number, data in enumerate(convert([bytes(p) for p in packets if p.stream is video])):
            packet = av.Packet(data)
            packet.time_base = 1 / video.average_rate
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            packet.stream = outputs[video]
            writer.mux(packet)
        for packet in packets:
            if packet.stream is audio:
                packet.stream = outputs[audio]
                writer.mux(packet)
