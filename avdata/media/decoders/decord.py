"""Decode video frames with decord.

Their times are taken from the container's packets, since decord drops a stream's start time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.formats import detect_format
from avdata.media.packet_selection import TIME_TOLERANCE_S
from avdata.media.types import Frame, FrameTimes

FORMATS_WITHOUT_INDEX = frozenset({"asf", "mpeg", "mpegts", "nut"})
"""Containers in which decord finds frames by estimated positions, and returns others."""


def frames_at(
    path: Path, frame_times: FrameTimes, times: Sequence[float], video: VideoConfig, quality: QualityConfig
) -> list[Frame]:
    """Decode the frame on screen at each of ascending times (s).

    Raises:
        MediaError: UNREADABLE.
    """
    del video, quality  # decord has no hardware decoders, and does not detect damage.
    import decord  # noqa: PLC0415

    if (name := detect_format(path)) in FORMATS_WITHOUT_INDEX:
        detail = f"{path.name}: decord seeks to wrong frames of {name}; use video.decoder=pyav"
        raise MediaError(QuarantineReason.UNREADABLE, detail)

    latest = np.asarray(times) + TIME_TOLERANCE_S
    last = len(frame_times.times) - 1
    indices = np.clip(np.searchsorted(frame_times.times, latest, side="right") - 1, 0, last)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        pixels = reader.get_batch([min(int(index), len(reader) - 1) for index in indices]).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise MediaError(QuarantineReason.UNREADABLE, f"{path.name}: decord cannot decode it") from error
    return [
        Frame(frame, float(frame_times.times[index])) for frame, index in zip(pixels, indices, strict=True)
    ]
