"""What long sets cost before their first sample: the plan of up to 100 million, the first batch of a million.

    python benchmarks/plan.py                    # 2 GB of memory, a minute
    python benchmarks/plan.py --samples 1000000

Promises: the plan of 100 million samples in 10 s and 2 GB, growing linearly (the slope is that of time over
samples, in powers: 1 is linear); the first shuffled batch of 1,000,000 samples in 1,000 shards within 0.5 s
of opening the set, beside a plain read of its index by pyarrow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHARDS = 1000
SHAPE = {"mel": [1, 4, 4], "frames": [1, 8, 8, 1]}


def planned(samples: int) -> tuple[float, float]:
    """Seconds and peak MB of the order of an epoch, in a process of its own."""
    code = (
        "import sys, time, numpy as np\n"
        "from avdata.streaming.sampling import ShuffleConfig, batch_indices, epoch_order\n"
        "n = int(sys.argv[1]); began = time.perf_counter()\n"
        "order = epoch_order(np.full(n // 1000, 1000), ShuffleConfig(), 0)\n"
        "order[batch_indices(n, 0, seen=0, batch_size=32, rank=0, world=8)[0]]\n"
        "print(time.perf_counter() - began)\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(samples)], capture_output=True, text=True, check=True
    ).stdout.split()
    return float(done[0]), int(done[1]) / 1024


def make_set(root: Path, samples: int) -> None:
    """A set whose index is whole and whose shards are all one file, of one shard's samples."""
    from avdata.shards.format import index_schema, parquet_bytes
    from avdata.shards.writer import ShardWriter, _npy

    each = samples // SHARDS
    (root / "train").mkdir(parents=True)
    mel, frames = np.zeros(SHAPE["mel"], np.float16), np.zeros(SHAPE["frames"], np.uint8)
    with (root / "train" / "one.tar").open("wb") as stream:
        writer = ShardWriter(stream, "train/one.tar")
        for number in range(each):
            members = {"mel.npy": _npy(mel), "frames.npy": _npy(frames), "cls": b"0", "json": b"{}"}
            facts = {"split": "train", "label": 0, "label_name": "x", "group": str(number), "flags": []}
            writer.add(f"sample{number:07d}", members, facts)
        writer.close()
    rows, shards = [], []
    size = (root / "train" / "one.tar").stat().st_size
    for shard in range(SHARDS):
        path = f"train/x-train-{shard:05d}-of-{SHARDS:05d}.tar"
        (root / path).hardlink_to(root / "train" / "one.tar")
        # A checksum each, so that the index is as large as a real one.
        rows += [
            {**row, "shard": path, "sha256": hashlib.sha256(f"{path}{number}".encode()).hexdigest()}
            for number, row in enumerate(writer.rows)
        ]
        shards.append({"path": path, "bytes": size, "sha256": "0" * 64, "samples": each})
    index = parquet_bytes(rows, index_schema())
    (root / "index.parquet").write_bytes(index)
    info = {
        "format": 2, "labels": ["x"], "config_hash": "none", "config": {"video": {"storage": "npy"}},
        "mel_stats": {"mean": [0.0] * 4, "std": [1.0] * 4}, "shape": SHAPE,
        "index": {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        "splits": {"train": {"samples": samples, "shards": shards}},
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(info))


def first_batch(root: Path) -> float:
    """Seconds from opening to the first shuffled batch."""
    import avdata

    began = time.perf_counter()
    next(iter(avdata.open(root, "train", shuffle=True).loader(32)))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100_000_000, help="the longest plan")
    options = parser.parse_args()
    counts = [options.samples // 100, options.samples // 10, options.samples]
    found = [planned(count) for count in counts]
    for count, (seconds, memory) in zip(counts, found, strict=True):
        print(f"plan of {count:>11,} samples  {seconds:7.2f} s  {memory:6.0f} MB peak")
    slope = np.polyfit(np.log10(counts[1:]), np.log10([seconds for seconds, _ in found[1:]]), 1)[0]
    print(f"slope of the last decade  {slope:.2f}  (1 is linear)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        import pyarrow.parquet as pq

        root = Path(folder)
        make_set(root, 1_000_000)
        first_batch(root)  # imports
        ours, floor = [], []
        for _ in range(5):
            began = time.perf_counter()
            pq.read_table(root / "index.parquet")
            floor.append(time.perf_counter() - began)
            ours.append(first_batch(root))
        size = (root / "index.parquet").stat().st_size / 1e6
        print(f"first batch of 1,000,000 samples in 1,000 shards  {np.median(ours):.2f} s")
        print(f"reading the index ({size:.0f} MB) with pyarrow          {np.median(floor):.2f} s")


if __name__ == "__main__":
    main()
