"""Remote shards on this machine's disk: fetched once a node, proven on arrival, the least used dropped first.

A shard's name in the cache is its SHA-256, so that two sets cannot collide and a new version is a new file.
The process that fetches holds a lock on `SHA.lock`, which the kernel lets go when the process dies; the data
becomes `SHA.tar` only when it is complete and proven.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from avdata.cache import cache_root
from avdata.errors import AvdataError

CHUNK = 4 << 20
ATTEMPTS = 5
FIRST_WAIT = 0.2  # seconds; doubled after each failure
LIMIT = 64 << 30  # bytes

_log = logging.getLogger(__name__)
_Made = TypeVar("_Made")


class ShardCache:
    """A folder of shards that never holds much more than `limit` bytes."""

    def __init__(self, folder: str | Path | None = None, limit: int = LIMIT) -> None:
        self.folder = cache_root() / "stream" if folder is None else Path(folder)
        self.limit = limit

    def holds(self, sha256: str) -> bool:
        """Whether a shard is here."""
        return self._path(sha256).exists()

    def fetch(self, url: str, sha256: str, nbytes: int) -> Path:
        """The path of a shard; fetched from `url` unless it is here.

        Raises:
            AvdataError: it cannot be fetched, or what arrives is not what the checksum says.
        """
        path = self._path(sha256)
        if self._fresh(path, nbytes):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            # Another process may have fetched it while this one waited.
            if not self._fresh(path, nbytes):
                self._make_room(nbytes)
                _tried(url, lambda: self._arrived(url, path, sha256, nbytes))
        return path

    def copy(self, url: str, path: Path) -> None:
        """A small file as it is now, put in place at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        data = _tried(url, lambda: _opened(url)[0].cat_file(_opened(url)[1]))
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)

    def read_range(self, url: str, offset: int, nbytes: int) -> bytes:
        """Some bytes of a remote file."""

        def read() -> bytes:
            files, path = _opened(url)
            data = bytes(files.cat_file(path, start=offset, end=offset + nbytes))
            if len(data) != nbytes:
                msg = f"{len(data)} of {nbytes} bytes arrived"
                raise OSError(msg)
            return data

        return _tried(url, read)

    def _path(self, sha256: str) -> Path:
        return self.folder / "shards" / f"{sha256}.tar"

    def _fresh(self, path: Path, nbytes: int) -> bool:
        """Whether a shard is whole; if so it counts as used now."""
        try:
            if path.stat().st_size != nbytes:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _arrived(self, url: str, path: Path, sha256: str, nbytes: int) -> None:
        part = path.with_suffix(".part")
        digest = hashlib.sha256()
        files, remote = _opened(url)
        with (
            files.open(remote, "rb", block_size=CHUNK, cache_type="readahead") as source,
            part.open("wb") as out,
        ):
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != sha256:
            found = part.stat().st_size
            part.unlink()
            msg = f"{found:,} bytes arrived whose checksum is not that of dataset.json ({nbytes:,} bytes)"
            raise OSError(msg)
        part.replace(path)

    def _make_room(self, nbytes: int) -> None:
        """Drop the shards used longest ago; one that is mapped stays readable to who has it."""
        held = []
        for path in self._path("x").parent.glob("*.tar"):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            held.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in held) + nbytes
        for _, size, path in sorted(held):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size


def _opened(url: str) -> tuple[Any, str]:
    import fsspec  # noqa: PLC0415

    files, path = fsspec.core.url_to_fs(url)
    return files, path


def _tried(url: str, action: Callable[[], _Made]) -> _Made:
    """The action's result, after several attempts; what is missing or refused is not asked for again."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except (FileNotFoundError, PermissionError, ImportError) as error:
            msg = f"{url} cannot be read ({error})"
            raise AvdataError(msg, hint="check the URL and your credentials for it") from error
        except Exception as error:
            # Every filesystem has exceptions of its own for a lost connection.
            if attempt == ATTEMPTS - 1:
                msg = f"{url} cannot be read after {ATTEMPTS} attempts ({type(error).__name__}: {error})"
                raise AvdataError(msg, hint="check the connection; what was fetched is kept") from error
            _log.warning("%s: %s; trying again", url, error)
            time.sleep(FIRST_WAIT * 2**attempt)
    raise AssertionError


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
