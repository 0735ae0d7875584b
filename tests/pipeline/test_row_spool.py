"""Rows of finished shards on disk, and the index that is made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from avdata.pipeline.finalize import _index_tables, _Totals
from avdata.pipeline.row_spool import RowSpool
from avdata.shards.format import index_schema, write_table
from avdata.shards.mel_sums import MelSums


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
        spool.store(
            {
                "shard": shard, "bytes": 5, "rows": [row(shard, number) for number in range(count)],
                "mel": MelSums(count, [count], [1 << 70]).to_json(),
            }
        )
        for shard, count in (("train/b.tar", 3), ("train/a.tar", 2), ("train/c.tar", 0), ("val/d.tar", 1))
    ]  # fmt: skip
    assert [entry["samples"] for entry in entries] == [3, 2, 0, 1]
    assert all(entry.keys() == {"shard", "bytes", "samples"} and entry["bytes"] == 5 for entry in entries)
    rows, mels = spool.load("train/a.tar")
    assert rows == [row("train/a.tar", 0), row("train/a.tar", 1)]
    assert mels.to_json() == {"count": 2, "sum": ["2"], "squares": [str(1 << 70)]}
    assert list(tmp_path.iterdir()) == []

    totals = _Totals()
    tables = _index_tables(entries, spool, totals)
    write_table(tmp_path / "index.parquet", tables, index_schema())
    index = pq.read_table(tmp_path / "index.parquet")
    expected = [row("train/a.tar", number) for number in range(2)]
    expected += [row("train/b.tar", number) for number in range(3)] + [row("val/d.tar", 0)]
    assert index.to_pylist() == [{name: entry[name] for name in index.column_names} for entry in expected]
    assert (totals.labels, totals.flags) == ({("train", "a"): 6}, {"silent_audio": 2})
    assert totals.train_mels.to_json() == {"count": 5, "sum": ["5"], "squares": [str(1 << 71)]}
