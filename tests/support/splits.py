"""Prepared sets with some of their splits."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq


def copy_splits(dataset: Path, target: Path, *names: str) -> Path:
    """Copy a prepared set, whose dataset.json and index then have only the named splits."""
    shutil.copytree(dataset, target)
    info = json.loads((target / "dataset.json").read_text())
    info["splits"] = {name: info["splits"][name] for name in names}
    index = target / "index.parquet"
    pq.write_table(pq.read_table(index).filter(pc.field("split").isin(names)), index)
    info["index"] = {**info["index"], "sha256": hashlib.sha256(index.read_bytes()).hexdigest()}
    (target / "dataset.json").write_text(json.dumps(info))
    return target
