"""Decord."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avdata.errors import MediaError, Reason
from avdata.media.packet_selection import CLOSE
from avdata.media.types import Clock, Picture


def read_pictures_decord(path: Path, clock: Clock, moments: Sequence[float]) -> list[Picture]:
    """The same frames as `read_pictures`, through decord; times come from the clock, which decord loses.

    Raises:
        MediaError: UNREADABLE.
    """
    import decord  # noqa: PLC0415

    late = np.asarray(moments) + CLOSE
    places = np.clip(np.searchsorted(clock.times, late, side="right") - 1, 0, len(clock.times) - 1)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        pixels = reader.get_batch([min(int(place), len(reader) - 1) for place in places]).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise MediaError(Reason.UNREADABLE, f"{path.name}: decord cannot read it") from error
    return [
        Picture(picture, float(clock.times[place])) for picture, place in zip(pixels, places, strict=True)
    ]
