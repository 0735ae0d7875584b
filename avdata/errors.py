"""Exceptions, quarantine reason codes and sample flags."""

from __future__ import annotations

import difflib
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
        super().__init__(message)
        self.message = message
        self.hint = hint

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
    """Resource that cannot be reached or stored at the moment. It is not known to be damaged."""


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
    """Reason why a clip is not in the shards. The value is stable, so it can be used in filters."""

    MISSING_VIDEO = "missing_video", "the recipe names a video or image that is not on disk"
    MISSING_AUDIO = (
        "missing_audio",
        "the recipe names an audio file that is not on disk, or the video has no sound",
    )
    EMPTY_FILE = "empty_file", "a file has 0 bytes"
    LFS_POINTER = (
        "lfs_pointer",
        "a file is git-LFS pointer text, not media: the LFS objects were never fetched",
    )
    CHECKSUM = "checksum_mismatch", "a file's checksum is not the one in the manifest"
    NOT_MEDIA = "not_media", "a file's first bytes are not those of a media container that is allowed"
    UNREADABLE = "unreadable", "the container could not be opened or decoded"
    TRUNCATED = "truncated", "a file ends before its own header says it should"
    CORRUPT_FRAMES = "corrupt_frames", "the decoder marked more frames as corrupt than the config allows"
    CORRUPT_AUDIO = "corrupt_audio", "more of the audio could not be decoded than the config allows"
    NO_VIDEO_STREAM = "no_video_stream", "the container holds no video stream"
    NO_AUDIO_STREAM = "no_audio_stream", "the container holds no audio stream"
    NO_FRAMES = "no_frames", "not one video frame could be decoded"
    SILENT_AUDIO = "silent_audio", "the audio stays below the config's silence threshold"
    BLACK_FRAMES = "black_frames", "the frames stay darker than the config allows"
    FROZEN_FRAMES = "frozen_frames", "the picture does not change although it should"
    CLIPPED_AUDIO = "clipped_audio", "more of the audio is at full scale than the config allows"
    TOO_SHORT = "too_short", "the clip is shorter than the config's minimum"
    TOO_LONG = "too_long", "the clip is longer than the config's maximum"
    TOO_LARGE = "too_large", "the picture or file is larger than the config's maximum"
    TIMEOUT = "timeout", "the clip took longer than its time limit"
    KNOWN_BAD = "known_bad", "the recipe lists the clip as broken at its source"
    LEAK = "split_leak", "the clip's group is also in another split, and leaks were to be dropped"
    CRASH = "crash", "the decoder crashed the worker on this clip"


class SampleFlag(_DescribedCode):
    """Property of a sample that its user should know. The value is stable, so it can be used in filters."""

    DUP_AUDIO = "dup_audio_of", "another clip with another label has the same audio, byte for byte"
    DUP_IMAGE = "dup_image_of", "another clip has the same picture, byte for byte"
    AV_MISMATCH = "av_mismatch", "audio and video durations differ by more than the config allows"
    AUDIO_TRUNCATED = "audio_truncated", "the separate audio ends well before the container's own audio"
    LOW_CORRELATION = (
        "low_correlation",
        "the separate audio could not be matched to the container's own audio",
    )
    BLACK_FRAMES = "black_frames", "the frames are (nearly) black"
    FROZEN_FRAMES = "frozen_frames", "the picture never changes"
    NO_FACE = "no_face", "no face was found in the frames, and their center was taken instead"
    STATIC_FRAMES = "frames_are_static", "one still image stands for all frames"
    CONTAINER_AUDIO = "container_audio", "the audio is the video container's own, not the separate file"
    SILENT_AUDIO = "silent_audio", "the audio stays below the config's silence threshold"
    CLIPPED_AUDIO = "clipped_audio", "part of the audio is at full scale"
    LEAK = "split_leak", "the clip's group is also in another split"
    MULTI_LABEL = "multi_label", "the same video is annotated with another label as well"
    ZERO_LENGTH_EVENT = "zero_length_event", "the annotated event has no duration"
    REENCODED = "reencoded", "the source replaced this file after publication"
    VARIABLE_RATE = "variable_frame_rate", "the video's frames are not evenly spaced in time"
    MULTIPLE_STREAMS = (
        "multiple_streams",
        "the container holds several streams of one kind; the first of each was used",
    )


class MediaError(Exception):
    """Error that excludes a clip: `prepare` writes a quarantine row and continues.

    Attributes:
        reason: code of the quarantine row.
        detail: what failed, and in which file.
    """

    def __init__(self, reason: QuarantineReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[MediaError], tuple[QuarantineReason, str]]:
        """Pickle with both arguments of `__init__`."""
        return MediaError, (self.reason, self.detail)


def error_message(error: Exception) -> str:
    """Return the text of an exception without the hint of an `AvdataError`.

    >>> error_message(UsageError("Unknown recipe 'crema'.", hint="Did you mean 'cremad'?"))
    "Unknown recipe 'crema'."
    """
    return error.message if isinstance(error, AvdataError) else str(error)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a hint with the closest known word, or with all of them if none is close.

    >>> did_you_mean("crema", ["cremad", "ave"])
    'did you mean cremad?'
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(known)
