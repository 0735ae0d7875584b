"""Rows of the index that a stream reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avdata.errors import UsageError
from avdata.shards.format import index_schema
from avdata.shards.reader import read_index
from avdata.streaming.batch import PRESENCE_FLAGS
from avdata.streaming.collate import SampleShape
from avdata.streaming.filter import parse_filter
from avdata.streaming.shard_reader import ShardReader

COLUMNS = ("key", "split", "shard", "offset", "nbytes", "label", "flags")  # always read


def read_split_index(
    root: Path, split: str, condition: str | None, weights: str | Sequence[float] | np.ndarray | None
) -> Any:
    """Return the rows of a split that meet the condition, as a pyarrow table of the needed columns."""
    import pyarrow.compute as pc  # noqa: PLC0415

    used = f"{condition} {weights if isinstance(weights, str) else ''}"
    columns = [name for name in index_schema().names if name in COLUMNS or name in used]
    index = read_index(root, columns)
    index = index.filter(pc.equal(index["split"], split))
    if condition is not None:
        index = index.filter(parse_filter(condition, index_schema()))
    return index.combine_chunks()


def read_shape(reader: ShardReader, info: Mapping[str, Any], *, waveform: bool) -> SampleShape:
    """Return the shapes of a dataset's samples, from dataset.json.

    The length of the waveform is that of the longest window in the index, over all splits.

    Raises:
        UsageError: `waveform` is requested, and the dataset stores none.
    """
    shape = info["shape"]
    mel, frames = tuple(shape["mel"]), None if shape["frames"] is None else tuple(shape["frames"])
    if not waveform:
        return SampleShape(mel, frames)
    audio = info["config"].get("audio", {})
    if not audio.get("flac"):
        msg = f"Dataset {reader.name} stores no waveforms."
        raise UsageError(msg, hint="prepare it again with --set audio.flac=true")
    windows = read_index(reader.root, ["window_start", "window_end"])
    seconds = windows["window_end"].to_numpy() - windows["window_start"].to_numpy()
    length = round(float(seconds.max(initial=0)) * audio["sample_rate"])
    return SampleShape(mel, frames, (length,), audio["sample_rate"])


def read_presence(index: Any, shape: SampleShape) -> np.ndarray:
    """Return whether audio and frames are present according to the flags, bool [samples, 2]."""
    import pyarrow.compute as pc  # noqa: PLC0415

    present = np.ones((len(index), len(PRESENCE_FLAGS)), bool)
    flags, rows = pc.list_flatten(index["flags"]), pc.list_parent_indices(index["flags"])
    for modality, flag in enumerate(PRESENCE_FLAGS):
        present[rows.filter(pc.equal(flags, str(flag))).to_numpy(), modality] = False
    if shape.frames is None:
        present[:, 1] = False
    return present
