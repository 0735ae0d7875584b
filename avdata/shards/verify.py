"""Verification of a prepared dataset: every checksum, count, shape, label and split."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdata.errors import AvdataError, error_message
from avdata.progress import Progress
from avdata.shards.format import index_schema
from avdata.shards.provenance import describe_verification
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
    """A difference between the dataset's files and its metadata.

    Attributes:
        where: path of the file, split, or key of the sample.
        what: the difference.
    """

    where: str
    what: str


@dataclass(frozen=True, repr=False)
class VerificationReport:
    """Result of `verify`.

    Attributes:
        root: folder of the dataset.
        samples: number of rows of the index.
        bytes: size of all shards.
        problems: all differences found, empty if the dataset is intact.
        provenance: how many source files were verified when the dataset was prepared.
    """

    root: Path
    samples: int
    bytes: int
    problems: tuple[Problem, ...]
    provenance: str = ""

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def __repr__(self) -> str:
        """Return path, result, and numbers of samples and problems."""
        return (
            f"VerificationReport({str(self.root)!r}, ok={self.ok}, samples={self.samples},"
            f" problems={len(self.problems)})"
        )


def verify(
    dataset: str | Path, *, progress: Progress = lambda stage, done, total: None
) -> VerificationReport:
    """Read every byte of a prepared dataset and compare it with dataset.json and the index.

    Args:
        dataset: folder of the prepared dataset.
        progress: called with ("verify", done, total), in samples.

    Raises:
        AvdataError: the folder is not a prepared dataset, or its index cannot be read.
    """
    root = Path(dataset)
    info = read_info(root)
    index = read_index(root)
    if index.schema != index_schema():
        columns = sorted(set(index.schema.names) ^ set(index_schema().names)) or ["column types"]
        problem = Problem("index.parquet", f"schema does not match the format: {', '.join(columns)}")
        return VerificationReport(root, index.num_rows, 0, (problem,))
    rows = index.to_pylist()
    problems = [
        *_check_counts(info, rows),
        *_check_labels(info, rows),
        *_check_index(root, info, rows),
        *_check_quarantine(root, info, rows),
        *_check_leaks(info, rows),
        *_check_unexpected_files(root, info),
    ]
    done = 0
    rows_by_shard: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        rows_by_shard[row["shard"]].append(row)
    shards = [shard for split in info["splits"].values() for shard in split["shards"]]
    progress("verify", 0, len(rows))
    for shard in shards:
        problems += _check_shard(root, info, shard, rows_by_shard.get(shard["path"], []))
        done += shard["samples"]
        progress("verify", done, len(rows))
    size = sum(shard["bytes"] for shard in shards)
    return VerificationReport(
        root, len(rows), size, tuple(problems), provenance=describe_verification(info["source"])
    )


def _check_counts(info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    index_counts = Counter(row["split"] for row in rows)
    for name, split in info["splits"].items():
        if index_counts[name] != split["samples"]:
            yield Problem(
                name, f"the index has {index_counts[name]} samples, dataset.json has {split['samples']}"
            )
        labels = Counter(row["label_name"] for row in rows if row["split"] == name)
        for label, count in split["labels"].items():
            if labels[label] != count:
                yield Problem(
                    name, f"the index has {labels[label]} samples of {label}, dataset.json has {count}"
                )
    for name in index_counts.keys() - info["splits"].keys():
        yield Problem(
            "index.parquet", f"has {index_counts[name]} samples of split {name}, missing in dataset.json"
        )


def _check_labels(info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    labels = info["labels"]
    for row in rows:
        if not 0 <= row["label"] < len(labels) or labels[row["label"]] != row["label_name"]:
            yield Problem(row["key"], f"label {row['label']} is not {row['label_name']} in dataset.json")


def _check_index(root: Path, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    for key, count in Counter(row["key"] for row in rows).items():
        if count > 1:
            yield Problem(key, f"occurs {count} times in the index")
    if rows != sorted(rows, key=lambda row: (row["shard"], row["offset"])):
        yield Problem("index.parquet", "is not sorted by shard and offset")
    # No shard stores the times, groups and flags of the index: only this checksum covers them.
    entry = info.get("index")
    if entry and hash_file(root / "index.parquet") != entry["sha256"]:
        yield Problem("index.parquet", "checksum mismatch with dataset.json")


def _check_quarantine(
    root: Path, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Iterator[Problem]:
    quarantined = read_quarantine(root).to_pylist()
    counts = dict(sorted(Counter(row["reason"] for row in quarantined).items()))
    if counts != info["quarantine"]:
        yield Problem("quarantine.parquet", f"has counts {counts}, dataset.json has {info['quarantine']}")
    for key in {row["key"] for row in quarantined} & {row["key"] for row in rows}:
        yield Problem(key, "is both a sample and quarantined")


def _check_leaks(info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Compare groups in several splits with the number recorded in dataset.json."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[row["group"]].add(row["split"])
    leaking = sorted(group for group, names in splits.items() if len(names) > 1)
    if len(leaking) != info["leaks"]:
        examples = ", ".join(leaking[:5])
        yield Problem(
            "splits",
            f"{len(leaking)} groups are in several splits ({examples}), dataset.json has {info['leaks']}",
        )
    dropped = info["config"]["select"]["group_leakage"] == "drop-train"
    if dropped and (remaining := [group for group in leaking if "train" in splits[group]]):
        yield Problem("splits", f"group {remaining[0]} is in train and in another split, despite drop-train")


def _check_unexpected_files(root: Path, info: Mapping[str, Any]) -> Iterator[Problem]:
    listed = {shard["path"] for split in info["splits"].values() for shard in split["shards"]}
    for path in sorted(root.glob("*/*.tar")):
        if path.relative_to(root).as_posix() not in listed:
            yield Problem(path.relative_to(root).as_posix(), "is a shard that dataset.json does not list")


def _check_shard(
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
        yield Problem(shard["path"], "checksum mismatch with dataset.json")
    if len(rows) != shard["samples"]:
        yield Problem(
            shard["path"], f"has {len(rows)} samples in the index, {shard['samples']} in dataset.json"
        )
    extensions: set[tuple[str, ...]] = set()
    end = 0
    for row in rows:
        if row["offset"] != end:
            yield Problem(row["key"], f"starts at byte {row['offset']} of {shard['path']}, not at {end}")
        end = row["offset"] + row["nbytes"]
        blob = memoryview(data)[row["offset"] : end]
        if hashlib.sha256(blob).hexdigest() != row["sha256"]:
            yield Problem(row["key"], f"checksum mismatch in {shard['path']}")
            continue
        yield from _check_sample(info, row, blob, extensions)
    if len(extensions) > 1:
        yield Problem(shard["path"], "has samples with different sets of members")
    if any(memoryview(data)[end:]):
        yield Problem(shard["path"], "has data after its last sample in the index")


def _check_sample(
    info: Mapping[str, Any], row: Mapping[str, Any], blob: memoryview, extensions: set[tuple[str, ...]]
) -> Iterator[Problem]:
    try:
        members, tar_members = read_members(blob), _tar_members(blob)
        extensions.add(tuple(members))
        arrays = {"mel": decode_mel(members)}
        if info["shape"]["frames"]:
            arrays["frames"] = decode_frames(members, info["shape"]["frames"][0])
        label, metadata = int(bytes(members["cls"])), json.loads(bytes(members["json"]))
    except (AvdataError, ValueError, KeyError, RuntimeError) as error:
        yield Problem(row["key"], f"cannot be read: {error_message(error)}")
        return
    if tar_members != [(f"{row['key']}.{extension}", len(view)) for extension, view in members.items()]:
        names = ", ".join(name for name, _ in tar_members)
        yield Problem(row["key"], f"has members {names} in the tar, {', '.join(members)} by the index")
    if not info["shape"]["frames"] and any(name.startswith("frames.") for name in members):
        yield Problem(row["key"], "has frames, the dataset has none by dataset.json")
    for name, array in arrays.items():
        if list(array.shape) != info["shape"][name]:
            yield Problem(row["key"], f"{name} has shape {list(array.shape)}, not {info['shape'][name]}")
    mel = arrays["mel"]
    if mel.dtype != np.float16 or not np.isfinite(mel).all():
        yield Problem(row["key"], "mel is not finite float16")
    if label != row["label"] or metadata["label_name"] != row["label_name"]:
        yield Problem(
            row["key"],
            f"has label {label} ({metadata['label_name']}),"
            f" the index has {row['label']} ({row['label_name']})",
        )
    if metadata["key"] != row["key"] or metadata["split"] != row["split"]:
        yield Problem(row["key"], f"has key {metadata['key']} and split {metadata['split']} in its JSON")


def _tar_members(blob: memoryview) -> list[tuple[str, int]]:
    """Return name and size of the regular files that other tar readers find in a sample's bytes.

    Raises:
        AvdataError: the first header is invalid.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(blob), mode="r:") as tar:
            return [(entry.name, entry.size) for entry in tar if entry.isreg()]
    except tarfile.TarError as error:
        msg = f"Invalid tar header ({error})."
        raise AvdataError(msg) from error
