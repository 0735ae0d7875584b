"""Counts and distributions of a prepared dataset, computed from its index without reading shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.shards.dataset_files import open_dataset_files
from avdata.shards.reader import read_index

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = [
    "split", "label_name", "group", "window_start", "window_end", "av_offset", "duration_audio",
    "duration_video", "pad_fraction",
]  # fmt: skip

DISTRIBUTIONS = {
    "duration_audio_s": "duration_audio",
    "duration_video_s": "duration_video",
    "av_offset_s": "av_offset",
    "pad_fraction": "pad_fraction",
}
"""Columns of the index whose distributions are summarized, by their name with its unit."""


def summarize_dataset(dataset: str | Path) -> dict[str, Any]:
    """Return samples, hours, bytes, groups and labels by split, distributions, flags and quarantine counts.

    Args:
        dataset: folder or URL of a prepared dataset.

    Returns:
        A dict for JSON. `hours` is the total length of the windows. A distribution has `count`, `min`,
        `median`, `mean` and `max`; it is None if no sample has a value.

    Raises:
        AvdataError: the folder is not a prepared dataset, or its index is damaged.
    """
    files = open_dataset_files(dataset, "index.parquet")
    info = files.info
    index = read_index(files.root, columns=COLUMNS, info=info)
    splits = {name: _split_summary(index, name, split) for name, split in info["splits"].items()}
    return {
        "dataset": files.name,
        "name": info["name"],
        "title": info["title"],
        "license": info["license"] and info["license"]["id"],
        "samples": index.num_rows,
        "hours": round(sum(split["hours"] for split in splits.values()), 6),
        "bytes": sum(split["bytes"] for split in splits.values()),
        "splits": splits,
        **{name: _distribution(index.column(column)) for name, column in DISTRIBUTIONS.items()},
        "flags": dict(info["flags"]),
        "quarantine": dict(info["quarantine"]),
        "shape": dict(info["shape"]),
        "config_hash": info["config_hash"],
    }


def _split_summary(index: pa.Table, name: str, split: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow.compute as pc  # noqa: PLC0415

    rows = index.filter(pc.equal(index.column("split"), name))
    seconds = pc.sum(pc.subtract(rows.column("window_end"), rows.column("window_start"))).as_py() or 0.0
    labels = {
        entry["values"]: entry["counts"] for entry in rows.column("label_name").value_counts().to_pylist()
    }
    return {
        "samples": rows.num_rows,
        "hours": round(seconds / 3600, 6),
        "shards": len(split["shards"]),
        "bytes": sum(shard["bytes"] for shard in split["shards"]),
        "groups": pc.count_distinct(rows.column("group")).as_py(),
        "labels": dict(sorted(labels.items())),
    }


def _distribution(column: pa.ChunkedArray) -> dict[str, float] | None:
    import pyarrow.compute as pc  # noqa: PLC0415

    column = column.drop_null()
    if len(column) == 0:
        return None
    limits = pc.min_max(column).as_py()
    return {
        "count": len(column),
        "min": limits["min"],
        "median": pc.quantile(column, 0.5)[0].as_py(),
        "mean": pc.mean(column).as_py(),
        "max": limits["max"],
    }
