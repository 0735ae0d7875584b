"""Sample of one media file, equal to the one that a preparation with the same settings stores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from avdata.config.schema import Config, QualityConfig
from avdata.errors import AvdataError, MediaError
from avdata.features.extract import extract_features
from avdata.recipe import Clip
from avdata.shards.writer import encode_members
from avdata.streaming.batch import AVSample
from avdata.streaming.collate import BatchAssembler, SampleShape, mel_normalization

QUALITY = QualityConfig(silent="flag", black="flag", frozen="flag", clipped="flag")
"""A file with any content is accepted; only what cannot be decoded is refused."""


def read_media_file(
    path: str | Path,
    *,
    audio: Mapping[str, Any],
    video: Mapping[str, Any],
    align: Mapping[str, Any],
    mel_stats: Mapping[str, list[float]] | None,
    has_frames: bool = True,
) -> AVSample:
    """Decode a media file and return its sample, with mel normalized and label -1.

    Frames pass through the storage format of the dataset, whose compression changes them.

    Args:
        path: video file, or audio file for a dataset of audio.
        audio: settings `audio.*` of the dataset.
        video: settings `video.*` of the dataset.
        align: settings `align.*` of the dataset. The file has no event: the window `event` is at the center.
        mel_stats: mean and standard deviation per band, of dataset.json; None: the mel is not normalized.
        has_frames: whether the samples of the dataset have frames.

    Raises:
        AvdataError: the file cannot be read or decoded.
    """
    file = Path(path)
    config = Config.model_validate(
        {"audio": {**audio, "flac": False}, "video": video, "align": align, "quality": QUALITY}
    )
    if not file.is_file():
        msg = f"Media file not found: {file}."
        raise AvdataError(msg)
    clip = Clip(
        key="file", label="", group="file", split="test",
        video=file if has_frames else None, audio=None if has_frames else file,
    )  # fmt: skip
    try:
        features = extract_features(clip, config)
    except MediaError as error:
        msg = f"Cannot use {file}: {error.reason.value}: {error.detail}."
        raise AvdataError(msg, hint=f"Reason: {error.reason.description}") from error
    flags = [flag.value for flag in features.flags]
    members = {
        name: memoryview(bytearray(data)) for name, data in encode_members(features, 0, {}, config).items()
    }
    shape = SampleShape(features.mel.shape, None if features.frames is None else features.frames.shape)
    assembler = BatchAssembler()
    mel = torch.empty(features.mel.shape)
    assembler.mel(members, shape, None if mel_stats is None else mel_normalization(mel_stats, shape), mel)
    is_strip = config.video.storage != "npy"
    pixels = shape.empty_frames(strip=is_strip)
    assembler.frames(members, shape, pixels, strip=is_strip)
    assembler.flush()
    start, end = features.window
    metadata = {"flags": flags, "window_start": start, "window_end": end}
    frames = shape.sample_tensor(pixels, strip=is_strip)
    return AVSample(mel=mel[:, None], frames=frames, label=-1, key=file.stem, metadata=metadata)
