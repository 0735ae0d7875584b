"""Last step of a preparation: write index, quarantine, card and dataset.json from the journal's entries.

Each file is a pure function of the plan and of the entries in the plan's order. The bytes therefore depend
neither on workers nor on restarts. dataset.json is written last and marks a finished dataset.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.config.schema import Config
from avdata.errors import QuarantineReason, redact_url
from avdata.features.audio import feature_bins
from avdata.media.decoders import DECODERS
from avdata.pipeline.planning import PreparationPlan
from avdata.pipeline.row_spool import RowSpool
from avdata.pipeline.validation import SourceFile
from avdata.recipe import Recipe
from avdata.selection import QuarantinedClip
from avdata.shards.card import dataset_card
from avdata.shards.card_features import json_features
from avdata.shards.croissant import croissant
from avdata.shards.dataset_info import split_of
from avdata.shards.format import (
    FORMAT_VERSION,
    index_schema,
    parquet_bytes,
    quarantine_schema,
    write_table,
)
from avdata.shards.index_texts import count_groups
from avdata.shards.mel_sums import MelSums
from avdata.storage.atomic import atomic_write
from avdata.storage.hashing import hash_file
from avdata.storage.text_digests import TextDigests

if TYPE_CHECKING:
    import pyarrow as pa

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

_ROWS_PER_GROUP = 65_536


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
    spool: RowSpool,
    quarantined: Sequence[QuarantinedClip],
) -> dict[str, Any]:
    """Write the metadata files beside the shards.

    Args:
        root: local folder of the metadata files.
        provenance: plan with recipe, settings and manifest.
        entries: journal entries with the number of their rows, in the order of the plan.
        spool: the rows, and the sums over mels.
        quarantined: clips that failed the validation.

    Returns:
        The content of dataset.json.

    Raises:
        AvdataError: a file cannot be written.
    """
    lost = [asdict(clip) for clip in quarantined] + [row for entry in entries for row in entry["quarantine"]]
    lost.sort(key=lambda row: str(row["key"]))
    index, totals = root / "index.parquet", _Totals()
    write_table(index, _index_tables(entries, spool, totals), index_schema())
    atomic_write(root / "quarantine.parquet", parquet_bytes(lost, quarantine_schema()))
    groups, leaks = count_groups(root)
    info = {
        **_info(provenance, entries, lost, totals.train_mels),
        "splits": _splits(provenance.plan.recipe, entries, totals.labels, groups),
        "leaks": len(leaks),
        "flags": dict(sorted(totals.flags.items())),
        # `avdata verify` checks the index like a shard: it holds the offsets and checksums of samples.
        "index": {"bytes": index.stat().st_size, "sha256": hash_file(index)},
    }
    write_descriptions(root, info)
    return info


@dataclass
class _Totals:
    """Sums over the index: samples by split and label, flags, and mels of the split train."""

    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    train_mels: MelSums = field(default_factory=MelSums)


def _index_tables(
    entries: Sequence[Mapping[str, Any]], spool: RowSpool, totals: _Totals
) -> Iterator[pa.Table]:
    """Yield the rows of the index, by shard and offset, and add them to the totals."""
    import pyarrow as pa  # noqa: PLC0415

    pending: list[pa.Table] = []
    for entry in sorted(entries, key=lambda entry: str(entry["shard"])):
        if not entry["samples"]:
            continue
        rows, mels = spool.load(entry["shard"])
        totals.labels.update((row["split"], row["label_name"]) for row in rows)
        totals.flags.update(flag for row in rows for flag in row["flags"])
        if split_of(entry["shard"]) == "train":
            totals.train_mels.add(mels)
        pending.append(pa.Table.from_pylist(rows, schema=index_schema()))
        if sum(map(len, pending)) >= _ROWS_PER_GROUP:
            yield pa.concat_tables(pending).combine_chunks()
            pending = []
    if pending:
        yield pa.concat_tables(pending).combine_chunks()


def write_descriptions(root: Path, info: Mapping[str, Any]) -> None:
    """Write the files that dataset.json determines, and dataset.json last.

    Args:
        root: local folder of the metadata files.
        info: content of dataset.json.

    Raises:
        AvdataError: a file cannot be written.
    """
    atomic_write(root / "croissant.json", croissant(info, info["index"]["sha256"]))
    atomic_write(root / "README.md", dataset_card(info).encode())
    text = json.dumps(info, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(root / "dataset.json", f"{text}\n".encode())


def _info(
    provenance: Provenance,
    entries: Sequence[Mapping[str, Any]],
    lost: Sequence[Mapping[str, Any]],
    mel_sums: MelSums,
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
        "source": _source_facts(plan, entries),
        "license": manifest.license.model_dump() if manifest else None,
        "citation": manifest.citation if manifest else None,
        "ethics": manifest.ethics if manifest else None,
        "labels": list(recipe.labels),
        "label_orders": {name: list(order) for name, order in recipe.label_orders.items()},
        "background": recipe.background,
        "extras": json_features(clip.extras for clip in plan.iterate_clips()),
        "split_by": config.select.split_by,
        "splits": {},
        "leaks": 0,
        "quarantine": dict(sorted(Counter(str(row["reason"]) for row in lost).items())),
        "flags": {},
        "shape": _shape(config, has_frames=plan.has_frames),
        "mel_stats": mel_sums.statistics(),
        "mel_sums": mel_sums.to_json(),
        "tools": _tools(config),
        "machine": _machine(),
    }


def _source_facts(plan: PreparationPlan, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the manifest's sources, and how many files and lists of the source were verified with it."""
    manifest = plan.manifest
    lost = (row for entry in entries for row in entry["quarantine"])
    changed = {row["key"] for row in lost if row["reason"] == QuarantineReason.CHECKSUM}
    if manifest is None:
        return {"checksums": "off"}
    return {
        "checksums": "mock" if manifest.mock else "manifest",
        "homepage": redact_url(manifest.homepage),
        "commit": manifest.commit,
        "manifest": manifest.hash,
        "files": _verified_counts(plan.iterate_files(without=changed)),
        "lists": _verified_counts(plan.lists),
        "sources": [
            {
                "name": source.name,
                "urls": [redact_url(url) for url in source.urls],
                "checksum": source.checksum,
                "bytes": source.bytes,
                "checksum_per_file": source.table is not None or any("{path}" in url for url in source.urls),
            }
            for source in manifest.sources
        ],
    }


def _verified_counts(files: Iterable[SourceFile]) -> dict[str, Any]:
    """Return the number of files by the algorithm of their checksum, and of those without one.

    A file that several clips use counts once.
    """
    paths: defaultdict[str | None, TextDigests] = defaultdict(TextDigests)
    for file in files:
        paths[file.verified_by].add([file.path])
    counts = {name: digests.count() for name, digests in paths.items()}
    unverified = counts.pop(None, 0)
    return {
        "verified": {str(name): counts[name] for name in sorted(counts, key=str)},
        "unverified": unverified,
    }


def _splits(
    recipe: Recipe,
    entries: Sequence[Mapping[str, Any]],
    labels: Mapping[tuple[str, str], int],
    groups: Mapping[str, int],
) -> dict[str, dict[str, Any]]:
    splits: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if not entry["samples"]:
            continue
        split = splits.setdefault(split_of(entry["shard"]), {"samples": 0, "shards": []})
        split["samples"] += entry["samples"]
        split["shards"].append(
            {
                "path": entry["shard"],
                "samples": entry["samples"],
                "bytes": entry["bytes"],
                "sha256": entry["sha256"],
            }
        )
    for name, split in splits.items():
        split["labels"] = {label: labels.get((name, label), 0) for label in recipe.labels}
        split["groups"] = groups[name]
    return splits


def _shape(config: Config, *, has_frames: bool) -> dict[str, list[int] | None]:
    steps, size = config.video.num_frames, config.video.size
    return {
        "mel": [steps, feature_bins(config.audio), config.mel_columns],
        "frames": [steps, size, size, 3 if config.video.color == "rgb" else 1] if has_frames else None,
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
