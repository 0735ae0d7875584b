"""Remote shards on this machine's disk: fetched once a node, proven on arrival, the least used dropped first.

A shard's name in the cache is its SHA-256, so that two sets cannot collide and a new version is a new file.
The process that fetches holds a lock on `SHA.lock`, which the kernel lets go when the process dies; the data
becomes `SHA.tar` only when it is complete and proven. `SHA.part` has the length of the whole shard from the
start, so that fetches side by side see what each of them will take.
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
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from avdata.errors import AvdataError, UnavailableError
from avdata.storage.backends import find_backend, is_missing, is_refused, is_unreachable
from avdata.storage.paths import cache_dir
from avdata.storage.remote import open_filesystem, redact_url
from avdata.storage.retry import retry

CHUNK_BYTES = 4 << 20  # bytes of one request

CONNECTIONS = 8  # requests of one shard at a time

MAX_ATTEMPTS = 6

INITIAL_DELAY_S = 0.2  # seconds; doubled after each failure

DEFAULT_LIMIT_BYTES = 64 << 30  # bytes

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

CHANGED_HINT = "the shard was changed after it was indexed: open the set again, or else publish it again"


class ShardCache:
    """A folder of shards that holds no more than `limit` bytes, or what is on its way at one time."""

    def __init__(self, folder: str | Path | None = None, limit: int = DEFAULT_LIMIT_BYTES) -> None:
        self.folder = cache_dir() / "stream" if folder is None else Path(folder)
        self.limit = limit

    def __contains__(self, sha256: str) -> bool:
        """Whether a shard is here."""
        return self._path(sha256).exists()

    def fetch(self, url: str, sha256: str, nbytes: int) -> Path:
        """The path of a shard; fetched from `url` unless it is here.

        Raises:
            AvdataError: it cannot be fetched or stored, or what arrives is not what the checksum says.
        """
        path = self._path(sha256)
        with self._lock_path(url):
            if not self.touch(sha256, nbytes):
                self._fetch(url, path, sha256, nbytes)
        return path

    @contextmanager
    def _lock_path(self, url: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            msg = f"{redact_url(url)} cannot be kept in {self.folder} ({error.strerror or error})"
            hint = "free some space, or give another cache= or AVDATA_CACHE"
            raise UnavailableError(msg, hint=hint) from error

    def _fetch(self, url: str, path: Path, sha256: str, nbytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            # Another process may have fetched it while this one waited.
            if not self.touch(sha256, nbytes):
                part = path.with_suffix(".part")
                found = self._download(url, part, nbytes)
                if found != sha256:
                    _log.warning("%s is not what dataset.json says; fetching it again", redact_url(url))
                    found = self._download(url, part, nbytes)
                if found != sha256:
                    part.unlink()
                    msg = (
                        f"{redact_url(url)} is not the shard of dataset.json: checksum {found}, not {sha256}"
                    )
                    raise AvdataError(msg, hint=CHANGED_HINT)
                part.replace(path)

    def touch(self, sha256: str, nbytes: int) -> bool:
        """Whether a shard is here and whole; if so it counts as used now."""
        path = self._path(sha256)
        try:
            if path.stat().st_size != nbytes:
                return False
        except OSError:
            return False
        with suppress(OSError):  # in another user's cache, or one that is read-only
            os.utime(path)
        return True

    def copy(self, url: str, path: Path) -> None:
        """A small file as it is now, put in place at once.

        It is the first that is asked of a server: where there is no way to it, that is said at once.

        Raises:
            AvdataError: it cannot be read, or not be stored.
        """
        data = _retry(url, lambda: _opened(url)[0].cat_file(_opened(url)[1]), first=True)
        with self._lock_path(url):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
            part.write_bytes(data)
            part.replace(path)

    def read_range(self, url: str, offset: int, nbytes: int) -> bytes:
        """Some bytes of a remote file; all of it where the server knows no ranges.

        Raises:
            AvdataError: it cannot be read.
        """

        def read() -> bytes:
            files, path = _opened(url)
            data = bytes(files.cat_file(path, start=offset, end=offset + nbytes))
            if len(data) < nbytes:
                msg = f"{len(data):,} of {nbytes:,} bytes arrived"
                raise OSError(msg)
            return data

        return _retry(url, read)

    def _path(self, sha256: str) -> Path:
        return self.folder / "shards" / f"{sha256}.tar"

    def _download(self, url: str, part: Path, nbytes: int) -> str:
        """Write a remote shard to its `.part`, several pieces on their way at a time; its SHA-256."""
        digest = hashlib.sha256()
        try:
            with part.open("wb") as out:
                with FileLock(part.with_name("room.lock")):
                    self._make_room(part, nbytes)
                    out.truncate(nbytes)
                for data in self._pieces(url, nbytes):
                    digest.update(data)
                    out.write(data)
                out.truncate()
                out.flush()
                os.fsync(out.fileno())
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return digest.hexdigest()

    def _pieces(self, url: str, nbytes: int) -> Iterator[bytes]:
        """The bytes of a remote file in order."""
        starts = iter(range(0, nbytes, CHUNK_BYTES))
        pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="avdata-piece")

        def asked(start: int) -> Future[bytes]:
            return pool.submit(self.read_range, url, start, min(CHUNK_BYTES, nbytes - start))

        try:
            ahead = deque(asked(start) for start in islice(starts, CONNECTIONS))
            while ahead:
                data = ahead.popleft().result()
                if len(data) > CHUNK_BYTES:
                    # The server knows no ranges and sent everything.
                    yield data
                    return
                following = next(starts, None)
                if following is not None:
                    ahead.append(asked(following))
                yield data
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _make_room(self, own: Path, nbytes: int) -> None:
        """Drop what killed fetches left, and the shards used longest ago; who has one mapped keeps it."""
        held, total = [], nbytes
        for path in own.parent.iterdir():
            fetched = path.suffix == ".tar"
            if not fetched and (path.suffix != ".part" or path == own or _remove_stale(path)):
                continue
            with suppress(FileNotFoundError):
                found = path.stat()
                total += found.st_size
                held += [(found.st_mtime_ns, found.st_size, path)] if fetched else []
        for _, size, path in sorted(held):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size


def _opened(url: str) -> tuple[Any, str]:
    files = _filesystem("/".join(url.split("/")[:3]), os.getpid())
    return files, files._strip_protocol(url)


@lru_cache(maxsize=16)
def _filesystem(base: str, process: int) -> Any:
    """One client a server and process: its connections serve all threads, and none crosses a fork."""
    try:
        return open_filesystem(base)[0]
    except ImportError as error:
        msg = f"{redact_url(base)} cannot be opened: {error}"
        raise AvdataError(msg, hint=find_backend(base).install_command) from error


def _retry(url: str, action: Callable[[], _Result], *, first: bool = False) -> _Result:
    """The action's result, after several attempts; what is missing or refused is not asked for again.

    A server that cannot be reached is waited for, unless this is the first that is asked of it.
    """
    place = redact_url(url)

    def should_retry(error: Exception, attempt: int) -> bool:
        lasting = isinstance(error, AvdataError) or is_missing(error) or is_refused(error)
        return not lasting and not (first and is_unreachable(error)) and attempt < MAX_ATTEMPTS

    def warn(error: Exception, delay: float) -> None:
        _log.warning("%s: %s; trying again", place, _describe(error))

    try:
        return retry(action, should_retry=should_retry, initial_delay_s=INITIAL_DELAY_S, on_retry=warn)
    except AvdataError:
        raise
    except Exception as error:
        if is_missing(error) or is_refused(error):
            msg = f"{place} cannot be read ({_describe(error)})"
            kind = AvdataError if is_missing(error) else UnavailableError
            raise kind(msg, hint="check the URL and your credentials for it") from error
        if first and is_unreachable(error):
            msg = f"{place} cannot be reached ({_describe(error)})"
            raise UnavailableError(msg, hint="check the network, its proxy, and the URL") from error
        msg = f"{place} cannot be read after {MAX_ATTEMPTS} attempts ({_describe(error)})"
        hint = "check the connection; whole shards that were fetched are kept"
        raise UnavailableError(msg, hint=hint) from error


def _describe(error: Exception) -> str:
    """Every file system has exceptions of its own for a lost connection; some hold the URL."""
    return redact_url(f"{type(error).__name__}: {error}")


def _remove_stale(part: Path) -> bool:
    """Remove what a fetch has left that is no more; whether it is no more."""
    try:
        with FileLock(part.with_suffix(".lock"), blocking=False):
            part.unlink(missing_ok=True)
    except Timeout:
        return False
    return True
