"""One sample of a prepared set on this machine, read back whole for a person to look at."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdata.errors import AvdataError, UsageError, did_you_mean
from avdata.shards.reader import decode_frames, decode_mel, read_index, read_info, read_members
from avdata.visualization.html import render_sample


@dataclass(frozen=True)
class StoredSample:
    """A sample's arrays and facts.

    Attributes:
        row: its row of the index.
        metadata: its JSON.
        mel: float16 [T, F, L].
        frames: uint8 [T, H, W, C].
        members: bytes of each member by extension.
        layout: `step` when the mel of a step covers that step alone, `repeat` when each covers the window.
    """

    row: Mapping[str, Any]
    metadata: Mapping[str, Any]
    mel: np.ndarray
    frames: np.ndarray
    members: Mapping[str, int]
    layout: str

    def _repr_html_(self) -> str:
        return render_sample(self.mel.astype(np.float32), self.frames, self.metadata)


def load_sample(dataset: str | Path, key: str | None = None) -> StoredSample:
    """The sample of a key, or the first one of the index.

    Raises:
        UsageError: the set has no such key.
        AvdataError: the set or the sample cannot be read.
    """
    dataset = Path(dataset)
    info, index = read_info(dataset), read_index(dataset)
    keys = index.column("key").to_pylist()
    if not keys:
        msg = f"{dataset} holds no samples"
        raise AvdataError(msg, hint="quarantine.parquet says why each clip was left out")
    if key is not None and key not in keys:
        msg = f"{dataset} has no sample {key!r}"
        # Of a large set, comparing every key would take longer than looking it up.
        close = difflib.get_close_matches(key, keys, n=1) if len(keys) < 20_000 else []
        raise UsageError(msg, hint=did_you_mean(key, close or keys[:3]))
    row = index.slice(keys.index(key) if key else 0, 1).to_pylist()[0]
    return parse_sample(info, row, read_sample_bytes(dataset, row))


def parse_sample(info: Mapping[str, Any], row: Mapping[str, Any], data: bytes) -> StoredSample:
    """The sample of a row of the index.

    Args:
        info: the set's dataset.json.
        row: the row.
        data: its bytes in the shard.

    Raises:
        AvdataError: the bytes are not a whole sample.
    """
    members = read_members(data)
    return StoredSample(
        row=row,
        metadata=json.loads(bytes(members["json"])),
        mel=decode_mel(members),
        frames=decode_frames(members, info["shape"]["frames"][0]),
        members={extension: len(content) for extension, content in members.items()},
        layout=info["config"]["audio"]["layout"],
    )


def read_sample_bytes(root: Path, row: Mapping[str, Any]) -> bytes:
    """The bytes of a row's sample in its shard.

    Raises:
        AvdataError: the shard cannot be read, or is shorter than the index says.
    """
    path = root / row["shard"]
    try:
        with path.open("rb") as stream:
            stream.seek(row["offset"])
            data = stream.read(row["nbytes"])
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror})"
        raise AvdataError(msg, hint="avdata verify lists all that is wrong with the set") from error
    if len(data) != row["nbytes"]:
        msg = f"{path} ends before sample {row['key']} does"
        raise AvdataError(msg, hint="avdata verify lists all that is wrong with the set")
    return data
