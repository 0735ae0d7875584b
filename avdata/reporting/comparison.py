"""What differs between two preparations: settings, samples, offsets and features.

Samples are matched by key. Beyond the streams over both indexes this keeps five numbers a sample, so a set of
a million costs some 40 MB.
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
from avdata.shards.sample import parse_sample, read_sample_bytes

MAX_COMPARED_SAMPLES = 32
"""Samples opened in both sets, to compare what the network would be given."""


@dataclass(frozen=True)
class Comparison:
    """How set B differs from set A.

    Attributes:
        settings: (setting, in A, in B).
        about: the same for recipe, source and tools.
        counts: (split, label, in A, in B), where they differ.
        only_a: samples that B has not, by number.
        only_b: samples that A has not.
        both: samples in both.
        same_bytes: of these, samples whose stored bytes are equal.
        moved: of these, samples in another split.
        relabelled: of these, samples with another label.
        offsets: how far measured offsets moved, s (B − A); None where none is measured in both.
        features: (what, mean difference, largest difference) over the samples opened.
        opened: how many were opened.
        note: why features are not compared, or nothing.
    """

    settings: list[tuple[str, Any, Any]]
    about: list[tuple[str, Any, Any]]
    counts: list[tuple[str, str, int, int]]
    only_a: int
    only_b: int
    both: int
    same_bytes: int
    moved: int
    relabelled: int
    offsets: Histogram | None
    features: list[tuple[str, float, float]]
    opened: int
    note: str


@dataclass(frozen=True)
class _Rows:
    """Numbers a sample: hashes of key, split, label and stored bytes, and its offset (NaN: not measured)."""

    key: np.ndarray
    split: np.ndarray
    label: np.ndarray
    stored: np.ndarray
    offset: np.ndarray


def compare_datasets(a: Path, b: Path, info_a: Mapping[str, Any], info_b: Mapping[str, Any]) -> Comparison:
    """Compare two prepared sets.

    Args:
        a: the folder of the one.
        b: the folder of the other.
        info_a: the one's dataset.json.
        info_b: the other's.

    Raises:
        AvdataError: an index cannot be read.
    """
    one, other = _rows(a), _rows(b)
    _, here, there = np.intersect1d(one.key, other.key, return_indices=True)
    moves = other.offset[there] - one.offset[here]
    note, features, opened = _features(a, b, info_a, info_b, one.key[here])
    return Comparison(
        settings=diff_settings(info_a["config"], info_b["config"]),
        about=diff_settings(_about(info_a), _about(info_b)),
        counts=_counts(info_a, info_b),
        only_a=len(one.key) - len(here),
        only_b=len(other.key) - len(there),
        both=len(here),
        same_bytes=int((one.stored[here] == other.stored[there]).sum()),
        moved=int((one.split[here] != other.split[there]).sum()),
        relabelled=int((one.label[here] != other.label[there]).sum()),
        offsets=_moves(moves[np.isfinite(moves)]),
        features=features,
        opened=opened,
        note=note,
    )


def _about(info: Mapping[str, Any]) -> dict[str, Any]:
    source = info["source"]
    return {
        "recipe": info["recipe"], "tools": info["tools"], "machine": info["machine"],
        "source": {name: source.get(name) for name in ("checksums", "commit")},
        "labels": ", ".join(info["labels"]), "quarantine": info["quarantine"], "flags": info["flags"],
    }  # fmt: skip


def _rows(root: Path) -> _Rows:
    columns = ("key", "split", "label_name", "sha256")
    held: dict[str, list[np.ndarray]] = {name: [] for name in (*columns, "av_offset")}
    for batch in index_batches(root, list(held)):
        for name in columns:
            # Python's own hash: 64 bits, the same for equal strings within this process.
            texts = batch.column(name).to_pylist()
            held[name].append(np.fromiter(map(hash, texts), np.int64, len(texts)))
        offsets = batch.column("av_offset").to_numpy(zero_copy_only=False)
        held["av_offset"].append(offsets.astype(np.float64))
    empty: dict[str, type] = {"av_offset": np.float64}
    arrays = [
        np.concatenate(parts) if parts else np.empty(0, empty.get(name, np.int64))
        for name, parts in held.items()
    ]
    return _Rows(*arrays)


def _counts(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    empty: dict[str, Any] = {"labels": {}}
    rows = []
    for split in [*a["splits"], *(name for name in b["splits"] if name not in a["splits"])]:
        one = a["splits"].get(split, empty)["labels"]
        other = b["splits"].get(split, empty)["labels"]
        for label in [*one, *(name for name in other if name not in one)]:
            if one.get(label, 0) != other.get(label, 0):
                rows.append((split, label, one.get(label, 0), other.get(label, 0)))
    return rows


def _moves(moves: np.ndarray) -> Histogram | None:
    if not len(moves):
        return None
    reach = max(float(np.abs(moves).max()), 1e-3)
    edges = np.linspace(-reach, reach, BINS + 2)
    return Histogram(edges, {"samples": np.histogram(moves, edges)[0]})


def _features(
    a: Path, b: Path, info_a: Mapping[str, Any], info_b: Mapping[str, Any], common: np.ndarray
) -> tuple[str, list[tuple[str, float, float]], int]:
    if info_a["shape"] != info_b["shape"]:
        return f"their shapes differ: {info_a['shape']} and {info_b['shape']}", [], 0
    wanted = set(
        np.sort(common)[:: max(1, len(common) // MAX_COMPARED_SAMPLES)][:MAX_COMPARED_SAMPLES].tolist()
    )
    here, there = (_selected_rows(root, wanted) for root in (a, b))
    gaps: dict[str, list[np.ndarray]] = {"mel": [], "frames": []}
    opened = 0
    for key in sorted(here.keys() & there.keys()):
        try:
            one = parse_sample(info_a, here[key], read_sample_bytes(a, here[key]))
            other = parse_sample(info_b, there[key], read_sample_bytes(b, there[key]))
        except AvdataError as error:
            return f"a sample cannot be read: {error.message}", [], opened
        opened += 1
        for name, left, right in (("mel", one.mel, other.mel), ("frames", one.frames, other.frames)):
            gap = np.abs(left.astype(np.float32) - right.astype(np.float32))
            gaps[name].append(np.array([gap.mean(), gap.max()]))
    measured = [
        (name, float(np.mean(held, axis=0)[0]), float(np.max(held, axis=0)[1]))
        for name, held in gaps.items()
        if held
    ]
    return "" if opened else "they have no sample in common", measured, opened


def _selected_rows(root: Path, wanted: set[int]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for batch in index_batches(root):
        for number, key in enumerate(batch.column("key").to_pylist()):
            if hash(key) in wanted:
                found[key] = batch.slice(number, 1).to_pylist()[0]
    return found
