"""Rows of finished shards on disk, and the index that is made from them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from avdata.pipeline.finalize import _index_tables
from avdata.pipeline.row_spool import RowSpool
from avdata.shards.format import index_schema, write_table


def row(shard: str, number: int) -> dict[str, Any]:
    texts = {
        "key": f"k{number}",
        "split": "train",
        "shard": shard,
        "label_name": "a",
        "group": "é",
        "sha256": "",
    }
    times = dict.fromkeys(("window_start", "window_end", "pad_fraction"), 0.1 + number / 3)
    missing = dict.fromkeys(("av_offset", "av_peak", "duration_audio", "duration_video"))
    sizes = {"offset": number, "nbytes": 1, "label": 0}
    return {**texts, **times, **missing, **sizes, "flags": ["silent_audio"] * (number % 2)}


def test_row_spool_returns_the_rows_of_each_shard_and_leaves_no_file(tmp_path: Path) -> None:
    spool = RowSpool(tmp_path)
    entries = [
        spool.store({"shard": shard, "bytes": 5, "rows": [row(shard, number) for number in range(count)]})
        for shard, count in (("train/b.tar", 3), ("train/a.tar", 2), ("train/c.tar", 0))
    ]
    assert [entry["samples"] for entry in entries] == [3, 2, 0]
    assert all("rows" not in entry and entry["bytes"] == 5 for entry in entries)
    assert spool.rows("train/a.tar") == [row("train/a.tar", 0), row("train/a.tar", 1)]
    assert list(tmp_path.iterdir()) == []

    labels: Counter[tuple[str, str]] = Counter()
    flags: Counter[str] = Counter()
    tables = _index_tables(entries, spool, labels, flags)
    write_table(tmp_path / "index.parquet", tables, index_schema())
    index = pq.read_table(tmp_path / "index.parquet")
    expected = [row("train/a.tar", number) for number in range(2)]
    expected += [row("train/b.tar", number) for number in range(3)]
    assert index.to_pylist() == [{name: entry[name] for name in index.column_names} for entry in expected]
    assert (labels, flags) == ({("train", "a"): 5}, {"silent_audio": 2})
