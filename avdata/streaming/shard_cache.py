"""Disk cache of remote shards, shared by the processes of a node; evicts the least recently used.

The SHA-256 of a shard is its file name, so datasets do not collide and a new version is a new file. The
fetching process locks `SHA.lock`; the kernel releases the lock when the process dies. The data is written to
`SHA.part` and renamed to `SHA.tar` when it is complete and its checksum verified. `SHA.part` has the final
size from the start, so that concurrent fetches count the space they will need.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from avdata.errors import AvdataError, UnavailableError, redact_url
from avdata.storage.atomic import full_disk_error, open_partial
from avdata.storage.paths import cache_dir
from avdata.storage.remote_files import read_chunks, read_file

DEFAULT_LIMIT_BYTES = 64 << 30

_log = logging.getLogger(__name__)

CHANGED_HINT = "The shard changed after it was indexed: open the dataset again, or publish it again"


class ShardCache:
    """Folder of shards with a size limit, which only concurrent fetches may exceed.

    Args:
        folder: The folder (default: below `AVDATA_CACHE`).
        limit: Size limit in bytes.
    """

    def __init__(self, folder: str | Path | None = None, limit: int = DEFAULT_LIMIT_BYTES) -> None:
        self._folder = folder
        self.limit = limit

    @cached_property
    def folder(self) -> Path:
        """The folder; found on first use, since a local dataset needs none."""
        return cache_dir() / "stream" if self._folder is None else Path(self._folder)

    def __contains__(self, sha256: str) -> bool:
        """Return whether a shard is cached."""
        return self.path(sha256).exists()

    def fetch(self, url: str, sha256: str, nbytes: int) -> Path:
        """Return the path of a shard, fetched from `url` unless it is cached.

        Raises:
            AvdataError: The shard cannot be fetched or stored, or its checksum differs.
        """
        path = self.path(sha256)
        with self._storage_errors(url, nbytes):
            if not self.touch(sha256, nbytes):
                self._fetch(url, path, sha256, nbytes)
        return path

    @contextmanager
    def _storage_errors(self, url: str, nbytes: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = full_disk_error(error, self.folder, nbytes)
            reason = full.message if full else error.strerror or error
            msg = f"Cannot store {redact_url(url)} in {self.folder}: {reason}"
            hint = "Free some space, or set cache= or AVDATA_CACHE to another folder"
            raise UnavailableError(msg, hint=hint) from error

    def _fetch(self, url: str, path: Path, sha256: str, nbytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            # Another process may have fetched it while this one waited for the lock.
            if not self.touch(sha256, nbytes):
                partial = path.with_suffix(".part")
                digest = self._download(url, partial, nbytes)
                if digest != sha256:
                    _log.warning("Checksum mismatch of %s; fetching it again", redact_url(url))
                    digest = self._download(url, partial, nbytes)
                if digest != sha256:
                    partial.unlink()
                    msg = f"Checksum mismatch of {redact_url(url)}: {digest}, expected {sha256}."
                    raise AvdataError(msg, hint=CHANGED_HINT)
                partial.replace(path)

    def touch(self, sha256: str, nbytes: int) -> bool:
        """Return whether a shard is cached and complete; if so, mark it as used now."""
        path = self.path(sha256)
        try:
            if path.stat().st_size != nbytes:
                return False
        except OSError:
            return False
        with suppress(OSError):  # the cache of another user, or a read-only one
            os.utime(path)
        return True

    def discard(self, sha256: str) -> None:
        """Remove a shard from the cache."""
        with suppress(OSError):
            self.path(sha256).unlink(missing_ok=True)

    def copy(self, url: str, path: Path) -> None:
        """Download a small file and replace `path` atomically.

        Raises:
            AvdataError: The file cannot be read or stored.
        """
        data = read_file(url)
        with self._storage_errors(url, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
            with open_partial(partial) as out:
                out.write(data)
            partial.replace(path)

    def path(self, sha256: str) -> Path:
        """Return the path of a shard, which need not be cached."""
        return self.folder / "shards" / f"{sha256}.tar"

    def _download(self, url: str, partial: Path, nbytes: int) -> str:
        """Download a shard to `partial` with concurrent range requests; return its SHA-256."""
        digest = hashlib.sha256()
        try:
            with open_partial(partial) as out:
                with FileLock(partial.with_name("room.lock")):
                    self._evict(partial, nbytes)
                    out.truncate(nbytes)
                for data in read_chunks(url, nbytes):
                    digest.update(data)
                    out.write(data)
                out.truncate()
                out.flush()
                os.fsync(out.fileno())
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        return digest.hexdigest()

    def _evict(self, own: Path, nbytes: int) -> None:
        """Remove partial files of killed processes and the least recently used shards.

        A shard that a process has mapped stays readable there.
        """
        shards, total = [], nbytes
        for path in own.parent.iterdir():
            is_complete = path.suffix == ".tar"
            if not is_complete and (path.suffix != ".part" or path == own or _remove_stale(path)):
                continue
            with suppress(FileNotFoundError):
                stat = path.stat()
                total += stat.st_size
                shards += [(stat.st_mtime_ns, stat.st_size, path)] if is_complete else []
        for _, size, path in sorted(shards):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size


def _remove_stale(partial: Path) -> bool:
    """Remove the partial file of a process that no longer exists; return whether it was removed."""
    try:
        with FileLock(partial.with_suffix(".lock"), blocking=False):
            partial.unlink(missing_ok=True)
    except Timeout:
        return False
    return True
