"""Audio of the samples in a report: the stored FLAC, or Opus made from the source files.

A dataset that stores no waveform has previews if its source files are at hand. They are verified against the
checksums that the sample records, and aligned by the same code as in the preparation.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config.schema import Config, build_config
from avdata.features.extract import extract_features
from avdata.recipe import Clip
from avdata.storage.hashing import hash_file
from avdata.storage.paths import is_safe_relative_path

OPUS_RATE_HZ = 48_000

OPUS_BITS_PER_S = 32_000
"""Transparent for speech: 2.56 s are 10 kB, a seventh of the FLAC."""

_BITEXACT = 1 << 23
"""AV_CODEC_FLAG_BITEXACT: the encoder writes no version."""


def preview_config(config: Mapping[str, Any], seconds: float) -> Config:
    """Return settings that compute a sample's waveform again, and as little else as possible.

    Args:
        config: `config` of dataset.json.
        seconds: length of the sample's window.
    """
    return build_config(
        config,
        {
            "audio": {
                "flac": True, "feature": "log-mel", "n_mels": 1, "normalize": "none", "resize": None,
                "layout": "repeat",
            },
            "video": {
                "num_frames": 1, "size": 8, "resize_mode": "stretch", "frame_sampling": "middle",
                "seek": True,
            },
            "align": {"window": "event", "seconds": seconds, "hop": None},
            "quality": {"silent": "flag", "black": "flag", "no_audio": "flag", "clipped": "flag"},
        },
    )  # fmt: skip


def source_waveform(
    source: Path, config: Mapping[str, Any], row: Mapping[str, Any], metadata: Mapping[str, Any]
) -> np.ndarray | None:
    """Return the waveform of a sample's window from its source files, float32 [n].

    Args:
        source: folder of the source files.
        config: `config` of dataset.json.
        row: row of the index.
        metadata: content of the sample's JSON member.

    Returns:
        The waveform at `audio.sample_rate`; None if a file is missing or is not the one that was prepared.

    Raises:
        AvdataError: a file cannot be decoded.
    """
    paths = {
        role: _verified_path(source, file) for role, file in metadata.get("sources", {}).items()
    }  # fmt: skip
    if not paths or None in paths.values() or not set(paths) <= {"video", "audio"}:
        return None
    start, end = row["window_start"], row["window_end"]
    clip = Clip(
        key=row["key"], label=row["label_name"], group=row["group"], split=row["split"],
        video=paths.get("video"), audio=paths.get("audio"),
        is_image="frames_are_static" in row["flags"] and row["duration_video"] is None,
        event=(start, end),
    )  # fmt: skip
    features = extract_features(clip, preview_config(config, round(end - start, 6)))
    # Another window would be other audio, for example because a newer version aligns clips differently.
    is_same = max(abs(features.window[0] - start), abs(features.window[1] - end)) < 1e-3
    return features.waveform if is_same else None


def _verified_path(source: Path, file: Mapping[str, Any]) -> Path | None:
    """Return the path of a source file whose checksum is the recorded one, or None."""
    path = file.get("path")
    if not isinstance(path, str) or not is_safe_relative_path(path) or not (source / path).is_file():
        return None
    is_same = hash_file(source / path, "sha256") == file.get("sha256")
    return source / path if is_same else None


def encode_opus(waveform: np.ndarray, rate: int) -> bytes:
    """Encode mono audio as Opus in WebM; equal input gives equal bytes.

    Args:
        waveform: float32 [n].
        rate: sample rate in Hz.
    """
    import av  # noqa: PLC0415

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=OPUS_RATE_HZ, layout="mono", bit_rate=OPUS_BITS_PER_S)
        stream.codec_context.flags |= _BITEXACT
        frame = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler("flt", "mono", OPUS_RATE_HZ, frame_size=OPUS_RATE_HZ // 50)
        for resampled in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(resampled))
    return buffer.getvalue()
