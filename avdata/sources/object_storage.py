"""Sources in object storage (`--source s3://bucket/raw`): local mirror of the files."""

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

_MTIME_TOLERANCE_S = 1e-3  # file systems round


def mirror_source(url: str) -> Path:
    """Download the files of a source that are missing or changed; return the local folder.

    The node that plans needs all files, because planning verifies each one against the manifest. A file is
    unchanged if its size and modification time are equal.

    Raises:
        SourceError: no files at the URL, or a file with an unsafe name.
        AvdataError: the URL cannot be read.
    """
    root = local_mirror_dir(url, "mirror")
    with storage_errors(url):
        files, base = open_filesystem(url.rstrip("/"))
        files.invalidate_cache()
        listing = files.find(base, detail=True)
        sizes = relative_sizes(base, listing)
        if not sizes:
            msg = f"No files at {redact_url(url)}."
            raise SourceError(msg, hint="Use --source with the URL of the folder of the dataset's files.")
        outside = next((name for name in sizes if not is_safe_relative_path(name)), None)
        if outside is not None:
            msg = f"Unsafe file name in {redact_url(url)}: {outside!r}."
            raise SourceError(msg, hint="Rename or remove the file.")
        key = find_backend(url).modified_key
        dates = {path[len(base) :].lstrip("/"): _modified_time(entry, key) for path, entry in listing.items()}
        outdated = [name for name, size in sizes.items() if not _is_current(root / name, size, dates[name])]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda name: _fetch(files, f"{base}/{name}", root / name, dates[name]), outdated))
    return root


def fetch_source_file(url: str, path: Path, size: int) -> None:
    """Download one file of a mirrored source, unless this node has it with the same size."""
    if _is_current(path, size, None):
        return
    with storage_errors(url):
        files, base = open_filesystem(url.rstrip("/"))
        # The planning node created the path; its AVDATA_CACHE may differ from this node's.
        mirrored = local_mirror_dir(url, "mirror").name
        inside = path.parts[path.parts.index(mirrored) + 1 :]
        _fetch(files, "/".join((base, *inside)), path)


def _modified_time(entry: Mapping[str, Any], key: str | None) -> float | None:
    """Return when a file was last changed, as POSIX time; None if the listing has no such time."""
    value = entry.get(key) if key else None
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else value


def _is_current(path: Path, size: int, changed: float | None) -> bool:
    try:
        local = path.stat()
    except FileNotFoundError:
        return False
    return local.st_size == size and (changed is None or abs(local.st_mtime - changed) < _MTIME_TOLERANCE_S)


def _fetch(files: Any, remote: str, path: Path, changed: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    files.get_file(remote, str(part))
    if changed is not None:
        # Lets the next run detect a replacement of the same size.
        os.utime(part, (changed, changed))
    part.replace(path)
