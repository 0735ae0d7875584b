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
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from avdata.errors import AvdataError, UnavailableError
from avdata.storage.atomic import open_partial
from avdata.storage.backends import find_backend, is_missing, is_refused, is_unreachable
from avdata.storage.paths import cache_dir
from avdata.storage.remote import open_filesystem, redact_url
from avdata.storage.retry import retry

CHUNK_BYTES = 4 << 20  # per request

CONNECTIONS = 8  # concurrent requests per shard

MAX_ATTEMPTS = 6

INITIAL_DELAY_S = 0.2  # doubled after each failure

DEFAULT_LIMIT_BYTES = 64 << 30

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

CHANGED_HINT = "the shard changed after it was indexed: open the dataset again, or publish it again"


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
        return self._path(sha256).exists()

    def fetch(self, url: str, sha256: str, nbytes: int) -> Path:
        """Return the path of a shard, fetched from `url` unless it is cached.

        Raises:
            AvdataError: The shard cannot be fetched or stored, or its checksum differs.
        """
        path = self._path(sha256)
        with self._storage_errors(url):
            if not self.touch(sha256, nbytes):
                self._fetch(url, path, sha256, nbytes)
        return path

    @contextmanager
    def _storage_errors(self, url: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            msg = f"Cannot store {redact_url(url)} in {self.folder}: {error.strerror or error}"
            hint = "free some space, or set cache= or AVDATA_CACHE to another folder"
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
        path = self._path(sha256)
        try:
            if path.stat().st_size != nbytes:
                return False
        except OSError:
            return False
        with suppress(OSError):  # the cache of another user, or a read-only one
            os.utime(path)
        return True

    def copy(self, url: str, path: Path) -> None:
        """Download a small file and replace `path` atomically.

        This is the first request to a server, so an unreachable server raises immediately.

        Raises:
            AvdataError: The file cannot be read or stored.
        """
        data = _retry(url, lambda: _opened(url)[0].cat_file(_opened(url)[1]), first=True)
        with self._storage_errors(url):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
            with open_partial(partial) as out:
                out.write(data)
            partial.replace(path)

    def read_range(self, url: str, offset: int, nbytes: int) -> bytes:
        """Return a byte range of a remote file, or the complete file if the server ignores ranges.

        Raises:
            AvdataError: The file cannot be read.
        """

        def read() -> bytes:
            files, path = _opened(url)
            data = bytes(files.cat_file(path, start=offset, end=offset + nbytes))
            if len(data) < nbytes:
                msg = f"received {len(data):,} of {nbytes:,} bytes"
                raise OSError(msg)
            return data

        return _retry(url, read)

    def _path(self, sha256: str) -> Path:
        return self.folder / "shards" / f"{sha256}.tar"

    def _download(self, url: str, partial: Path, nbytes: int) -> str:
        """Download a shard to `partial` with concurrent range requests; return its SHA-256."""
        digest = hashlib.sha256()
        try:
            with open_partial(partial) as out:
                with FileLock(partial.with_name("room.lock")):
                    self._evict(partial, nbytes)
                    out.truncate(nbytes)
                for data in self._read_chunks(url, nbytes):
                    digest.update(data)
                    out.write(data)
                out.truncate()
                out.flush()
                os.fsync(out.fileno())
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        return digest.hexdigest()

    def _read_chunks(self, url: str, nbytes: int) -> Iterator[bytes]:
        """Yield the bytes of a remote file in order."""
        starts = iter(range(0, nbytes, CHUNK_BYTES))
        pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="avdata-chunk")

        def request(start: int) -> Future[bytes]:
            return pool.submit(self.read_range, url, start, min(CHUNK_BYTES, nbytes - start))

        try:
            pending = deque(request(start) for start in islice(starts, CONNECTIONS))
            while pending:
                data = pending.popleft().result()
                if len(data) > CHUNK_BYTES:
                    # The server ignored the range and sent the complete file.
                    yield data
                    return
                start = next(starts, None)
                if start is not None:
                    pending.append(request(start))
                yield data
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

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


def _opened(url: str) -> tuple[Any, str]:
    files = _filesystem("/".join(url.split("/")[:3]), os.getpid())
    return files, files._strip_protocol(url)


@lru_cache(maxsize=16)
def _filesystem(base: str, process: int) -> Any:
    """Return the client of a server, one per process: connections are shared by threads but not forks."""
    try:
        return open_filesystem(base)[0]
    except ImportError as error:
        msg = f"Cannot open {redact_url(base)}: {error}"
        raise AvdataError(msg, hint=find_backend(base).install_command) from error


def _retry(url: str, action: Callable[[], _Result], *, first: bool = False) -> _Result:
    """Call `action`, retrying on network errors; missing files and refused access raise immediately.

    Args:
        url: The URL that `action` reads.
        action: Function without side effects.
        first: Raise immediately if the server is unreachable.
    """
    name = redact_url(url)

    def should_retry(error: Exception, attempt: int) -> bool:
        is_final = isinstance(error, AvdataError) or is_missing(error) or is_refused(error)
        return not is_final and not (first and is_unreachable(error)) and attempt < MAX_ATTEMPTS

    def warn(error: Exception, delay: float) -> None:
        _log.warning("Cannot read %s: %s; retrying", name, _describe(error))

    try:
        return retry(action, should_retry=should_retry, initial_delay_s=INITIAL_DELAY_S, on_retry=warn)
    except AvdataError:
        raise
    except Exception as error:
        if is_missing(error) or is_refused(error):
            msg = f"Cannot read {name}: {_describe(error)}"
            kind = AvdataError if is_missing(error) else UnavailableError
            raise kind(msg, hint="check the URL and your credentials") from error
        if first and is_unreachable(error):
            msg = f"Cannot reach {name}: {_describe(error)}"
            raise UnavailableError(msg, hint="check the network, the proxy and the URL") from error
        msg = f"Cannot read {name} after {MAX_ATTEMPTS} attempts: {_describe(error)}"
        hint = "check the connection and retry; complete shards are cached"
        raise UnavailableError(msg, hint=hint) from error


def _describe(error: Exception) -> str:
    """Return the error as text, without credentials: some filesystems' errors contain the URL."""
    return redact_url(f"{type(error).__name__}: {error}")


def _remove_stale(partial: Path) -> bool:
    """Remove the partial file of a process that no longer exists; return whether it was removed."""
    try:
        with FileLock(partial.with_suffix(".lock"), blocking=False):
            partial.unlink(missing_ok=True)
    except Timeout:
        return False
    return True
