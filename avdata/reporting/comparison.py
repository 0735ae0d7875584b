"""Comparison of two prepared datasets: settings, samples, offsets and features.

Samples are matched by key. Memory use is five numbers per sample, 40 MB for a million samples, besides the
batches of both indexes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdata.config.overrides import diff_settings
from avdata.errors import AvdataError
from avdata.reporting.statistics import BINS, Histogram, index_batches
from avdata.shards.dataset_files import DatasetFiles
from avdata.shards.sample import parse_sample, read_sample_bytes

MAX_COMPARED_SAMPLES = 32
"""Samples whose features are read from both datasets and compared."""


@dataclass(frozen=True)
class FeatureComparison:
    """Differences of stored features.

    Attributes:
        differences: (name, mean absolute difference, largest absolute difference).
        samples: number of samples read from both datasets.
        note: why features were not compared, or empty.
    """

    differences: list[tuple[str, float, float]]
    samples: int
    note: str


@dataclass(frozen=True)
class Comparison:
    """Differences of dataset B from dataset A.

    Attributes:
        settings: (setting, value in A, value in B), if they differ.
        metadata: the same for recipe, source, quarantine and tools.
        counts: (split, label, samples in A, samples in B), if they differ.
        only_a: number of samples in A only.
        only_b: number of samples in B only.
        both: number of samples in both.
        same_bytes: of these, samples whose stored bytes are equal.
        moved: of these, samples in another split.
        relabeled: of these, samples with another label.
        offsets: measured offset in B minus that in A, s. None if no sample has both.
        features: differences of stored features.
    """

    settings: list[tuple[str, Any, Any]]
    metadata: list[tuple[str, Any, Any]]
    counts: list[tuple[str, str, int, int]]
    only_a: int
    only_b: int
    both: int
    same_bytes: int
    moved: int
    relabeled: int
    offsets: Histogram | None
    features: FeatureComparison


@dataclass(frozen=True)
class _IndexColumns:
    """Index columns: int64 hashes of key, split, label and stored bytes; offset (NaN: not measured)."""

    key: np.ndarray
    split: np.ndarray
    label: np.ndarray
    stored: np.ndarray
    offset: np.ndarray


def compare_datasets(a: DatasetFiles, b: DatasetFiles) -> Comparison:
    """Compare two prepared datasets.

    Args:
        a: files of dataset A.
        b: files of dataset B.

    Raises:
        AvdataError: an index cannot be read.
    """
    info_a, info_b = a.info, b.info
    columns_a, columns_b = _read_columns(a.root), _read_columns(b.root)
    _, rows_a, rows_b = np.intersect1d(columns_a.key, columns_b.key, return_indices=True)
    offset_changes = columns_b.offset[rows_b] - columns_a.offset[rows_a]
    return Comparison(
        settings=diff_settings(info_a["config"], info_b["config"]),
        metadata=diff_settings(_metadata(info_a), _metadata(info_b)),
        counts=_compare_counts(info_a, info_b),
        only_a=len(columns_a.key) - len(rows_a),
        only_b=len(columns_b.key) - len(rows_b),
        both=len(rows_a),
        same_bytes=int((columns_a.stored[rows_a] == columns_b.stored[rows_b]).sum()),
        moved=int((columns_a.split[rows_a] != columns_b.split[rows_b]).sum()),
        relabeled=int((columns_a.label[rows_a] != columns_b.label[rows_b]).sum()),
        offsets=_offset_histogram(offset_changes[np.isfinite(offset_changes)]),
        features=_compare_features(a, b, columns_a.key[rows_a]),
    )


def _metadata(info: Mapping[str, Any]) -> dict[str, Any]:
    source = info["source"]
    return {
        "recipe": info["recipe"], "tools": info["tools"], "machine": info["machine"],
        "source": {name: source.get(name) for name in ("checksums", "commit", "files", "lists")},
        "labels": ", ".join(info["labels"]), "quarantine": info["quarantine"], "flags": info["flags"],
    }  # fmt: skip


def _read_columns(root: Path) -> _IndexColumns:
    text_columns = ("key", "split", "label_name", "sha256")
    batches: dict[str, list[np.ndarray]] = {name: [] for name in (*text_columns, "av_offset")}
    for batch in index_batches(root, list(batches)):
        for name in text_columns:
            # Python's hash: 64 bits, the same for equal strings within this process.
            texts = batch.column(name).to_pylist()
            batches[name].append(np.fromiter(map(hash, texts), np.int64, len(texts)))
        offsets = batch.column("av_offset").to_numpy(zero_copy_only=False)
        batches["av_offset"].append(offsets.astype(np.float64))
    dtypes: dict[str, type] = {"av_offset": np.float64}
    arrays = [
        np.concatenate(parts) if parts else np.empty(0, dtypes.get(name, np.int64))
        for name, parts in batches.items()
    ]
    return _IndexColumns(*arrays)


def _compare_counts(info_a: Mapping[str, Any], info_b: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    counts = []
    for split in dict.fromkeys([*info_a["splits"], *info_b["splits"]]):
        labels_a, labels_b = (info["splits"].get(split, {}).get("labels", {}) for info in (info_a, info_b))
        for label in dict.fromkeys([*labels_a, *labels_b]):
            if labels_a.get(label, 0) != labels_b.get(label, 0):
                counts.append((split, label, labels_a.get(label, 0), labels_b.get(label, 0)))
    return counts


def _offset_histogram(changes: np.ndarray) -> Histogram | None:
    if not changes.any():
        return None
    limit = max(float(np.abs(changes).max()), 1e-3)
    edges = np.linspace(-limit, limit, BINS + 2)
    return Histogram(edges, {"samples": np.histogram(changes, edges)[0]})


def _describe_shapes(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Return the shapes that differ.

    >>> _describe_shapes({"mel": [4, 128, 64], "frames": None}, {"mel": [4, 64, 64], "frames": None})
    'the shape of mel is [4, 128, 64] in A and [4, 64, 64] in B'
    """
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    texts = (f"{name} is {a.get(name) or 'absent'} in A and {b.get(name) or 'absent'} in B" for name in names)
    return "the shape of " + ", that of ".join(texts)


def _compare_features(a: DatasetFiles, b: DatasetFiles, common: np.ndarray) -> FeatureComparison:
    """Compare the features of evenly chosen samples. `common` are the hashes of their keys, int64 [n]."""
    info_a, info_b = a.info, b.info
    if info_a["shape"] != info_b["shape"]:
        return FeatureComparison([], 0, _describe_shapes(info_a["shape"], info_b["shape"]))
    interval = max(1, len(common) // MAX_COMPARED_SAMPLES)
    hashes = set(np.sort(common)[::interval][:MAX_COMPARED_SAMPLES].tolist())
    rows_a, rows_b = (_rows_by_key(files.root, hashes) for files in (a, b))
    gaps: dict[str, list[tuple[float, float]]] = {"mel": [], "frames": []}
    samples = 0
    for key in sorted(rows_a.keys() & rows_b.keys()):
        try:
            sample_a = parse_sample(info_a, rows_a[key], read_sample_bytes(a, rows_a[key]))
            sample_b = parse_sample(info_b, rows_b[key], read_sample_bytes(b, rows_b[key]))
        except AvdataError as error:
            return FeatureComparison([], samples, f"sample {key} cannot be read: {error.message}")
        samples += 1
        for name, pairs in gaps.items():
            array_a, array_b = getattr(sample_a, name), getattr(sample_b, name)
            if array_a is None or array_b is None:
                continue
            gap = np.abs(array_a.astype(np.float32) - array_b.astype(np.float32))
            pairs.append((float(gap.mean()), float(gap.max())))
    if not samples:
        return FeatureComparison([], 0, "the datasets have no sample in common")
    differences = [
        (name, float(np.mean([mean for mean, _ in pairs])), max(largest for _, largest in pairs))
        for name, pairs in gaps.items()
        if pairs
    ]
    return FeatureComparison(differences, samples, "")


def _rows_by_key(root: Path, hashes: set[int]) -> dict[str, Mapping[str, Any]]:
    rows: dict[str, Mapping[str, Any]] = {}
    for batch in index_batches(root):
        for number, key in enumerate(batch.column("key").to_pylist()):
            if hash(key) in hashes:
                rows[key] = batch.slice(number, 1).to_pylist()[0]
    return rows
