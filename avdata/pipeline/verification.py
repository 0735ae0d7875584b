"""Verification of a prepared dataset by workers: processes of this machine, or a cluster.

avdata.verify("s3://bucket/dataset", engine="ray")
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from avdata.pipeline.engines import find_engine
from avdata.progress import Progress
from avdata.shards.verify import (
    ShardCheck,
    ShardResult,
    VerificationReport,
    exclude_shard,
    run_here,
    run_shard_check,
    verify_dataset,
)


def verify(
    dataset: str | Path,
    *,
    workers: int = 0,
    engine: str = "local",
    ray_address: str = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> VerificationReport:
    """Read every byte of a prepared dataset and compare it with dataset.json and the index.

    Args:
        dataset: folder or URL of the prepared dataset. Shards are read where they lie, without a local copy.
        workers: number of worker processes; 0 works in this process, or with all CPUs of a cluster.
        engine: `local` for processes of this machine, or `ray` for a cluster, whose nodes must be able to
            read `dataset`.
        ray_address: address of the Ray cluster.
        progress: called with ("verify", done, total), in samples.

    Raises:
        UsageError: the engine is unknown or not installed.
        AvdataError: this is not a prepared dataset, or its index cannot be read.
    """
    spec = find_engine(engine)
    spec.check(ray_address)
    options: dict[str, Any] = {"address": ray_address} if spec.is_cluster else {}

    def run(checks: Iterable[ShardCheck]) -> Iterator[ShardResult]:
        run_jobs = spec.load()
        return run_jobs(
            run_shard_check, checks, workers=workers, item_timeout=math.inf, exclude=exclude_shard,
            **options,
        )  # fmt: skip

    is_here = workers == 0 and not spec.is_cluster
    return verify_dataset(dataset, run=run_here if is_here else run, progress=progress)
