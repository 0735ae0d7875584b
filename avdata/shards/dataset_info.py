"""Parsing of dataset.json, and the one check of every file name that it or the index holds.

A published dataset.json is outside data: its names become paths that are written, read and deleted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from avdata.errors import AvdataError
from avdata.shards.format import FORMAT_VERSION

SPLITS = ("train", "val", "test")

_SHARD_PATH = re.compile(rf"({'|'.join(SPLITS)})/[A-Za-z0-9._-]+\.tar")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

_SHA256 = re.compile(r"[0-9a-f]{64}")

_DAMAGED_HINT = "Prepare the dataset again with --overwrite, or download it again."

_UNSAFE_HINT = "Do not use this dataset: it was changed after its preparation."


def parse_info(data: bytes, where: object) -> dict[str, Any]:
    """Return the content of a dataset.json.

    Args:
        data: bytes of the file.
        where: the file, for messages.

    Raises:
        AvdataError: the bytes are not JSON or of another format version, or a file name is unsafe.
    """
    try:
        info = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = f"{where} cannot be read ({error})"
        raise AvdataError(msg, hint=_DAMAGED_HINT) from error
    version = info.get("format") if isinstance(info, dict) else None
    if version != FORMAT_VERSION:
        msg = f"Unsupported format version in {where}: {version!r}. Supported: {FORMAT_VERSION}."
        raise AvdataError(msg, hint="Install the avdata version that wrote it, or prepare the dataset again.")
    _check_names(info, where)
    return dict(info)


def check_shard_paths(paths: Iterable[object], where: object) -> None:
    """Check that every path is `SPLIT/NAME.tar`.

    >>> check_shard_paths(["train/cremad-train-00000-of-00012.tar"], "index.parquet")

    Args:
        paths: paths of shards.
        where: the file that holds them, for messages.

    Raises:
        AvdataError: a path is another one.
    """
    for path in paths:
        if not isinstance(path, str) or not _SHARD_PATH.fullmatch(path):
            msg = f"Unsafe shard path in {where}: {str(path)!a}. Allowed: SPLIT/NAME.tar."
            raise AvdataError(msg, hint=_UNSAFE_HINT)


def _check_names(info: Mapping[str, Any], where: object) -> None:
    """Check what becomes part of a path: dataset name, split names, shard paths, checksums of shards."""
    name, splits = info.get("name"), info.get("splits")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = f"Unsafe dataset name in {where}: {str(name)!a}."
        raise AvdataError(msg, hint=_UNSAFE_HINT)
    if not isinstance(splits, dict) or not set(splits) <= set(SPLITS):
        msg = f"Invalid splits in {where}. Allowed: {', '.join(SPLITS)}."
        raise AvdataError(msg, hint=_DAMAGED_HINT)
    for split, content in splits.items():
        shards = content.get("shards") if isinstance(content, dict) else None
        if not isinstance(shards, list) or not all(_is_entry(shard) for shard in shards):
            msg = f"Invalid list of shards of split {split} in {where}."
            raise AvdataError(msg, hint=_DAMAGED_HINT)
        check_shard_paths((shard["path"] for shard in shards), where)
        if misplaced := [shard["path"] for shard in shards if not shard["path"].startswith(f"{split}/")]:
            msg = f"Unsafe shard path in {where}: {misplaced[0]} is listed in split {split}."
            raise AvdataError(msg, hint=_UNSAFE_HINT)


def _is_entry(shard: object) -> bool:
    """Return whether an entry has a path, a checksum that can name a file, and sizes."""
    return (
        isinstance(shard, dict)
        and "path" in shard
        and isinstance(sha256 := shard.get("sha256"), str)
        and _SHA256.fullmatch(sha256) is not None
        and all(type(shard.get(size)) is int and shard[size] >= 0 for size in ("bytes", "samples"))
    )
