"""What a video decoder provides, and the row that registers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from avdata.media.types import Frame, FrameTimes


class FramesAt(Protocol):
    """The function `frames_at` that each decoder's module defines."""

    def __call__(self, path: Path, frame_times: FrameTimes, times: Sequence[float]) -> list[Frame]:
        """Decode the frame on screen at each of the given times.

        Args:
            path: the video file.
            frame_times: presentation times of its frames, from the container's timestamps.
            times: s, ascending. Before the first frame, the first is on screen; after the last, the last.

        Returns:
            One frame for each time, uint8 [H, W, 3], rotated by the display matrix.

        Raises:
            MediaError: the file cannot be decoded.
        """
        ...


@dataclass(frozen=True, slots=True)
class VideoDecoder:
    """A row of `DECODERS`.

    Attributes:
        name: value of `video.decoder`, and name of the module in `avdata.media.decoders`.
        package: distribution that it imports.
        extra: extra of avdata that installs the package; None if avdata requires it.
        probe: line of Python that fails if the package does not work.
        use: what the package is for.
        advice: what to do if the package is missing or broken.
        required: whether avdata does not work without the package.
        reuses_packets: whether `VideoFile.frames_at` is this decoder: it decodes the packets of `open_video`
            and resizes while it converts colors. Other decoders open the file again.
        unsupported_codecs: ffmpeg's names of video codecs that it cannot decode.
    """

    name: str
    package: str
    extra: str | None
    probe: str
    use: str
    advice: str
    required: bool = False
    reuses_packets: bool = False
    unsupported_codecs: frozenset[str] = frozenset()

    def frames_at(self, path: Path, frame_times: FrameTimes, times: Sequence[float]) -> list[Frame]:
        """Import the decoder's module and call its `frames_at`; see `FramesAt`."""
        decode: FramesAt = import_module(f"avdata.media.decoders.{self.name}").frames_at
        return decode(path, frame_times, times)
