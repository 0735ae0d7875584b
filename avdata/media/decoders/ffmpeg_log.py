"""Read timestamps and damage from the log of the `ffmpeg` program.

Lines begin with `[CONTEXT @ ADDRESS] [LEVEL]`. Threads of ffmpeg may interleave parts of lines, therefore
each pattern is searched in the whole line.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from avdata.config.schema import QualityConfig
from avdata.errors import MediaError, QuarantineReason
from avdata.media.decoders.pyav import CODECS_WITH_CORRUPT_FLAG
from avdata.media.display import pixel_aspect
from avdata.media.integrity import TRUNCATION_MESSAGES

_MAPPED = "Stream mapping:"
"""First line after the input was opened and probed."""

_ERROR = re.compile(r"\[(?:error|fatal)\] (.*)")

_PACKET_FAILED = re.compile(r"Error submitting packet to decoder|Error while decoding stream")
"""Line for a packet that fails to decode, of ffmpeg 6.1 and newer, and of older versions."""

_FRAME_DECODED = "decoder -> "
"""Part of the line of `-debug_ts` for each decoded frame, in the decoder's thread."""

_FRAME_CORRUPT = "corrupt decoded frame"

_TOO_LARGE = "exceeds specified max pixel count"

_NO_STREAM = "matches no streams"

_NO_DECODER = re.compile(r"Decoder \(codec .*\) not found|[Nn]o decoder found for")
"""Line for a codec that this build cannot decode. ffmpeg before 5 lists the stream mapping nevertheless."""

_UNDECODABLE = {
    QuarantineReason.NO_VIDEO_STREAM: QuarantineReason.UNDECODABLE_VIDEO,
    QuarantineReason.NO_AUDIO_STREAM: QuarantineReason.UNDECODABLE_AUDIO,
}
"""Reasons for a codec that cannot be decoded, by the reason for a missing stream."""

_TIME_BASE = re.compile(r"config in time_base: (\d+)/(\d+)")

_VIDEO_FRAME = re.compile(r"\bn: *\d+ pts: *(-?\d+|NOPTS) (?:[^\[]*? sar:(\d+)/(\d+) )?")

_AUDIO_FRAME = re.compile(r"\bn:\d+ pts:(-?\d+|NOPTS) .*? channels:(\d+) .*? rate:(\d+) nb_samples:(\d+)")

_AUDIO_CODEC = re.compile(r"Stream #\d+:\d+ \((\w+)\) -> ashowinfo")


MAX_DETAIL = 200
"""Characters of ffmpeg's message in an error."""


class FFmpegLog:
    """Whether ffmpeg opened its input, and how many packets failed to decode.

    Attributes:
        num_corrupt: packets that failed to decode, and corrupt frames.
    """

    def __init__(self) -> None:
        self.num_corrupt = 0
        self._is_mapped = False
        self._first_error = "no message"
        self._is_too_large = self._has_no_stream = self._has_no_decoder = self._is_truncated = False

    def read_line(self, line: str) -> None:
        """Read one line."""
        self._is_too_large |= _TOO_LARGE in line
        self._is_truncated |= any(part in line for part in TRUNCATION_MESSAGES)
        if _NO_DECODER.search(line):
            self._has_no_decoder = True
        elif self._is_mapped:
            self._read_decoding(line)
        elif _MAPPED in line:
            self._is_mapped = True
        else:
            self._has_no_stream |= _NO_STREAM in line
            error = _ERROR.search(line)
            if error and self._first_error == "no message":
                self._first_error = error[1][:MAX_DETAIL]

    def _read_decoding(self, line: str) -> None:
        """Read a line of the time after the input was opened."""
        self.num_corrupt += _PACKET_FAILED.search(line) is not None

    def check_opened(self, path: Path, no_stream: QuarantineReason) -> None:
        """Check that ffmpeg opened the file and began to decode it.

        Raises:
            MediaError: TRUNCATED, TOO_LARGE, `no_stream`, UNDECODABLE_VIDEO, UNDECODABLE_AUDIO or
                UNREADABLE.
        """
        if self._is_truncated:
            detail = f"{path.name}: the file ends inside a packet"
            raise MediaError(QuarantineReason.TRUNCATED, detail)
        if self._is_too_large:
            detail = f"{path.name}: more pixels than quality.max_pixels"
            raise MediaError(QuarantineReason.TOO_LARGE, detail)
        if self._has_no_stream:
            raise MediaError(no_stream, f"{path.name}: {no_stream.description}")
        if self._has_no_decoder:
            raise MediaError(_UNDECODABLE[no_stream], f"{path.name}: ffmpeg has no decoder for its codec")
        if not self._is_mapped:
            detail = f"{path.name}: ffmpeg cannot open it: {self._first_error}"
            raise MediaError(QuarantineReason.UNREADABLE, detail.replace(str(path.parent), "").strip())


class VideoLog(FFmpegLog):
    """Timestamps of the frames that ffmpeg returns, and damage of those that it decodes.

    Attributes:
        times: s, of the returned frames; not a number where a frame has no timestamp.
        aspects: width of a pixel by its height, of the returned frames.
        num_decoded: decoded frames and packets that failed to decode.
    """

    def __init__(self, codec: str, max_decoded: int | None = None) -> None:
        """Count damage of the first `max_decoded` frames; None counts all.

        ffmpeg's threads may be at any frame when the last requested one is complete.
        """
        super().__init__()
        self.times: list[float] = []
        self.aspects: list[float] = []
        self.num_decoded = 0
        self._max_decoded = math.inf if max_decoded is None else max_decoded
        self._has_flag = codec in CODECS_WITH_CORRUPT_FLAG
        self._seconds_per_pts = (0, 1)
        self._is_corrupt = False

    def _read_decoding(self, line: str) -> None:
        if base := _TIME_BASE.search(line):
            self._seconds_per_pts = int(base[1]), int(base[2])
        for frame in _VIDEO_FRAME.finditer(line):
            numerator, denominator = self._seconds_per_pts
            self.times.append(math.nan if frame[1] == "NOPTS" else int(frame[1]) * numerator / denominator)
            has_aspect = frame[3] is not None and int(frame[3]) > 0
            self.aspects.append(pixel_aspect(Fraction(int(frame[2]), int(frame[3])) if has_aspect else None))
        if self.num_decoded >= self._max_decoded:
            return
        if _PACKET_FAILED.search(line):
            self._count(is_corrupt=True)
        elif _FRAME_DECODED in line:
            self._count(is_corrupt=self._is_corrupt)
        else:
            # Of the other codecs' errors, some are only logged.
            self._is_corrupt |= _FRAME_CORRUPT in line or (not self._has_flag and bool(_ERROR.search(line)))

    def _count(self, *, is_corrupt: bool) -> None:
        self.num_decoded += 1
        self.num_corrupt += is_corrupt
        self._is_corrupt = False

    def check_damage(self, name: str, quality: QualityConfig) -> None:
        """Raise MediaError CORRUPT_FRAMES if more frames are corrupt than `quality.max_corrupt`."""
        if self.num_corrupt > quality.max_corrupt * self.num_decoded:
            detail = f"{name}: {self.num_corrupt} of {self.num_decoded} frames"
            raise MediaError(QuarantineReason.CORRUPT_FRAMES, detail)


@dataclass(frozen=True, slots=True)
class AudioFrame:
    """Time of an audio frame in s, None if it has none; its number of samples, rate in Hz and channels."""

    time: float | None
    num_samples: int
    rate: int
    channels: int


class AudioLog(FFmpegLog):
    """Timestamps of audio frames.

    Attributes:
        codec: ffmpeg's name of the decoder.
        frames: the decoded frames.
    """

    def __init__(self) -> None:
        super().__init__()
        self.codec = "unknown"
        self.frames: list[AudioFrame] = []

    def _read_decoding(self, line: str) -> None:
        super()._read_decoding(line)
        if codec := _AUDIO_CODEC.search(line):
            self.codec = codec[1]
        for frame in _AUDIO_FRAME.finditer(line):
            channels, rate, num_samples = int(frame[2]), int(frame[3]), int(frame[4])
            seconds = None if frame[1] == "NOPTS" else int(frame[1]) / rate
            self.frames.append(AudioFrame(seconds, num_samples, rate, channels))
