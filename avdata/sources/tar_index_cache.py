"""Cache of the indexes of tars in object storage, whose scan requests every header.

The index of a tar on disk is not cached: its headers are read at the speed of the disk, and a cached index
would hide later damage of the tar.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import zlib
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError, QuarantineReason
from avdata.sources.tar_index import TarGap, TarIndex, TarMember, index_tar
from avdata.storage.atomic import atomic_write
from avdata.storage.paths import cache_dir

log = logging.getLogger(__name__)


def index_stored_tar(path: Path, url: str, etag: str) -> TarIndex:
    """Return the index of a tar in object storage, from the cache if size and ETag are unchanged.

    Args:
        path: a file of the tar's size.
        url: URL of the tar.
        etag: version of the content by the listing; without one, nothing is cached.

    Raises:
        SourceError: see `index_tar`.
    """
    size = path.stat().st_size
    cache = cache_dir() / "tar-indexes" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json.z"
    index = _read(cache, path, url, [size, etag]) if etag else None
    if index is None:
        index = index_tar(path, url)
        if etag:
            _write(cache, index, [size, etag])
    return index


def _write(cache: Path, index: TarIndex, version: list[Any]) -> None:
    members = [(member.name, member.offset, member.size, _encode(member.content)) for member in index.members]
    gaps = [(gap.position, gap.reason, gap.detail) for gap in index.gaps]
    text = json.dumps({"version": version, "members": members, "gaps": gaps})
    try:
        atomic_write(cache, zlib.compress(text.encode(), 1))
    except AvdataError as error:
        log.warning("The index of a tar is not cached: %s", error.message)


def _read(cache: Path, path: Path, url: str, version: list[Any]) -> TarIndex | None:
    """Return the cached index; None if there is none of this version, or its file is damaged."""
    try:
        stored = json.loads(zlib.decompress(cache.read_bytes()))
    except (OSError, ValueError, zlib.error):
        return None
    if stored.get("version") != version:
        return None
    members = (
        TarMember(name, path, version[0], offset, size, url, _decode(content))
        for name, offset, size, content in stored["members"]
    )
    gaps = (TarGap(position, QuarantineReason(reason), detail) for position, reason, detail in stored["gaps"])
    return TarIndex(tuple(members), tuple(gaps))


def _encode(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _decode(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
