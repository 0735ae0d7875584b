"""Sources in object storage, `--source s3://bucket/raw`: each node fetches the files that its clips need."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from avdata.errors import SourceError
from avdata.filesystem import filesystem_of, shown
from avdata.manifest import is_plain_path
from avdata.outstore import explained_store, local_copy, sizes_below

CONNECTIONS = 16


def mirror(url: str) -> Path:
    """A folder with all files of a source, fetched unless they are here in the same size.

    The survey proves every file against the manifest, so all of them are needed on the node that plans.

    Raises:
        SourceError: there is nothing at the URL.
        AvdataError: it cannot be read.
    """
    root = local_copy(url, "mirror")
    with explained_store(url):
        files, base = filesystem_of(url.rstrip("/"))
        files.invalidate_cache()
        wanted = sizes_below(base, files.find(base, detail=True))
        if not wanted:
            msg = f"there is nothing at the source {shown(url)}"
            raise SourceError(msg, hint="give the URL of the folder that holds the dataset's files")
        outside = next((name for name in wanted if not is_plain_path(name)), None)
        if outside is not None:
            msg = f"the source {shown(url)} holds {outside!r}, which is not the name of a file below it"
            raise SourceError(msg, hint="rename or remove it there")
        left = [name for name, size in wanted.items() if not _is_here(root / name, size)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda name: _fetch(files, f"{base}/{name}", root / name), left))
    return root


def bring(url: str, path: Path) -> None:
    """Fetch one file of a mirrored source, if this node does not have it yet."""
    if path.exists():
        return
    with explained_store(url):
        files, base = filesystem_of(url.rstrip("/"))
        # The path is the planning node's, whose AVDATA_CACHE may be another than this one's.
        mirrored = local_copy(url, "mirror").name
        inside = path.parts[path.parts.index(mirrored) + 1 :]
        _fetch(files, "/".join((base, *inside)), path)


def _is_here(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _fetch(files: object, remote: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    files.get_file(remote, str(part))  # type: ignore[attr-defined]
    part.replace(path)
