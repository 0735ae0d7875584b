"""Planning and first batch of large datasets.

    python benchmarks/plan.py                    # 2 GB of memory, a minute
    python benchmarks/plan.py --samples 1000000

Targets: an epoch of 100 million samples is planned in 5 s of CPU time and 2 GB, and time grows linearly (the
exponent is the slope of log time over log samples). The first shuffled batch of 1,000,000 samples in 1,000
shards is ready 0.3 s after the dataset is opened. A plain read of the index by pyarrow is timed in turn.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from claims import Claim, at_most, main, make_parser, set_quick
from dataset_info import write_info

SHARDS = 1000
SHAPE = {"mel": [1, 4, 4], "frames": [1, 8, 8, 1]}


def planned(samples: int) -> tuple[float, float]:
    """Return CPU seconds and peak MB of the order of an epoch, in a new process."""
    code = (
        "import sys, time, numpy as np\n"
        "from avdata.streaming.sampling import ShuffleConfig, batch_indices, default_block, epoch_order\n"
        "n = int(sys.argv[1]); began = time.process_time()\n"
        "order = ShuffleConfig(canonical_nodes=1, block=default_block(1))\n"  # that of a local set
        "order = epoch_order(np.full(n // 1000, 1000), order, 0)\n"
        "order[batch_indices(n, 0, seen=0, batch_size=32, rank=0, world=8)[0]]\n"
        "print(time.process_time() - began)\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(samples)], capture_output=True, text=True, check=True
    ).stdout.split()
    return float(done[0]), int(done[1]) / 1024


def make_set(root: Path, samples: int) -> None:
    """Write a dataset with a complete index whose shards are links to one file."""
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
    (root / "index.parquet").write_bytes(parquet_bytes(rows, index_schema()))
    write_info(root, shards, SHAPE, labels=1, storage="npy")


def first_batch(root: Path) -> float:
    """Return the seconds from opening to the first shuffled batch."""
    import avdata

    began = time.perf_counter()
    next(iter(avdata.open(root, "train", shuffle=True).loader(32)))
    return time.perf_counter() - began


def measure(options: argparse.Namespace) -> list[Claim]:
    import pyarrow.parquet as pq

    counts = [options.samples // 100, options.samples // 10, options.samples]
    plans = [planned(count) for count in counts]
    for count, (seconds, memory) in zip(counts, plans, strict=True):
        print(f"plan of {count:>11,} samples  {seconds:7.2f} s  {memory:6.0f} MB peak")
    slope = np.polyfit(np.log10(counts[1:]), np.log10([seconds for seconds, _ in plans[1:]]), 1)[0]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_set(root, 1_000_000)
        first_batch(root)  # imports
        batch, index = [], []
        for _ in range(5):
            began = time.perf_counter()
            pq.read_table(root / "index.parquet")
            index.append(time.perf_counter() - began)
            batch.append(first_batch(root))
        size = (root / "index.parquet").stat().st_size / 1e6
        print(f"first batch of 1,000,000 samples in 1,000 shards  {np.median(batch):.2f} s")
        print(f"reading the index ({size:.0f} MB) with pyarrow          {np.median(index):.2f} s")
    seconds, memory = plans[-1]
    return [
        at_most(f"plan of {options.samples:,} samples, CPU time", seconds, 5e-8 * options.samples, "s"),
        at_most(f"plan of {options.samples:,} samples, peak memory", memory, 2000, "MB"),
        at_most("plan, exponent of the number of samples", slope, 1.2, ""),
        at_most("first batch of 1,000,000 samples in 1,000 shards", float(np.median(batch)), 0.3, "s"),
    ]


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=100_000_000, help="samples of the largest plan")
    main(set_quick(parser, samples=20_000_000), measure)
