"""Decord."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avdata.errors import MediaError, QuarantineReason
from avdata.media.packet_selection import TIME_TOLERANCE_S
from avdata.media.types import Frame, FrameTimes


def read_frames_decord(path: Path, frame_times: FrameTimes, times: Sequence[float]) -> list[Frame]:
    """The same frames as `read_frames`, through decord; times come from the clock, which decord loses.

    Raises:
        MediaError: UNREADABLE.
    """
    import decord  # noqa: PLC0415

    late = np.asarray(times) + TIME_TOLERANCE_S
    places = np.clip(
        np.searchsorted(frame_times.times, late, side="right") - 1, 0, len(frame_times.times) - 1
    )
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        pixels = reader.get_batch([min(int(place), len(reader) - 1) for place in places]).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise MediaError(QuarantineReason.UNREADABLE, f"{path.name}: decord cannot read it") from error
    return [
        Frame(frame, float(frame_times.times[place])) for frame, place in zip(pixels, places, strict=True)
    ]
