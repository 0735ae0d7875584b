"""Decode video frames with decord.

Their times are those of `FrameTimes`, since decord drops a stream's start time. It returns wrong frames after
a seek in some containers, where frames are therefore read from the first on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.container import open_container, video_stream
from avdata.media.display import Orientation
from avdata.media.packet_selection import TIME_TOLERANCE_S
from avdata.media.types import Frame, FrameTimes

SEEKABLE_CONTAINERS = frozenset({"mov", "matroska", "flv"})
"""ffmpeg's names of the containers in which decord seeks to the right frame."""


def frames_at(
    path: Path, frame_times: FrameTimes, times: Sequence[float], video: VideoConfig, quality: QualityConfig
) -> list[Frame]:
    """Decode the frame on screen at each of ascending times (s).

    Raises:
        MediaError: UNREADABLE.
    """
    del video  # decord has no hardware decoders.
    import decord  # noqa: PLC0415

    latest = np.asarray(times) + TIME_TOLERANCE_S
    last = len(frame_times.times) - 1
    indices = np.clip(np.searchsorted(frame_times.times, latest, side="right") - 1, 0, last)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        numbers = [min(int(index), len(reader) - 1) for index in indices]
        can_seek = frame_times.metadata.get("container") in SEEKABLE_CONTAINERS and not frame_times.is_decoded
        pixels = reader.get_batch(numbers).asnumpy() if can_seek else _read_in_order(reader, numbers)
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise MediaError(QuarantineReason.UNREADABLE, f"{path.name}: decord cannot decode it") from error
    moments = frame_times.times[indices].tolist()
    orientation, rotation = _find_orientation(path, quality)
    if orientation != Orientation():
        # decord applies only the rotation of a display matrix.
        pixels = [orientation.apply(np.rot90(image, -rotation)) for image in pixels]
    aspect = orientation.displayed_aspect(frame_times.pixel_aspect)
    return [Frame(image, moment, aspect) for image, moment in zip(pixels, moments, strict=True)]


def _find_orientation(path: Path, quality: QualityConfig) -> tuple[Orientation, int]:
    """Return the orientation of a video, and the quarter turns counterclockwise that decord applies."""
    import av  # noqa: PLC0415

    with open_container(path, quality) as container:
        stream = video_stream(container, path)
        for packet in container.demux(stream):
            with suppress(av.FFmpegError):
                for frame in packet.decode():
                    turns = 0 if frame.rotation % 90 else frame.rotation // 90
                    return Orientation.of_frame(frame), turns
    return Orientation(), 0


def _read_in_order(reader: Any, numbers: Sequence[int]) -> list[np.ndarray]:
    """Decode all frames up to the last of ascending numbers, and return those with the numbers."""
    images: dict[int, np.ndarray] = {}
    for number in range(max(numbers, default=-1) + 1):
        frame = reader.next()
        if number in numbers:
            images[number] = frame.asnumpy()
    return [images[number] for number in numbers]
