"""Reading of single samples of a local prepared dataset, for inspection."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdata.errors import AvdataError, UsageError, did_you_mean
from avdata.shards.dataset_files import DatasetFiles, open_dataset_files
from avdata.shards.members import decode_frames, decode_mel, decode_metadata, read_members
from avdata.shards.reader import read_index
from avdata.visualization.html import render_sample

MAX_FUZZY_KEYS = 20_000
"""Up to this number of keys, the closest key is suggested. With more keys, the comparison takes too long."""


@dataclass(frozen=True, repr=False)
class StoredSample:
    """Arrays and metadata of one stored sample.

    Attributes:
        row: row of the index.
        metadata: content of the sample's JSON member.
        mel: float16 [T, F, L].
        frames: uint8 [T, H, W, C]; None in a dataset of audio.
        members: size of each member in bytes, by extension.
        audio: settings of section `audio` of the dataset.
        labels: label names of the dataset by index, then that of steps outside events, if there is one.
    """

    row: Mapping[str, Any]
    metadata: Mapping[str, Any]
    mel: np.ndarray
    frames: np.ndarray | None
    members: Mapping[str, int]
    audio: Mapping[str, Any]
    labels: tuple[str, ...]

    def __repr__(self) -> str:
        """Return key, label and array shapes."""
        frames = None if self.frames is None else list(self.frames.shape)
        return (
            f"StoredSample(key={self.row['key']!r}, label={self.row['label_name']!r},"
            f" mel={list(self.mel.shape)}, frames={frames})"
        )

    def _repr_html_(self) -> str:
        return render_sample(self.mel.astype(np.float32), self.frames, self.metadata)


def load_sample(dataset: str | Path, key: str | None = None) -> StoredSample:
    """Return the sample with a key, or the first sample of the index.

    Raises:
        UsageError: the dataset has no sample with this key.
        AvdataError: the dataset or the sample cannot be read.
    """
    files = open_dataset_files(dataset, "index.parquet")
    index = read_index(files.root, info=files.info)
    keys = index.column("key").to_pylist()
    if not keys:
        msg = f"{files.name} contains no samples."
        raise AvdataError(msg, hint="See quarantine.parquet for the excluded clips and their reasons.")
    if key is not None and key not in keys:
        msg = f"Unknown sample key {key!r} in {files.name}."
        is_close = len(keys) < MAX_FUZZY_KEYS and difflib.get_close_matches(key, keys, n=1)
        hint = (
            did_you_mean(key, is_close)
            if is_close
            else f"List keys with: avdata inspect {files.name} --limit 20"
        )
        raise UsageError(msg, hint=hint)
    row = index.slice(keys.index(key) if key else 0, 1).to_pylist()[0]
    return parse_sample(files.info, row, read_sample_bytes(files, row))


def parse_sample(info: Mapping[str, Any], row: Mapping[str, Any], data: bytes) -> StoredSample:
    """Decode a sample from its bytes.

    Args:
        info: content of dataset.json.
        row: the sample's row of the index.
        data: the sample's bytes in its shard.

    Raises:
        AvdataError: the bytes are not a complete sample.
    """
    members, shape = read_members(data), info["shape"]
    return StoredSample(
        row=row,
        metadata=decode_metadata(members, shape["mel"][0]),
        mel=decode_mel(members, shape["mel"]),
        frames=decode_frames(members, shape["frames"]) if shape["frames"] else None,
        members={extension: len(content) for extension, content in members.items()},
        audio=info["config"]["audio"],
        labels=(*info["labels"], *([info["background"]] if info["background"] else [])),
    )


def read_sample_bytes(dataset: str | Path | DatasetFiles, row: Mapping[str, Any]) -> bytes:
    """Read the bytes of a sample from its shard.

    Args:
        dataset: folder, URL or files of the dataset.
        row: the sample's row of the index.

    Raises:
        AvdataError: the shard cannot be read, or is shorter than the index requires.
    """
    files = open_dataset_files(dataset)
    path = f"{files.name}/{row['shard']}"
    hint = f"List all problems with: avdata verify {files.name}"
    try:
        data = files.read(row["shard"], row["offset"], row["nbytes"])
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror or error})"
        raise AvdataError(msg, hint=hint) from error
    if len(data) != row["nbytes"]:
        msg = f"{path} ends before the end of sample {row['key']}."
        raise AvdataError(msg, hint=hint)
    return data
