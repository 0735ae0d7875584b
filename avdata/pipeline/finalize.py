"""Last step of a preparation: write index, quarantine, card and dataset.json from the journal's entries.

Each file is a pure function of the plan and of the entries in the plan's order. The bytes therefore depend
neither on workers nor on restarts. dataset.json is written last and marks a finished dataset.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from avdata.config.schema import Config
from avdata.features.audio import feature_bins
from avdata.media.decoders import DECODERS
from avdata.pipeline.planning import PreparationPlan
from avdata.pipeline.validation import SourceFile
from avdata.recipe import Recipe
from avdata.selection import QuarantinedClip
from avdata.shards.card import dataset_card
from avdata.shards.card_features import json_features
from avdata.shards.croissant import croissant
from avdata.shards.format import FORMAT_VERSION, index_schema, parquet_bytes, quarantine_schema
from avdata.storage.atomic import atomic_write

TOOLS = (
    "avdata",
    "numpy",
    *(decoder.package for decoder in DECODERS.values()),
    "librosa",
    "soxr",
    "pillow",
    "pyarrow",
)
"""Packages whose versions determine the bytes of a dataset."""


@dataclass(frozen=True)
class Provenance:
    """Inputs of a dataset: the plan, and the fingerprints of its shard jobs."""

    plan: PreparationPlan
    fingerprints: Sequence[str]

    @property
    def plan_hash(self) -> str:
        """SHA-256 of the fingerprints: equal plans, equal datasets."""
        return hashlib.sha256("\n".join(self.fingerprints).encode()).hexdigest()


def finalize_dataset(
    root: Path,
    provenance: Provenance,
    entries: Sequence[Mapping[str, Any]],
    quarantined: Sequence[QuarantinedClip],
) -> dict[str, Any]:
    """Write the metadata files beside the shards.

    Args:
        root: local folder of the metadata files.
        provenance: plan with recipe, settings and manifest.
        entries: journal entries, in the order of the plan.
        quarantined: clips that failed the validation.

    Returns:
        The content of dataset.json.

    Raises:
        AvdataError: a file cannot be written.
    """
    rows = sorted(
        (row for entry in entries for row in entry["rows"]), key=lambda row: (row["shard"], row["offset"])
    )
    lost = [asdict(clip) for clip in quarantined] + [row for entry in entries for row in entry["quarantine"]]
    lost.sort(key=lambda row: str(row["key"]))
    info = _info(provenance, entries, rows, lost)
    index = parquet_bytes(rows, index_schema())
    # `avdata verify` checks the index like a shard, because it holds the offsets and checksums of samples.
    info["index"] = {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()}
    atomic_write(root / "index.parquet", index)
    atomic_write(root / "quarantine.parquet", parquet_bytes(lost, quarantine_schema()))
    atomic_write(root / "croissant.json", croissant(info, info["index"]["sha256"]))
    atomic_write(root / "README.md", dataset_card(info).encode())
    atomic_write(root / "dataset.json", (json.dumps(info, indent=1, ensure_ascii=False) + "\n").encode())
    return info


def _info(
    provenance: Provenance,
    entries: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    lost: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    plan = provenance.plan
    recipe, config, manifest = plan.recipe, plan.config, plan.manifest
    return {
        "format": FORMAT_VERSION,
        "name": recipe.name,
        "title": recipe.title,
        "recipe": {"name": recipe.name, "version": recipe.version},
        "config": config.model_dump(mode="json"),
        "config_hash": config.hash,
        "plan": provenance.plan_hash,
        "source": _source_facts(plan),
        "license": manifest.license.model_dump() if manifest else None,
        "citation": manifest.citation if manifest else None,
        "ethics": manifest.ethics if manifest else None,
        "labels": list(recipe.labels),
        "label_orders": {name: list(order) for name, order in recipe.label_orders.items()},
        "background": recipe.background,
        "extras": json_features(clip.extras for clip in plan.clips),
        "split_by": config.select.split_by,
        "splits": _splits(recipe, entries, rows),
        "leaks": _leaking_groups(rows),
        "quarantine": dict(sorted(Counter(str(row["reason"]) for row in lost).items())),
        "flags": dict(sorted(Counter(flag for row in rows for flag in row["flags"]).items())),
        "shape": _shape(config, has_frames=plan.has_frames),
        "mel_stats": _mel_stats([entry for entry in entries if entry["shard"].startswith("train/")]),
        "tools": _tools(config),
        "machine": _machine(),
    }


def _source_facts(plan: PreparationPlan) -> dict[str, Any]:
    """Return the manifest's sources, and how many files and lists of the source were verified with it."""
    manifest = plan.manifest
    if manifest is None:
        return {"checksums": "off"}
    return {
        "checksums": "mock" if manifest.mock else "manifest",
        "homepage": manifest.homepage,
        "commit": manifest.commit,
        "manifest": manifest.hash,
        "files": _verified_counts(plan.files),
        "lists": _verified_counts(plan.lists),
        "sources": [
            {
                "name": source.name,
                "urls": list(source.urls),
                "checksum": source.checksum,
                "checksum_per_file": source.table is not None or any("{path}" in url for url in source.urls),
            }
            for source in manifest.sources
        ],
    }


def _verified_counts(files: Sequence[SourceFile]) -> dict[str, Any]:
    """Return the number of files by the algorithm of their checksum, and of those without one."""
    counts = Counter(file.verified_by for file in files)
    unverified = counts.pop(None, 0)
    return {
        "verified": {str(name): counts[name] for name in sorted(counts, key=str)},
        "unverified": unverified,
    }


def _splits(
    recipe: Recipe, entries: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    splits: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if not entry["rows"]:
            continue
        split = splits.setdefault(entry["shard"].partition("/")[0], {"samples": 0, "shards": []})
        split["samples"] += len(entry["rows"])
        split["shards"].append(
            {
                "path": entry["shard"],
                "samples": len(entry["rows"]),
                "bytes": entry["bytes"],
                "sha256": entry["sha256"],
            }
        )
    for name, split in splits.items():
        split_rows = [row for row in rows if row["split"] == name]
        counts = Counter(row["label_name"] for row in split_rows)
        split["labels"] = {label: counts[label] for label in recipe.labels}
        split["groups"] = len({row["group"] for row in split_rows})
    return splits


def _leaking_groups(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of groups in several splits, which some published splits have."""
    pairs = {(row["group"], row["split"]) for row in rows}
    return sum(count > 1 for count in Counter(group for group, _ in pairs).values())


def _shape(config: Config, *, has_frames: bool) -> dict[str, list[int] | None]:
    steps, size = config.video.num_frames, config.video.size
    return {
        "mel": [steps, feature_bins(config.audio), config.mel_columns],
        "frames": [steps, size, size, 3 if config.video.color == "rgb" else 1] if has_frames else None,
    }


def _mel_stats(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[float]] | None:
    """Return mean and standard deviation of the mels by band, from sums in the plan's order."""
    shards = [entry["mel"] for entry in entries if entry["mel"]["count"]]
    if not shards:
        return None
    count = sum(sums["count"] for sums in shards)
    bands = range(len(shards[0]["sum"]))
    means = [sum(sums["sum"][band] for sums in shards) / count for band in bands]
    squares = [sum(sums["squares"][band] for sums in shards) / count for band in bands]
    return {
        "mean": means,
        "std": [max(square - mean**2, 0.0) ** 0.5 for square, mean in zip(squares, means, strict=True)],
    }


def _tools(config: Config) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in (*TOOLS, "opencv-python-headless") if config.video.resize_mode == "face" else TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    decoder = DECODERS[config.video.decoder]
    if (program := decoder.program_version()) is not None:
        versions[str(decoder.program)] = program
    return versions


def _machine() -> str:
    import numpy as np  # noqa: PLC0415

    # The last bit of a float may differ between CPU families.
    extensions = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    return " ".join([platform.machine(), *extensions[-1:]])
