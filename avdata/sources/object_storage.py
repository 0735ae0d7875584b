"""Sources in object storage, `--source s3://bucket/raw`: each node fetches the files that its clips need."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from avdata.errors import SourceError
from avdata.storage.backends import find_backend
from avdata.storage.paths import is_safe_relative_path
from avdata.storage.remote import (
    local_mirror_dir,
    open_filesystem,
    redact_url,
    relative_sizes,
    storage_errors,
)

CONNECTIONS = 16

_MTIME_TOLERANCE_S = 1e-3  # seconds; file systems round


def mirror_source(url: str) -> Path:
    """A folder with all files of a source, fetched unless they are here, as large and as old as there.

    The survey proves every file against the manifest, so all of them are needed on the node that plans.

    Raises:
        SourceError: there is nothing at the URL.
        AvdataError: it cannot be read.
    """
    root = local_mirror_dir(url, "mirror")
    with storage_errors(url):
        files, base = open_filesystem(url.rstrip("/"))
        files.invalidate_cache()
        found = files.find(base, detail=True)
        wanted = relative_sizes(base, found)
        if not wanted:
            msg = f"there is nothing at the source {redact_url(url)}"
            raise SourceError(msg, hint="give the URL of the folder that holds the dataset's files")
        outside = next((name for name in wanted if not is_safe_relative_path(name)), None)
        if outside is not None:
            msg = f"the source {redact_url(url)} holds {outside!r}, which is not the name of a file below it"
            raise SourceError(msg, hint="rename or remove it there")
        key = find_backend(url).modified_key
        dates = {path[len(base) :].lstrip("/"): _modified_time(facts, key) for path, facts in found.items()}
        left = [name for name, size in wanted.items() if not _is_here(root / name, size, dates[name])]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda name: _fetch(files, f"{base}/{name}", root / name, dates[name]), left))
    return root


def fetch_source_file(url: str, path: Path, size: int) -> None:
    """Fetch one file of a mirrored source, if this node does not have it yet in this size."""
    if _is_here(path, size, None):
        return
    with storage_errors(url):
        files, base = open_filesystem(url.rstrip("/"))
        # The path is the planning node's, whose AVDATA_CACHE may be another than this one's.
        mirrored = local_mirror_dir(url, "mirror").name
        inside = path.parts[path.parts.index(mirrored) + 1 :]
        _fetch(files, "/".join((base, *inside)), path)


def _modified_time(facts: Mapping[str, Any], key: str | None) -> float | None:
    """Return when a file was last changed, as POSIX time; None if the listing has no such time."""
    value = facts.get(key) if key else None
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else value


def _is_here(path: Path, size: int, changed: float | None) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_size == size and (changed is None or abs(found.st_mtime - changed) < _MTIME_TOLERANCE_S)


def _fetch(files: Any, remote: str, path: Path, changed: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    files.get_file(remote, str(part))
    if changed is not None:
        # So that the next run sees whether it was replaced by another of the same size.
        os.utime(part, (changed, changed))
    part.replace(path)
