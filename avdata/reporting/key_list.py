"""Keys of the samples that have no card, for the search of the gallery."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from avdata.reporting.statistics import index_batches

MAX_BYTES = 400_000
"""Largest list in a page. CREMA-D, UrbanSound8K and AVE are below it, VGGSound is not."""


def list_keys(root: Path, skipped: Collection[str]) -> list[tuple[str, str, str]] | None:
    """Return the keys by split and label, as (split, label name, keys separated by spaces).

    Args:
        root: folder with index.parquet.
        skipped: keys to omit.

    Returns:
        None if the list would be larger than `MAX_BYTES`.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    size = 0
    for batch in index_batches(root, ["key", "split", "label_name"]):
        keys, splits, labels = (batch.column(name).to_pylist() for name in ("key", "split", "label_name"))
        for key, split, label in zip(keys, splits, labels, strict=True):
            if key not in skipped:
                groups.setdefault((split, label), []).append(key)
                size += len(key) + 1
        if size > MAX_BYTES:
            return None
    return [(split, label, " ".join(keys)) for (split, label), keys in groups.items()]
