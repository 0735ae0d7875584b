from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avdata.reporting.statistics import collect_statistics
from avdata.shards.format import index_schema


def test_histograms_count_every_sample_once_and_separate_flagged_offsets(tmp_path: Path) -> None:
    write_index(tmp_path, 5_000)
    statistics = collect_statistics(tmp_path)
    offset = statistics.histograms["offset"]
    assert (statistics.samples, offset.total) == (5_000, 5_000)
    assert int(offset.counts["flagged"].sum()) == 50
    centers = (offset.edges[:-1] + offset.edges[1:]) / 2
    assert centers[np.flatnonzero(offset.counts["flagged"])].min() > 0.3
    assert statistics.offset_median == pytest.approx(0.025, abs=1e-3)
    assert all(statistics.histograms[name].total == 5_000 for name in ("audio", "video", "padding"))


def test_statistics_sum_the_seconds_of_windows_and_clips(tmp_path: Path) -> None:
    table = write_index(tmp_path, 900)
    statistics = collect_statistics(tmp_path)
    assert statistics.window_seconds == pytest.approx(dict.fromkeys(["train", "val", "test"], 300 * 2.56))
    assert statistics.source_seconds == pytest.approx(sum(table["duration_video"].to_pylist()))


def test_offsets_of_one_aac_frame_are_counted_by_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = write_index(tmp_path, 1000)
    offsets = rng.uniform(-0.1, 0.1, 1000)
    offsets[:300] = 1024 / 48_000 + rng.uniform(-5e-5, 5e-5, 300)
    offsets[300:500] = -1024 / 44_100
    column = table.schema.get_field_index("av_offset")
    table = table.set_column(column, table.schema.field(column), pa.array(offsets, pa.float64()))
    pq.write_table(table, tmp_path / "index.parquet")
    counts = collect_statistics(tmp_path).aac_offsets
    assert counts == {48_000: pytest.approx(300, abs=10), 44_100: pytest.approx(200, abs=10)}
    write_index(tmp_path, 1000)
    assert collect_statistics(tmp_path).aac_offsets == {}


def test_selected_rows_contain_the_extremes(tmp_path: Path) -> None:
    rows = write_index(tmp_path, 5_000).to_pylist()
    latest = max(rows, key=lambda row: row["av_offset"])["key"]
    longest = max(rows, key=lambda row: row["duration_audio"])["key"]
    reasons = {
        selected.row["key"]: selected.reasons for selected in collect_statistics(tmp_path).selected_rows
    }
    assert "latest audio" in reasons[latest]
    assert "longest audio" in reasons[longest]


def test_selected_rows_depend_on_the_seed_alone(tmp_path: Path) -> None:
    write_index(tmp_path, 5_000)
    keys = [
        [selected.row["key"] for selected in collect_statistics(tmp_path, seed=seed).selected_rows]
        for seed in (1, 1, 2)
    ]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    code = (
        "import pathlib, re, sys; from avdata.reporting.statistics import collect_statistics;"
        "statistics = collect_statistics(pathlib.Path(sys.argv[1]));"
        # Not ru_maxrss: a child inherits the parent's peak.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1];"
        "print(statistics.samples, int(peak) // 1024)"
    )
    # Arrow starts a thread per processor, each with its own memory pool.
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    peaks = {}
    for count in (100_000, 500_000):
        write_index(tmp_path, count)
        process = subprocess.run(
            [sys.executable, "-c", code, tmp_path], env=env, capture_output=True, text=True, check=True
        )
        samples, peak = map(int, process.stdout.split())
        peaks[samples] = peak
    # 400,000 rows are 100 MB as a table; the allocator accounts for the rest.
    assert peaks[500_000] - peaks[100_000] < 40, peaks


def write_index(root: Path, count: int) -> pa.Table:
    """Write an index of samples without shards. Every hundredth sample has late audio and is flagged."""
    rng = np.random.default_rng(0)
    number = np.arange(count)
    is_late = number % 100 == 7
    key = pa.array(np.char.add("clip", number.astype(str)))
    names = np.array(["train", "val", "test"])[number % 3]
    split, shard = pa.array(names), pa.array(np.char.add(names, "/set-00000-of-00001.tar"))
    flags = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(is_late)]).astype(np.int32)),
        pa.array(["low_correlation"] * int(is_late.sum()), pa.string()),
    )
    columns = {
        "key": key, "split": split, "shard": shard, "offset": number * 10_240,
        "nbytes": np.full(count, 10_240),
        "label": (number % 28).astype(np.int32), "label_name": pa.array((number % 28).astype(str)),
        "group": key,
        "window_start": np.zeros(count), "window_end": np.full(count, 2.56),
        "av_offset": np.where(is_late, rng.uniform(0.4, 0.5, count), rng.normal(0.025, 0.001, count)),
        "av_peak": rng.uniform(0.4, 1, count), "duration_audio": rng.uniform(1, 5, count),
        "duration_video": rng.uniform(1, 5, count), "pad_fraction": rng.uniform(0, 1, count),
        "flags": flags, "sha256": pa.array(np.char.add("0" * 56, np.char.zfill(number.astype(str), 8))),
    }  # fmt: skip
    table = pa.table({name: pa.array(column) for name, column in columns.items()}).cast(index_schema())
    pq.write_table(table, root / "index.parquet", compression="zstd")
    return table
