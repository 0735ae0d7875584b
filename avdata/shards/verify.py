"""Check a prepared set against its own word: every checksum, count, shape, label and split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdata.errors import AvdataError
from avdata.progress import Progress
from avdata.shards.format import index_schema
from avdata.shards.reader import (
    decode_frames,
    decode_mel,
    read_index,
    read_info,
    read_members,
    read_quarantine,
)
from avdata.storage.hashing import hash_file


@dataclass(frozen=True)
class Problem:
    """Something that is not as the set says: where, and what."""

    where: str
    what: str


@dataclass(frozen=True)
class VerificationReport:
    """The outcome of a check."""

    root: Path
    samples: int
    bytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def verify(
    dataset: str | Path, *, progress: Progress = lambda stage, done, total: None
) -> VerificationReport:
    """Read every byte of a prepared set and compare it with dataset.json and the index.

    Args:
        dataset: the set's folder.
        progress: called with ("verify", done, total), in samples.

    Raises:
        AvdataError: the folder is not a prepared set at all, or its index cannot be read.
    """
    dataset = Path(dataset)
    info = read_info(dataset)
    index = read_index(dataset)
    if index.schema != index_schema():
        odd = sorted(set(index.schema.names) ^ set(index_schema().names)) or ["the types"]
        problem = Problem("index.parquet", f"its columns are not those of the format: {', '.join(odd)}")
        return VerificationReport(dataset, index.num_rows, 0, (problem,))
    rows = index.to_pylist()
    problems = [
        *_counts(info, rows),
        *_index(dataset, info),
        *_quarantine(dataset, info, rows),
        *_leaks(info, rows),
        *_unexpected_files(dataset, info),
    ]
    done = 0
    by_shard: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_shard[row["shard"]].append(row)
    shards = [shard for split in info["splits"].values() for shard in split["shards"]]
    progress("verify", 0, len(rows))
    for shard in shards:
        problems += _shard(dataset, info, shard, by_shard.get(shard["path"], []))
        done += shard["samples"]
        progress("verify", done, len(rows))
    return VerificationReport(dataset, len(rows), sum(shard["bytes"] for shard in shards), tuple(problems))


def _index(root: Path, info: Mapping[str, Any]) -> Iterator[Problem]:
    """Times, groups and flags of the index stand in no shard; who streams the set holds it against this."""
    said = info.get("index")
    if said and hash_file(root / "index.parquet") != said["sha256"]:
        yield Problem("index.parquet", "its checksum is not the one in dataset.json")


def _counts(info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    held = Counter(row["split"] for row in rows)
    for name, split in info["splits"].items():
        if held[name] != split["samples"]:
            yield Problem(name, f"dataset.json says {split['samples']} samples, the index has {held[name]}")
        labels = Counter(row["label_name"] for row in rows if row["split"] == name)
        for label, count in split["labels"].items():
            if labels[label] != count:
                yield Problem(name, f"dataset.json says {count} of {label}, the index has {labels[label]}")
    for name in held.keys() - info["splits"].keys():
        yield Problem("index.parquet", f"has {held[name]} samples of a split {name} that dataset.json lacks")
    for key, count in Counter(row["key"] for row in rows).items():
        if count > 1:
            yield Problem(key, f"is in the index {count} times")
    for row in rows:
        if not 0 <= row["label"] < len(info["labels"]) or info["labels"][row["label"]] != row["label_name"]:
            yield Problem(row["key"], f"label {row['label']} is not {row['label_name']} in dataset.json")
    if rows != sorted(rows, key=lambda row: (row["shard"], row["offset"])):
        yield Problem("index.parquet", "is not sorted by shard and offset")


def _quarantine(root: Path, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    lost = read_quarantine(root).to_pylist()
    counted = dict(sorted(Counter(row["reason"] for row in lost).items()))
    if counted != info["quarantine"]:
        yield Problem("quarantine.parquet", f"counts {counted}, dataset.json says {info['quarantine']}")
    for key in {row["key"] for row in lost} & {row["key"] for row in rows}:
        yield Problem(key, "is a sample and in quarantine at once")


def _leaks(info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Groups in several splits: only where the way of splitting is known to leak and leaks were kept."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[row["group"]].add(row["split"])
    leaking = sorted(group for group, held in splits.items() if len(held) > 1)
    if len(leaking) != info["leaks"]:
        shown = ", ".join(leaking[:5])
        yield Problem("splits", f"{len(leaking)} groups are in several splits ({shown}), not {info['leaks']}")
    dropped = info["config"]["select"]["group_leakage"] == "drop-train"
    if dropped and (left := [group for group in leaking if "train" in splits[group]]):
        yield Problem("splits", f"leaks were dropped, yet {left[0]} is in train and held out")


def _unexpected_files(root: Path, info: Mapping[str, Any]) -> Iterator[Problem]:
    known = {shard["path"] for split in info["splits"].values() for shard in split["shards"]}
    for path in sorted(root.glob("*/*.tar")):
        if path.relative_to(root).as_posix() not in known:
            yield Problem(path.relative_to(root).as_posix(), "is a shard that dataset.json does not know")


def _shard(
    root: Path, info: Mapping[str, Any], shard: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Iterator[Problem]:
    path = root / shard["path"]
    if not path.is_file():
        yield Problem(shard["path"], "is missing")
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        yield Problem(shard["path"], f"cannot be read: {error.strerror}")
        return
    if len(data) != shard["bytes"]:
        yield Problem(shard["path"], f"has {len(data):,} bytes, not {shard['bytes']:,}")
    elif hashlib.sha256(data).hexdigest() != shard["sha256"]:
        yield Problem(shard["path"], "its checksum is not the one in dataset.json")
    if len(rows) != shard["samples"]:
        yield Problem(shard["path"], f"the index has {len(rows)} samples of it, not {shard['samples']}")
    extensions: set[tuple[str, ...]] = set()
    at = 0
    for row in rows:
        if row["offset"] != at:
            yield Problem(row["key"], f"starts at byte {row['offset']} of {shard['path']}, not at {at}")
        at = row["offset"] + row["nbytes"]
        blob = memoryview(data)[row["offset"] : at]
        if hashlib.sha256(blob).hexdigest() != row["sha256"]:
            yield Problem(row["key"], f"its bytes in {shard['path']} are not those the index speaks of")
            continue
        yield from _sample(info, row, blob, extensions)
    if len(extensions) > 1:
        yield Problem(shard["path"], "its samples do not all have the same members")


def _sample(
    info: Mapping[str, Any], row: Mapping[str, Any], blob: memoryview, extensions: set[tuple[str, ...]]
) -> Iterator[Problem]:
    try:
        members = read_members(blob)
        extensions.add(tuple(members))
        mel = decode_mel(members)
        frames = decode_frames(members, info["shape"]["frames"][0])
        label, facts = int(bytes(members["cls"])), json.loads(bytes(members["json"]))
    except (AvdataError, ValueError, KeyError, RuntimeError) as error:
        yield Problem(row["key"], f"cannot be read: {error}")
        return
    for name, array in (("mel", mel), ("frames", frames)):
        if list(array.shape) != info["shape"][name]:
            yield Problem(row["key"], f"{name} has shape {list(array.shape)}, not {info['shape'][name]}")
    if mel.dtype != np.float16 or not np.isfinite(mel).all():
        yield Problem(row["key"], "mel is not finite float16")
    if label != row["label"] or facts["label_name"] != row["label_name"]:
        yield Problem(
            row["key"], f"its label {label} {facts['label_name']} is not the index's {row['label']}"
        )
    if facts["key"] != row["key"] or facts["split"] != row["split"]:
        yield Problem(row["key"], f"its JSON speaks of {facts['key']} in {facts['split']}")
