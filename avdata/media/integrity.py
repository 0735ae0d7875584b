"""Detect truncated files. Decoders ignore a missing end without an error.

The size of a file is compared with its header, the length of decoded audio with the number of samples in the
header, and the messages of ffmpeg's demuxers are read. Sizes that a program writing to a pipe left open are
ignored, and so are bytes after the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from avdata.errors import MediaError, QuarantineReason
from avdata.media.audio_endings import (
    find_aiff_fault,
    find_au_fault,
    find_caf_fault,
    find_sphere_fault,
    find_w64_fault,
    find_wav_fault,
    is_open_rf64,
    read_flac_samples,
)
from avdata.media.mpeg_audio import read_xing_samples
from avdata.media.types import AudioTrack
from avdata.media.video_endings import (
    find_asf_fault,
    find_avi_fault,
    find_dv_fault,
    find_flv_fault,
    find_matroska_fault,
    find_mov_fault,
    find_mpeg_fault,
    find_mpegts_fault,
    find_mxf_fault,
    find_ogg_fault,
)

_FIND_FAULT: dict[str, Callable[[BinaryIO, int], str | None]] = {
    "wav": find_wav_fault, "w64": find_w64_fault, "aiff": find_aiff_fault, "au": find_au_fault,
    "caf": find_caf_fault, "nistsphere": find_sphere_fault, "ogg": find_ogg_fault,
    "flv": find_flv_fault, "avi": find_avi_fault, "mov": find_mov_fault, "matroska": find_matroska_fault,
    "asf": find_asf_fault, "mxf": find_mxf_fault, "dv": find_dv_fault, "mpeg": find_mpeg_fault,
    "mpegts": find_mpegts_fault,
}  # fmt: skip
"""Functions by format: given a file and its size, each returns what is missing, or None."""

_READ_SAMPLES: dict[str, Callable[[BinaryIO], tuple[int, int] | None]] = {
    "flac": read_flac_samples, "mp3": read_xing_samples,
}  # fmt: skip
"""Functions by format: each returns the number of samples that the header states, and their rate in Hz."""

_MAX_MISSING_SAMPLES = {"flac": 0, "mp3": 1_152}
"""Samples by format that whole files may lack: a frame of MP3 that refers to data before the file fails."""

TRUNCATION_MESSAGES = ("File ended prematurely", "partial file")
"""Parts of messages with which ffmpeg's demuxers report the end of a file inside a packet."""


def check_not_truncated(path: Path, name: str) -> None:
    """Compare a file's size with the end that its header states.

    Args:
        path: the file.
        name: its format, as `detect_format` returns it.

    Raises:
        MediaError: TRUNCATED.
    """
    find_fault = _FIND_FAULT.get(name)
    if find_fault is None:
        return
    with path.open("rb") as stream:
        fault = find_fault(stream, os.fstat(stream.fileno()).st_size)
    if fault is not None:
        raise MediaError(QuarantineReason.TRUNCATED, f"{path.name}: {fault}")


def has_open_size(path: Path) -> bool:
    """Return whether the size in an RF64 file was left open; ffmpeg then reads no sample."""
    with path.open("rb") as stream:
        return is_open_rf64(stream, os.fstat(stream.fileno()).st_size)


def check_audio_length(path: Path, name: str, track: AudioTrack) -> None:
    """Compare the length of decoded audio with the number of samples that the file's header states.

    Args:
        path: the file.
        name: its format, as `detect_format` returns it.
        track: its decoded audio.

    Raises:
        MediaError: TRUNCATED.
    """
    read_samples = _READ_SAMPLES.get(name)
    if read_samples is None:
        return
    with path.open("rb") as stream:
        expected = read_samples(stream)
    if expected is None or expected[1] != track.rate:
        return
    if len(track.samples) < expected[0] - _MAX_MISSING_SAMPLES[name]:
        detail = f"{path.name}: {len(track.samples):,} audio samples, {expected[0]:,} by its header"
        raise MediaError(QuarantineReason.TRUNCATED, detail)


@contextmanager
def detect_demuxer_truncation(path: Path) -> Iterator[None]:
    """Read ffmpeg's log while a file is demuxed, and raise MediaError TRUNCATED at the end if it says so."""
    import av.logging  # noqa: PLC0415

    level, skips_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    # The same message about the previous file would suppress this one.
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture(local=True) as logs:
            try:
                yield
            except MediaError as error:
                _check_messages(path, logs, error)
                raise
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips_repeated)
    _check_messages(path, logs, None)


def _check_messages(path: Path, logs: list[tuple[int, str, str]], cause: MediaError | None) -> None:
    for _, _, message in logs:
        if any(part in message for part in TRUNCATION_MESSAGES):
            detail = f"{path.name}: {message.strip()}"
            raise MediaError(QuarantineReason.TRUNCATED, detail) from cause
