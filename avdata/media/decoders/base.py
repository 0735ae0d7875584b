"""What a video decoder provides, and the row that registers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from avdata.config.schema import QualityConfig, VideoConfig
from avdata.errors import MediaError, QuarantineReason, UsageError
from avdata.media.downmix import Channel
from avdata.media.ffmpeg_program import ffmpeg_version, find_ffmpeg
from avdata.media.types import AudioTrack, Frame, FrameTimes

DEFAULT_VIDEO = VideoConfig()

DEFAULT_QUALITY = QualityConfig()


class FramesAt(Protocol):
    """The function `frames_at` that each decoder's module defines."""

    def __call__(
        self,
        path: Path,
        frame_times: FrameTimes,
        times: Sequence[float],
        video: VideoConfig,
        quality: QualityConfig,
    ) -> list[Frame]:
        """Decode the frame on screen at each of the given times.

        Args:
            path: the video file.
            frame_times: presentation times of its frames, from the container's timestamps.
            times: s, ascending. Before the first frame, the first is on screen; after the last, the last.
            video: settings of the decoder. Frames keep their size and color.
            quality: limits.

        Returns:
            One frame for each time, uint8 [H, W, 3], oriented by the display matrix.

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
        module: module of the package.
        extra: extra of avdata that installs the package; None if avdata requires it.
        probe: line of Python that fails if the package does not work.
        use: what the package is for.
        advice: what to do if the package is missing or broken.
        required: whether avdata does not work without the package.
        reuses_packets: whether `VideoFile.frames_at` is this decoder: it decodes the packets of `open_video`
            and resizes while it converts colors. Other decoders open the file again.
        unsupported_codecs: ffmpeg's names of video codecs that it cannot decode.
        unsupported_containers: ffmpeg's names of containers in which it returns wrong frames.
        program: program on PATH that it runs; its version is recorded in dataset.json.
        decodes_audio: whether it also decodes audio, with `decode_audio(path, quality, index, channel)`;
            PyAV does otherwise.
    """

    name: str
    package: str
    module: str
    extra: str | None
    probe: str
    use: str
    advice: str
    required: bool = False
    reuses_packets: bool = False
    unsupported_codecs: frozenset[str] = frozenset()
    unsupported_containers: frozenset[str] = frozenset()
    program: str | None = None
    decodes_audio: bool = False

    def check_available(self, video: VideoConfig) -> None:
        """Check that the package, the program and the hardware decoder are installed.

        Raises:
            UsageError: one is missing; the hint says what to install.
        """
        if find_spec(self.module) is None:
            msg = f"video.decoder={self.name} requires the package {self.package}, which is not installed."
            raise UsageError(msg, hint=f"{self.advice[:1].upper()}{self.advice[1:]}.")
        if self.program is not None:
            self._load().check_available(video)

    def program_version(self) -> str | None:
        """Return the version of the program; None without one."""
        path = find_ffmpeg() if self.program else None
        return ffmpeg_version(path) if path else None

    def frames_at(
        self,
        path: Path,
        frame_times: FrameTimes,
        times: Sequence[float],
        video: VideoConfig = DEFAULT_VIDEO,
        quality: QualityConfig = DEFAULT_QUALITY,
    ) -> list[Frame]:
        """Import the decoder's module and call its `frames_at`; see `FramesAt`.

        Raises:
            MediaError: UNREADABLE for an unsupported container, or an error of the decoder.
        """
        container = frame_times.metadata.get("container")
        if container in self.unsupported_containers:
            detail = f"{path.name}: {self.name} cannot decode {container}"
            raise MediaError(QuarantineReason.UNREADABLE, detail)
        decode: FramesAt = self._load().frames_at
        return decode(path, frame_times, times, video, quality)

    def decode_audio(
        self, path: Path, quality: QualityConfig, stream_index: int, channel: Channel = "mix"
    ) -> AudioTrack:
        """Import the decoder's module and decode an audio track of a file with it.

        Args:
            path: the file.
            quality: limits.
            stream_index: index of the track among all streams of the container.
            channel: value of `audio.channel`.

        Raises:
            MediaError: the audio cannot be decoded.
        """
        track: AudioTrack = self._load().decode_audio(path, quality, stream_index, channel)
        return track

    def _load(self) -> Any:
        return import_module(f"avdata.media.decoders.{self.name}")
