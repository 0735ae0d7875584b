"""Rows of the index that a stream reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avdata.shards.format import index_schema
from avdata.shards.reader import read_index
from avdata.streaming.collate import PRESENCE_FLAGS
from avdata.streaming.filter import parse_filter

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


def read_presence(index: Any) -> np.ndarray:
    """Return whether audio and frames are present according to the flags, bool [samples, 2]."""
    import pyarrow.compute as pc  # noqa: PLC0415

    present = np.ones((len(index), len(PRESENCE_FLAGS)), bool)
    flags, rows = pc.list_flatten(index["flags"]), pc.list_parent_indices(index["flags"])
    for modality, flag in enumerate(PRESENCE_FLAGS):
        present[rows.filter(pc.equal(flags, str(flag))).to_numpy(), modality] = False
    return present
