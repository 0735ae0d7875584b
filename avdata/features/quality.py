"""Quality checks that quarantine or flag a clip by the settings of section `quality`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from avdata.config.schema import Config, QualityConfig
from avdata.errors import MediaError, QuarantineReason, SampleFlag
from avdata.media.types import AudioTrack, FrameTimes

FULL_SCALE = 0.999
"""Magnitude from which a sample counts as clipped: the top 33 of the 32,768 magnitudes of 16 bits."""

_FPS_TOLERANCE = 1e-3
"""Relative tolerance of a frame rate: NTSC's 29.97 frames per second are not fewer than 30."""


def check_file_sizes(paths: Sequence[Path | None], quality: QualityConfig) -> None:
    """Check the sizes of files before they are opened.

    Raises:
        MediaError: TOO_LARGE.
    """
    for path in paths:
        if path is not None and path.is_file() and path.stat().st_size > quality.max_bytes:
            raise MediaError(QuarantineReason.TOO_LARGE, f"{path.name}: {path.stat().st_size:,} bytes")


def check_audio(audio: AudioTrack, quality: QualityConfig) -> list[SampleFlag]:
    """Check the complete audio track of a clip: too short, silent, clipped.

    Returns:
        The flags of the checks that do not quarantine.

    Raises:
        MediaError: TOO_SHORT, SILENT_AUDIO, PHASE_CANCELLED, CLIPPED_AUDIO.
    """
    seconds = len(audio.samples) / audio.rate
    if seconds < quality.min_seconds:
        raise MediaError(QuarantineReason.TOO_SHORT, f"{seconds:.3f} s of audio")
    loudness = np.abs(audio.samples)
    peak = float(loudness.max())
    level = 20 * np.log10(max(peak, 1e-9))
    if level < quality.silence_dbfs:
        is_cancelled = SampleFlag.PHASE_CANCELLED in audio.flags
        return _quarantine_or_flag(
            quality.silent,
            QuarantineReason.PHASE_CANCELLED if is_cancelled else QuarantineReason.SILENT_AUDIO,
            SampleFlag.SILENT_AUDIO,
            f"peak {level:.0f} dBFS" + (" after the channels were mixed" if is_cancelled else ""),
        )
    if peak < FULL_SCALE:
        return []
    share = float(np.mean(loudness >= FULL_SCALE))
    if share <= quality.max_clipped:
        return []
    detail = f"{share:.1%} of the samples are at full scale"
    return _quarantine_or_flag(
        quality.clipped, QuarantineReason.CLIPPED_AUDIO, SampleFlag.CLIPPED_AUDIO, detail
    )


def check_durations(audio: tuple[float, float], frame_times: FrameTimes, config: Config) -> list[SampleFlag]:
    """Check the duration and frame rate of the video, and its difference in duration from the audio.

    Args:
        audio: start and end of the audio, s.
        frame_times: of the video.
        config: the settings.

    Returns:
        The flags of the video, `LOW_FRAME_RATE`, and `AV_MISMATCH` if the durations differ.

    Raises:
        MediaError: TOO_SHORT.
    """
    seconds = frame_times.end - frame_times.start
    if seconds < config.quality.min_seconds:
        raise MediaError(QuarantineReason.TOO_SHORT, f"{seconds:.3f} s of video")
    flags = list(frame_times.flags)
    if abs((audio[1] - audio[0]) - seconds) > config.align.max_mismatch:
        flags.append(SampleFlag.AV_MISMATCH)
    if len(frame_times.times) < config.quality.min_fps * seconds * (1 - _FPS_TOLERANCE):
        flags.append(SampleFlag.LOW_FRAME_RATE)
    return flags


def check_frames(
    thumbnails: Sequence[np.ndarray], times: Sequence[float], quality: QualityConfig
) -> list[SampleFlag]:
    """Check the frames of a sample: black, frozen.

    The result depends on the video alone, not on how its frames are cropped and resized.

    Args:
        thumbnails: `Frame.thumbnail` of each frame, uint8 [128, 128].
        times: their presentation times, s.
        quality: the settings.

    Returns:
        The flags of the checks that do not quarantine.

    Raises:
        MediaError: BLACK_FRAMES, FROZEN_FRAMES.
    """
    # Stop at the first bright frame: most samples need one or two.
    if not any(image.mean() >= quality.black_luma for image in thumbnails):
        brightest = max(float(image.mean()) for image in thumbnails)
        detail = f"mean luma of the brightest frame {brightest:.1f} of 255"
        return _quarantine_or_flag(
            quality.black, QuarantineReason.BLACK_FRAMES, SampleFlag.BLACK_FRAMES, detail
        )
    if len(set(times)) < 2:
        return []
    first = thumbnails[0].astype(np.int16)

    def change(image: np.ndarray) -> float:
        return float(np.abs(image - first).mean())

    if any(change(image) > quality.frozen_change for image in thumbnails[1:]):
        return []
    detail = f"largest difference from the first frame {max(map(change, thumbnails[1:])):.2f} of 255"
    return _quarantine_or_flag(
        quality.frozen, QuarantineReason.FROZEN_FRAMES, SampleFlag.FROZEN_FRAMES, detail
    )


def _quarantine_or_flag(
    action: Literal["quarantine", "flag"], reason: QuarantineReason, flag: SampleFlag, detail: str
) -> list[SampleFlag]:
    if action == "quarantine":
        raise MediaError(reason, detail)
    return [flag]
