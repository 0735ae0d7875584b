"""Verification of a prepared dataset: every checksum, count, shape, label and split.

Shards are read where they lie, in a folder or behind a URL, one at a time.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.errors import AvdataError, error_message
from avdata.progress import Progress
from avdata.shards.dataset_files import DatasetFiles, open_dataset_files
from avdata.shards.members import (
    decode_frames,
    decode_label,
    decode_mel,
    decode_metadata,
    member_extensions,
    read_members,
)
from avdata.shards.provenance import describe_verification
from avdata.shards.verify_index import IndexCheck, Problem, rows_by_shard

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = ("key", "split", "offset", "nbytes", "label", "label_name", "sha256")


@dataclass(frozen=True, repr=False)
class VerificationReport:
    """Result of `verify`.

    Attributes:
        root: folder or URL of the dataset.
        samples: number of rows of the index.
        bytes: size of all shards.
        problems: all differences found, empty if the dataset is intact.
        provenance: how many source files were verified when the dataset was prepared.
    """

    root: Path | str
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


@dataclass(frozen=True)
class ShardCheck:
    """Verification of one shard, which any process that can read the dataset can run.

    Attributes:
        files: files of the dataset.
        number: position in dataset.json.
        info: `shape` and `config` of dataset.json.
        shard: entry of the shard in dataset.json.
        rows: the shard's rows of the index, as a compressed Arrow stream; empty if it has none. Pickled
            slices of a table would be as large as the table.
        failure: why the shard could not be verified; empty otherwise.
    """

    files: DatasetFiles
    number: int
    info: Mapping[str, Any]
    shard: Mapping[str, Any]
    rows: bytes
    failure: str = ""


ShardResult = tuple[int, int, list[Problem]]
"""Position in dataset.json, number of samples, and problems of a shard."""

RunChecks = Callable[[Iterable[ShardCheck]], Iterable[ShardResult]]


def run_shard_check(check: ShardCheck, report: Callable[[str], None]) -> ShardResult:
    """Verify a shard; see `avdata.pipeline.engines.base` for `report`."""
    if check.failure:
        problems = [Problem(check.shard["path"], f"could not be verified: {check.failure}")]
    else:
        report(check.shard["path"])
        problems = list(_check_shard(check.files, check.info, check.shard, _unpack(check.rows)))
        report("")
    return check.number, check.shard["samples"], problems


def exclude_shard(check: ShardCheck, item: str, reason: str, detail: str) -> ShardCheck:
    """Return the check of a shard that was lost with its worker."""
    return replace(check, failure=detail)


def run_here(checks: Iterable[ShardCheck]) -> Iterator[ShardResult]:
    """Run the checks in this process."""
    return (run_shard_check(check, lambda item: None) for check in checks)


def verify_dataset(
    dataset: str | Path | DatasetFiles,
    *,
    run: RunChecks = run_here,
    progress: Progress = lambda stage, done, total: None,
) -> VerificationReport:
    """Read every byte of a prepared dataset and compare it with dataset.json and the index.

    Args:
        dataset: folder, URL or files of the prepared dataset.
        run: runs the checks of the shards.
        progress: called with ("verify", done, total), in samples.

    Raises:
        AvdataError: this is not a prepared dataset, or its index cannot be read.
    """
    files = open_dataset_files(dataset, "index.parquet", "quarantine.parquet")
    info = files.info
    index = IndexCheck(files.root, info)
    problems = [*index.problems, *_check_unexpected_files(files)]
    shards = [shard for split in info["splits"].values() for shard in split["shards"]]
    done, found = 0, list[tuple[int, list[Problem]]]()
    progress("verify", 0, index.rows)
    for number, samples, bad in run(_shard_checks(files, shards, is_sorted=index.is_sorted)):
        found.append((number, bad))
        done += samples
        progress("verify", done, index.rows)
    for _, bad in sorted(found, key=lambda entry: entry[0]):
        problems += bad
    size = sum(shard["bytes"] for shard in shards)
    location = files.root if files.name == str(files.root) else files.name
    provenance = describe_verification(info["source"])
    return VerificationReport(location, index.rows, size, tuple(problems), provenance)


def _shard_checks(
    files: DatasetFiles, shards: Sequence[Mapping[str, Any]], *, is_sorted: bool
) -> Iterator[ShardCheck]:
    """Yield the checks of the shards in the order of the index, and of those without rows at the end."""
    info = {name: files.info[name] for name in ("shape", "config")}
    left = {shard["path"]: (number, shard) for number, shard in enumerate(shards)}
    for path, rows in rows_by_shard(files.root, list(_COLUMNS), is_sorted=is_sorted):
        if path in left:
            number, shard = left.pop(path)
            yield ShardCheck(files, number, info, shard, _pack(rows))
    for number, shard in left.values():
        yield ShardCheck(files, number, info, shard, b"")


def _pack(rows: pa.Table) -> bytes:
    import pyarrow as pa  # noqa: PLC0415

    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, rows.schema, options=options) as stream:
        stream.write_table(rows)
    return sink.getvalue()


def _unpack(rows: bytes) -> list[dict[str, Any]]:
    import pyarrow as pa  # noqa: PLC0415

    if not rows:
        return []
    with pa.ipc.open_stream(rows) as stream:
        return list(stream.read_all().to_pylist())


def _check_unexpected_files(files: DatasetFiles) -> Iterator[Problem]:
    listed = {shard["path"] for split in files.info["splits"].values() for shard in split["shards"]}
    for path in files.shard_facts() or ():
        if path not in listed:
            yield Problem(path, "is a shard that dataset.json does not list")


def _check_shard(
    files: DatasetFiles,
    info: Mapping[str, Any],
    shard: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> Iterator[Problem]:
    try:
        data = files.read(shard["path"])
    except FileNotFoundError:
        yield Problem(shard["path"], "is missing")
        return
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
    shape = info["shape"]
    try:
        members, tar_members = read_members(blob), _tar_members(blob)
        extensions.add(tuple(members))
        mel = decode_mel(members, shape["mel"])
        if shape["frames"]:
            decode_frames(members, shape["frames"])
        label, metadata = decode_label(members), decode_metadata(members, shape["mel"][0])
    except AvdataError as error:
        yield Problem(row["key"], f"cannot be read: {error_message(error)}")
        return
    if tar_members != [(f"{row['key']}.{extension}", len(view)) for extension, view in members.items()]:
        names = ", ".join(name for name, _ in tar_members)
        yield Problem(row["key"], f"has members {names} in the tar, {', '.join(members)} by the index")
    if (expected := member_extensions(info)) != tuple(members):
        yield Problem(row["key"], f"has members {', '.join(members)}, by the settings {', '.join(expected)}")
    if not np.isfinite(mel).all():
        yield Problem(row["key"], "mel is not finite")
    key, split, name = (metadata.get(field) for field in ("key", "split", "label_name"))
    if label != row["label"] or name != row["label_name"]:
        yield Problem(
            row["key"],
            f"has label {label} ({name}), the index has {row['label']} ({row['label_name']})",
        )
    if key != row["key"] or split != row["split"]:
        yield Problem(row["key"], f"has key {key} and split {split} in its JSON")


def _tar_members(blob: memoryview) -> list[tuple[str, int]]:
    """Return name and size of the regular files that other tar readers find in a sample's bytes.

    Raises:
        AvdataError: the first header is invalid.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(blob), mode="r:") as tar:
            return [(entry.name, entry.size) for entry in tar if entry.isreg()]
    except (tarfile.TarError, ValueError, OverflowError) as error:
        msg = f"Invalid tar header ({error})."
        raise AvdataError(msg) from error
