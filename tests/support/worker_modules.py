"""Shard job that records which modules its worker has imported; every worker can import it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avdata.pipeline.shard_job import ShardJob, run_shard_job


def run_and_record_modules(job: ShardJob, report: Callable[[str], None]) -> dict[str, Any]:
    entry = run_shard_job(job, report)
    recorded_modules(job.output.root).write_text(json.dumps(sorted(sys.modules)), encoding="utf-8")
    return entry


def recorded_modules(root: Path) -> Path:
    """Return the file with the modules, beside the dataset."""
    return root.with_name(f"{root.name}-modules.json")
