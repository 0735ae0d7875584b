"""Exceptions, quarantine reason codes and sample flags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self


class AvdataError(Exception):
    """Error that a user can act on.

    `str(error)` is the message, and the hint on a second line. The command line prints both without a
    traceback and exits with `exit_code`.

    >>> print(AvdataError("Unknown recipe 'crema'.", hint="Did you mean 'cremad'?"))
    Unknown recipe 'crema'.
    Did you mean 'cremad'?

    Attributes:
        message: what failed, and where.
        hint: what to do next; None if there is no advice.
        exit_code: exit status of the command line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # Also where a program prints the traceback: a URL of the message may contain a password.
        self.message = redact_url(message)
        self.hint = None if hint is None else redact_url(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without calling `__init__`, whose arguments differ between subclasses."""
        return _restore_error, (type(self), self.args), self.__dict__


def _restore_error(kind: type[AvdataError], args: tuple[Any, ...]) -> AvdataError:
    return kind.__new__(kind, *args)


class UsageError(AvdataError):
    """Invalid request: an unknown name, key or combination. No work was started."""

    exit_code = 2


class SourceError(AvdataError):
    """Source files that are missing, incomplete or different from their manifest."""


class UnavailableError(AvdataError):
    """Resource that cannot be reached or stored at the moment.

    It is not known to be damaged.
    """


class _DescribedCode(StrEnum):
    """Stable code with a description."""

    description: str

    def __new__(cls, value: str, description: str = "") -> Self:
        """Create a member with its description."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member


class QuarantineReason(_DescribedCode):
    """Reason why a clip is not in the shards. Values are stable, for use in filters."""

    MISSING_VIDEO = "missing_video", "the recipe lists a video or image file that does not exist"
    MISSING_AUDIO = (
        "missing_audio",
        "the recipe lists an audio file that does not exist, or the video has no audio",
    )
    NOT_DOWNLOADED = (
        "not_downloaded",
        "a file could not be downloaded, and --allow-missing was set",
    )
    EMPTY_FILE = "empty_file", "a file has 0 bytes"
    LFS_POINTER = (
        "lfs_pointer",
        "a file is a git-LFS pointer: the LFS objects were not fetched",
    )
    CHECKSUM = "checksum_mismatch", "a file's checksum differs from the manifest or the plan"
    NOT_MEDIA = "not_media", "a file is no media, by its first bytes"
    FORMAT_NOT_ALLOWED = "format_not_allowed", "a file has a media format that is not read"
    UNREADABLE = "unreadable", "the container could not be opened or decoded"
    TRUNCATED = "truncated", "a file is shorter than its header says"
    DECODER_ERROR = "decoder_error", "an unexpected exception occurred while the clip was decoded"
    CORRUPT_FRAMES = "corrupt_frames", "the decoder marked more frames as corrupt than quality.max_corrupt"
    CORRUPT_AUDIO = "corrupt_audio", "more audio packets failed to decode than quality.max_corrupt_audio"
    NO_VIDEO_STREAM = "no_video_stream", "the container has no video stream"
    NO_AUDIO_STREAM = "no_audio_stream", "the container has no audio stream"
    UNDECODABLE_VIDEO = (
        "undecodable_video",
        "no video stream of the container has a codec that can be decoded",
    )
    UNDECODABLE_AUDIO = "undecodable_audio", "no audio stream of the container can be decoded"
    NO_FRAMES = "no_frames", "no video frame could be decoded"
    SILENT_AUDIO = "silent_audio", "the audio peak is below quality.silence_dbfs"
    PHASE_CANCELLED = (
        "phase_cancelled",
        "the audio peak is below quality.silence_dbfs because the channels cancel each other",
    )
    BLACK_FRAMES = "black_frames", "the frames stay darker than quality.black_luma"
    FROZEN_FRAMES = "frozen_frames", "the frames do not change"
    CLIPPED_AUDIO = "clipped_audio", "more of the audio is at full scale than quality.max_clipped"
    TOO_SHORT = "too_short", "the clip is shorter than quality.min_seconds"
    TOO_LONG = "too_long", "the clip is longer than quality.max_seconds"
    TOO_LARGE = "too_large", "a frame or file is larger than quality.max_pixels or quality.max_bytes"
    TIMEOUT = "timeout", "processing the clip took longer than quality.timeout"
    KNOWN_BAD = "known_bad", "the recipe lists the clip as broken"
    LEAK = "split_leak", "the clip's group is also in another split, and select.group_leakage is drop-train"
    DUPLICATE_KEY = "duplicate_key", "another clip has the same key"
    NO_LABEL = (
        "no_label",
        "the label, group or split of the clip cannot be read, or its event lies outside the clip",
    )
    CRASH = "crash", "a worker process crashed on this clip"


class SampleFlag(_DescribedCode):
    """Property of a sample that its user should know. Values are stable."""

    DUP_AUDIO = "dup_audio_of", "a clip with another label has identical audio"
    DUP_IMAGE = "dup_image_of", "another clip has an identical image"
    AV_MISMATCH = "av_mismatch", "audio and video durations differ by more than align.max_mismatch"
    AUDIO_TRUNCATED = "audio_truncated", "the separate audio ends well before the container's audio"
    LOW_CORRELATION = (
        "low_correlation",
        "the separate audio does not correlate with the container's audio",
    )
    BLACK_FRAMES = "black_frames", "the frames are (nearly) black"
    FROZEN_FRAMES = "frozen_frames", "the frames do not change"
    NO_FACE = "no_face", "no face was detected, and the center of the frames was used instead"
    STATIC_FRAMES = "frames_are_static", "all frames are the same still image"
    CONTAINER_AUDIO = "container_audio", "the audio is that of the video container, not of the separate file"
    SILENT_AUDIO = "silent_audio", "the audio peak is below quality.silence_dbfs"
    CLIPPED_AUDIO = "clipped_audio", "part of the audio is at full scale"
    CLOCK_DRIFT = (
        "audio_clock_drift",
        "the audio's samples and timestamps differ by more than 20 ms; it was placed by the timestamps",
    )
    PHASE_CANCELLED = "phase_cancelled", "channels of the audio cancel each other when they are mixed"
    LEAK = "split_leak", "the clip's group is also in another split"
    MULTI_LABEL = "multi_label", "the video is also annotated with another label"
    ZERO_LENGTH_EVENT = "zero_length_event", "the annotated event has no duration"
    REENCODED = "reencoded", "the source has replaced this file since publication"
    VARIABLE_RATE = "variable_frame_rate", "the video's frames are not evenly spaced in time"
    LOW_FRAME_RATE = "low_frame_rate", "the video has fewer frames per second than quality.min_fps"
    PADDED = "padded", "audio or video is missing in a larger share of the window than quality.max_padding"
    NO_AUDIO = "no_audio", "the container has no audio stream; the sample's audio is silence"
    MULTIPLE_STREAMS = (
        "multiple_streams",
        "the container has several streams of one type; the default one was used, or the first",
    )


class MediaError(Exception):
    """Error that excludes a clip: `prepare` writes a quarantine row and continues.

    Attributes:
        reason: code of the quarantine row.
        detail: what failed, and in which file.
    """

    def __init__(self, reason: QuarantineReason, detail: str) -> None:
        super().__init__(f"{reason}: {encodable(detail)}")
        self.reason = reason
        self.detail = encodable(detail)

    def __reduce__(self) -> tuple[type[MediaError], tuple[QuarantineReason, str]]:
        """Pickle with both arguments of `__init__`."""
        return MediaError, (self.reason, self.detail)


def error_message(error: Exception) -> str:
    """Return the text of an exception without the hint of an `AvdataError`.

    >>> error_message(UsageError("Unknown recipe 'crema'.", hint="Did you mean 'cremad'?"))
    "Unknown recipe 'crema'."
    """
    return error.message if isinstance(error, AvdataError) else str(error)


_CONTROLS = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]"
)
"""Control characters except tab and newline, separators of lines and paragraphs, and direction marks."""


def escape_controls(text: str) -> str:
    r"""Return a text whose control characters and direction marks are written as escapes.

    Outside data could otherwise move the cursor, set the terminal's title, or reverse what is read.

    >>> escape_controls("HAP\x1b]0;title\x07 \u202egpj.exe")
    'HAP\\x1b]0;title\\x07 \\u202egpj.exe'
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


# Linear in the length of any text: no alternative starts at each character of a long word.
_LOGIN = re.compile(r"(?<=[A-Za-z0-9+.-]://)(?:[^/?#\s'\"<>\\]|'++(?=[\w%&=~+@$!*-]))*@")

# A quote or parenthesis belongs to a URL if another of its letters follows: a signature may contain both.
_REST_OF_URL = r"(?:[^\s'\"<>()\\]|['()]++(?=\.?[\w%&=~/+#@$!*-]))*+"

_QUERY = re.compile(rf"(?P<url>(?i:https?)://{_REST_OF_URL})|(?<=\S)\?(?P<of_path>[\w.~%+-]+={_REST_OF_URL})")
"""URL, or the query of a path as urllib3 states it (`with url: /set?signature=...`)."""

_PLAIN_PARAMETERS = frozenset({"datasetVersionNumber", "dl", "download", "export", "format", "raw"})
"""Query parameters that contain no secret and belong to the address of a file."""


def redact_url(text: object) -> str:
    """Return a text without the user names, passwords and queries of its URLs.

    Signed links have a secret in the query. Parameters such as `download=1` remain.

    >>> redact_url("https://me:secret@example.org/set?signature=secret: HTTP 403")
    'https://example.org/set: HTTP 403'
    """
    return _QUERY.sub(_redact_query, _LOGIN.sub("", str(text)))


def _redact_query(match: re.Match[str]) -> str:
    text = match["url"] or f"?{match['of_path']}"
    url = re.split("[?#]", text, maxsplit=1)[0]
    query = text[len(url) + 1 :]
    parameters = query.rstrip(".,:;")
    plain = [each for each in re.split("[&;]", parameters) if each.partition("=")[0] in _PLAIN_PARAMETERS]
    return url + (f"?{'&'.join(plain)}" if plain else "") + query[len(parameters) :]


def encodable(text: str) -> str:
    r"""Return a text whose lone surrogates are escaped: bytes of file names that are not UTF-8.

    >>> encodable("caf\udce9.mp4")
    'caf\\udce9.mp4'
    """
    return text.encode("utf-8", "backslashreplace").decode()


MAX_VALUE_LENGTH = 200
"""Largest number of characters of an outside value in a message."""


def shorten(value: object, limit: int = MAX_VALUE_LENGTH) -> str:
    """Return a value as text of bounded length, for messages.

    >>> len(shorten("x" * 100_000))
    200
    """
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a hint with the closest known word, or with all of them if none is close.

    >>> did_you_mean("crema", ["cremad", "ave"])
    "Did you mean 'cremad'?"
    """
    close = difflib.get_close_matches(shorten(word), known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
