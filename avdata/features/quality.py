"""When a clip is not good enough: a reason for quarantine, or a flag, as the config says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from avdata.config.schema import Config, QualityConfig
from avdata.errors import Flag, MediaError, Reason
from avdata.media.resize import LUMA
from avdata.media.types import Clock, Sound

FULL_SCALE = 0.999
"""Magnitude from which a sample counts as clipped: the last 33 of the 32,768 values of 16 bits."""


def judge_files(paths: Sequence[Path | None], quality: QualityConfig) -> None:
    """Refuse files that are too large, before they are opened.

    Raises:
        MediaError: TOO_LARGE.
    """
    for path in paths:
        if path is not None and path.is_file() and path.stat().st_size > quality.max_bytes:
            raise MediaError(Reason.TOO_LARGE, f"{path.name}: {path.stat().st_size:,} bytes")


def judge_sound(sound: Sound, quality: QualityConfig) -> list[Flag]:
    """What is to be said of a whole sound track: too short, silent, clipped.

    Raises:
        MediaError: TOO_SHORT, SILENT_AUDIO, CLIPPED_AUDIO.
    """
    seconds = len(sound.samples) / sound.rate
    if seconds < quality.min_seconds:
        raise MediaError(Reason.TOO_SHORT, f"{seconds:.3f} s of sound")
    loudness = np.abs(sound.samples)
    peak = float(loudness.max())
    level = 20 * np.log10(max(peak, 1e-9))
    if level < quality.silence_dbfs:
        return _found(quality.silent, Reason.SILENT_AUDIO, Flag.SILENT_AUDIO, f"its peak is {level:.0f} dBFS")
    if peak < FULL_SCALE:
        return []
    share = float(np.mean(loudness >= FULL_SCALE))
    if share <= quality.max_clipped:
        return []
    detail = f"{share:.1%} of the samples are at full scale"
    return _found(quality.clipped, Reason.CLIPPED_AUDIO, Flag.CLIPPED_AUDIO, detail)


def judge_clock(sound: tuple[float, float], clock: Clock, config: Config) -> list[Flag]:
    """What is to be said of the pictures' length, and of how it fits the sound's.

    Raises:
        MediaError: TOO_SHORT.
    """
    seconds = clock.end - clock.start
    if seconds < config.quality.min_seconds:
        raise MediaError(Reason.TOO_SHORT, f"{seconds:.3f} s of pictures")
    apart = abs((sound[1] - sound[0]) - seconds) > config.align.max_mismatch
    return [*clock.flags, Flag.AV_MISMATCH] if apart else list(clock.flags)


def judge_frames(frames: np.ndarray, times: Sequence[float], quality: QualityConfig) -> list[Flag]:
    """What is to be said of the frames of a sample, uint8 [T, H, W, C]: black, frozen.

    Raises:
        MediaError: BLACK_FRAMES, FROZEN_FRAMES.
    """
    weights = LUMA if frames.shape[-1] == 3 else np.ones(1, np.float32)

    def bright(frame: np.ndarray) -> float:
        # Rows first: numpy takes twenty times as long over runs of three values.
        return float(frame.sum(axis=0, dtype=np.uint32).mean(axis=0) @ weights) / len(frame)

    # Frames are looked at until one is good: of most samples, one or two.
    if not any(bright(frame) >= quality.black_luma for frame in frames):
        detail = f"the brightest frame's mean is {max(map(bright, frames)):.1f} of 255"
        return _found(quality.black, Reason.BLACK_FRAMES, Flag.BLACK_FRAMES, detail)
    if len(set(times)) < 2:
        return []
    first = frames[0].astype(np.int16)

    def change(frame: np.ndarray) -> float:
        return float(np.abs(frame - first).mean())

    if any(change(frame) > quality.frozen_change for frame in frames[1:]):
        return []
    detail = f"no frame differs from the first by more than {max(map(change, frames[1:])):.2f} of 255"
    return _found(quality.frozen, Reason.FROZEN_FRAMES, Flag.FROZEN_FRAMES, detail)


def _found(what: Literal["quarantine", "flag"], reason: Reason, flag: Flag, detail: str) -> list[Flag]:
    if what == "quarantine":
        raise MediaError(reason, detail)
    return [flag]
