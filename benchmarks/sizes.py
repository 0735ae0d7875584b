"""Time and memory of large datasets: many clips, many rows of the index, many quarantined clips, many labels.

    python benchmarks/sizes.py

Limits: 60 CPU seconds and 1 GiB; 10 CPU seconds for the report of 10,000 labels. CPU seconds, so that other
programs of the machine do not count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from claims import Claim, at_most, main, make_parser, set_quick

import avdata
from avdata.shards.format import index_schema, quarantine_schema
from avdata.shards.reader import read_info
from avdata.subprocesses import python_command, python_environment
from avdata.testing.media import write_wav

MAX_SECONDS, MAX_MIB = 60.0, 1024.0


RUNNER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([status, time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""
"""A child inherits the peak memory of its parent, so a small process starts the commands."""


def measured(name: str, *arguments: str, max_seconds: float = MAX_SECONDS) -> list[Claim]:
    """Run Python; print the seconds and the peak memory, and return both as claims."""
    command = python_command("-c", RUNNER, *python_command(*arguments))
    done = subprocess.run(command, env=python_environment(), stdout=subprocess.PIPE, check=True)
    status, seconds, cpu, peak_kib = json.loads(done.stdout)
    if status:
        sys.exit(f"{name}: ended with status {status}")
    print(f"| {name} | {seconds:.1f} s | {cpu:.1f} s | {peak_kib / 1024:,.0f} MiB |", flush=True)
    return [
        at_most(f"{name}, CPU time", cpu, max_seconds, "s"),
        at_most(f"{name}, peak memory", peak_kib / 1024, MAX_MIB, "MiB"),
    ]


TINY_RECIPE = """
from pathlib import Path
from avdata import Clip, Recipe

def clips(root: Path, split_by: str) -> list[Clip]:
    paths = sorted(root.glob("*/*.wav"))
    return [Clip(key=path.stem, label="ab"[n % 2], group=path.stem, split="train", video=None, audio=path)
            for n, path in enumerate(paths)]

RECIPE = Recipe(name="tiny", version=1, title="Tiny", labels=("a", "b"), clips=clips,
                splits={"all": "everything is train"}, default_split="all")
"""


def tiny_source(folder: Path, clips: int) -> tuple[Path, Path]:
    """Write a source of clips that are links to one file, and its recipe; return both."""
    source, recipe = folder / "tiny", folder / "tiny.py"
    recipe.write_text(TINY_RECIPE, encoding="utf-8")
    for number in range(clips):
        path = source / f"{number // 10_000:03d}" / f"c{number:07d}.wav"
        if number % 10_000 == 0:
            path.parent.mkdir(parents=True)
            first = path
            write_wav(path, 0.1 * np.sin(np.arange(4000, dtype=np.float32)), 16_000)
        else:
            path.hardlink_to(first)
    return source, recipe


def dry_run(folder: Path, clips: int) -> list[Claim]:
    source, recipe = tiny_source(folder, clips)
    words = ["--source", str(source), "--output", str(folder / "none"), "--no-checksums", "--dry-run"]
    return measured(f"prepare --dry-run, {clips:,} clips", "-m", "avdata", "prepare", str(recipe), *words)


def small_dataset(folder: Path) -> Path:
    """Prepare a small mock of CREMA-D."""
    mock = avdata.mock("cremad", folder / "mock", clips=14)
    dataset = folder / "set"
    config = {"video": {"size": 48}, "shards": {"samples_per_shard": 2}}
    avdata.prepare("cremad", source=mock, output=dataset, config=config, workers=2)
    return dataset


def write_large_index(root: Path, dataset: Path, rows: int) -> None:
    """Copy a dataset with an index of many rows, whose shards are missing."""
    shutil.copytree(dataset, root)
    shutil.rmtree(root / "train")
    info = read_info(dataset)
    (row,) = pq.read_table(dataset / "index.parquet").slice(0, 1).to_pylist()
    count = rows // 1000
    shards = [f"train/large-train-{number:05d}-of-{count:05d}.tar" for number in range(count)]
    columns: dict[str, Any] = {name: [value] * rows for name, value in row.items()}
    columns |= {
        "key": [f"k{number:08d}" for number in range(rows)],
        "group": [f"g{number // 7:08d}" for number in range(rows)],
        "shard": [shards[number // 1000] for number in range(rows)],
        "offset": [number % 1000 * row["nbytes"] for number in range(rows)],
        "split": ["train"] * rows,
    }  # fmt: skip
    schema = index_schema()
    table = pa.table(
        [pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema
    )
    pq.write_table(table, root / "index.parquet", compression="zstd", row_group_size=65_536)
    shard = {"samples": 1000, "bytes": 1000 * row["nbytes"], "sha256": "0" * 64}
    labels = {label: rows * (label == row["label_name"]) for label in info["labels"]}
    split = {
        "samples": rows, "shards": [{"path": path, **shard} for path in shards], "labels": labels,
        "groups": -(-rows // 7),
    }  # fmt: skip
    index = (root / "index.parquet").read_bytes()
    info |= {
        "splits": {"train": split},
        "index": {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
    }
    (root / "dataset.json").write_text(json.dumps(info), encoding="utf-8")


def large_index(folder: Path, dataset: Path, rows: int) -> list[Claim]:
    """Report and verify an index of many rows, whose shards are missing: only the index counts here."""
    root = folder / "large"
    write_large_index(root, dataset, rows)
    check = (
        "import sys; from pathlib import Path; from avdata.shards.reader import read_info; from avdata.shards"
        ".verify_index import IndexCheck; root = Path(sys.argv[1]); IndexCheck(root, read_info(root))"
    )
    return [
        *measured(f"report, {rows:,} rows", "-m", "avdata", "report", str(root)),
        *measured(f"verify, the index of {rows:,} rows", "-c", check, str(root)),
    ]


def large_page(folder: Path, dataset: Path, rows: int, labels: int) -> list[Claim]:
    """Report many quarantined rows, and many labels."""
    root = folder / "quarantined"
    shutil.copytree(dataset, root)
    keys = [f"q{number:08d}" for number in range(rows)]
    values = [
        {"key": key, "reason": "unreadable", "detail": f"{key}.mp4: invalid data", "kept": ""} for key in keys
    ]
    pq.write_table(pa.Table.from_pylist(values, quarantine_schema()), root / "quarantine.parquet")
    info = read_info(root)
    (root / "dataset.json").write_text(
        json.dumps({**info, "quarantine": {"unreadable": rows}}), encoding="utf-8"
    )
    claims = measured(f"report, {rows:,} rows in quarantine", "-m", "avdata", "report", str(root))
    more = [f"label {number} | <b>" for number in range(labels - len(info["labels"]))]
    splits = {
        name: {**split, "labels": {**split["labels"], **dict.fromkeys(more, 0)}}
        for name, split in info["splits"].items()
    }
    text = json.dumps({**info, "labels": [*info["labels"], *more], "splits": splits})
    (root / "dataset.json").write_text(text, encoding="utf-8")
    shutil.copy(dataset / "quarantine.parquet", root)
    name = f"report, {labels:,} labels"
    return claims + measured(name, "-m", "avdata", "report", str(root), max_seconds=10.0)


def measure(options: argparse.Namespace) -> list[Claim]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = small_dataset(folder)
        print("| command | wall | CPU | peak memory |\n|---|---|---|---|")
        claims = large_page(folder, dataset, options.quarantined, options.labels)
        claims += large_index(folder, dataset, options.rows)
        return claims + dry_run(folder, options.clips)


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--clips", type=int, default=200_000, help="clips of the dry run")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the index")
    parser.add_argument("--quarantined", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=10_000)
    main(set_quick(parser, clips=20_000, rows=200_000, quarantined=20_000, labels=5000), measure)
