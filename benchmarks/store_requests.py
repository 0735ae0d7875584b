"""Count the requests and bytes of a preparation from and to an S3 server on loopback.

    python benchmarks/store_requests.py                   # 60 mock clips of CREMA-D, 122 files

The table of docs/scale.md is computed from them: the costs per request are the store's, not measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import avdata
from avdata.storage.remote import open_filesystem

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.object_stores import store

SETTINGS = {"shards": {"samples_per_shard": 16}}

READS = {"get_object": "read", "head_object": "read", "list_objects_v2": "list"}


class Requests:
    """Requests of the S3 client by kind, and the bytes of the objects that were read."""

    def __init__(self) -> None:
        from s3fs import S3FileSystem

        self.counts: Counter[str] = Counter()
        self.bytes = 0
        call = S3FileSystem._call_s3

        async def counted(client: Any, method: str, *args: Any, **options: Any) -> Any:
            answer = await call(client, method, *args, **options)
            self.counts[READS.get(method, "write")] += 1
            if method == "get_object":
                self.bytes += int(answer.get("ContentLength") or 0)
            return answer

        S3FileSystem._call_s3 = counted

    def of(self, name: str, action: Callable[[], object]) -> None:
        """Run an action and print its requests."""
        self.counts.clear()
        self.bytes = 0
        began = time.process_time()
        action()
        cpu = time.process_time() - began
        counts = "".join(f"{self.counts[kind]:>8,}" for kind in ("list", "read", "write"))
        print(f"{name:<34}{counts}{self.bytes / 1e6:>10.2f} MB{cpu:>8.1f} s", flush=True)


def measure(clips: int, folder: Path) -> None:
    """Print the requests of each step for a mock dataset of so many clips."""
    os.environ["AVDATA_CACHE"] = str(folder / "cache")
    avdata.mock("cremad", folder / "raw", clips=clips)
    files, _ = open_filesystem("s3://bench")
    files.mkdir("bench")
    files.put(f"{folder / 'raw'}/", "bench/raw/", recursive=True)
    requests, source = Requests(), "s3://bench/raw"
    one = {**SETTINGS, "select": {"limit": 1}}
    print(f"{clips:,} clips, {len(files.find('bench/raw')):,} files")
    print(f"{'':<34}{'lists':>8}{'reads':>8}{'writes':>8}{'read':>13}{'cpu':>10}")
    requests.of("plan", lambda: avdata.plan("cremad", source=source, config=SETTINGS))
    requests.of(
        "plan of 1 clip without checksums",
        lambda: avdata.plan("cremad", source=source, config=one, checksums=False),
    )
    out = "s3://bench/set"
    requests.of(
        "prepare", lambda: avdata.prepare("cremad", source=source, output=out, config=SETTINGS, workers=0)
    )
    requests.of("verify", lambda: avdata.verify(out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=60, metavar="N", help="number of clips (default: 60)")
    parser.add_argument("--quick", action="store_true", help="6 clips")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, store("s3") as environment:
        os.environ.update(environment)
        measure(6 if options.quick else options.clips, Path(scratch))
