"""Read files of remote storage by URL, with retries, byte ranges and listings."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from avdata.errors import AvdataError, UnavailableError, UsageError, redact_url
from avdata.interrupts import Terminated, wait_for
from avdata.storage.access_hints import access_hint
from avdata.storage.backends import (
    check_has_folders,
    find_backend,
    is_invalid,
    is_missing,
    is_refused,
    is_unreachable,
)
from avdata.storage.live_objects import LiveObjects
from avdata.storage.remote import open_filesystem, pin_commit, relative_path, storage_errors
from avdata.storage.retry import retry

CHUNK_BYTES = 4 << 20  # per request

CONNECTIONS = 8  # concurrent requests per file

MAX_ATTEMPTS = 6

INITIAL_DELAY_S = 0.2  # doubled after each failure

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class MissingFileError(AvdataError):
    """Error of a remote file that does not exist."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """File in a listing.

    Attributes:
        bytes: size.
        modified: modification time as POSIX time; None if the listing has none.
        etag: version of the content as the server states it; empty if the listing has none.
    """

    bytes: int
    modified: float | None = None
    etag: str = ""


def pin_url(url: str) -> str:
    """Return the URL of a dataset at its present commit; see `pin_commit`.

    Raises:
        AvdataError: the repository does not exist or cannot be reached.
    """
    return retry_remote(url, lambda: pin_commit(url, open_remote(url)[0]), first=True)


def read_file(url: str) -> bytes:
    """Return a small file.

    This is the first request to most servers, so an unreachable server raises immediately.

    Raises:
        AvdataError: the file cannot be read.
    """

    def read() -> bytes:
        files, path = open_remote(url)
        return bytes(files.cat_file(path))

    return retry_remote(url, read, first=True)


_reads: LiveObjects[Future[Any]] = LiveObjects()

_canceled: LiveObjects[threading.Thread] = LiveObjects()


def cancel_reads() -> None:
    """End the reads of all threads of avdata with an error, and let these threads read no more.

    For Ctrl-C: Python waits for the threads at its end, and a server that stalls keeps them for minutes.
    """
    _canceled.update(thread for thread in threading.enumerate() if thread.name.startswith("avdata"))
    for read in list(_reads):
        read.cancel()


def _check_canceled(thread: threading.Thread) -> None:
    if thread in _canceled:
        msg = "Reading was interrupted."
        raise UnavailableError(msg)


def _cat_file(files: Any, path: str, start: int, end: int, thread: threading.Thread) -> bytes:
    """Return a range of a file, or raise the error of `cancel_reads`, which only async clients allow."""
    _check_canceled(thread)
    if not getattr(files, "async_impl", False):
        return bytes(files.cat_file(path, start=start, end=end))
    read = asyncio.run_coroutine_threadsafe(files._cat_file(path, start=start, end=end), files.loop)
    _reads.add(read)
    try:
        _check_canceled(thread)  # again: `cancel_reads` may have run before it was added
        return bytes(wait_for(read))
    except CancelledError as error:
        msg = "Reading was interrupted."
        raise UnavailableError(msg) from error
    finally:
        read.cancel()
        _reads.discard(read)


def read_range(url: str, offset: int, nbytes: int, *, thread: threading.Thread | None = None) -> bytes:
    """Return a byte range of a remote file, or the complete file if the server ignores ranges.

    Args:
        url: URL of the file.
        offset: first byte.
        nbytes: number of bytes.
        thread: thread that waits for the range (default: this one); see `cancel_reads`.

    Raises:
        AvdataError: the file cannot be read.
    """
    owner = thread or threading.current_thread()

    def read() -> bytes:
        files, path = open_remote(url)
        data = _cat_file(files, path, offset, offset + nbytes, owner)
        if len(data) < nbytes:
            msg = f"received {len(data):,} of {nbytes:,} bytes"
            raise OSError(msg)
        return data

    return retry_remote(url, read)


def read_chunks(url: str, nbytes: int) -> Iterator[bytes]:
    """Yield the bytes of a remote file in order, read with concurrent range requests.

    Args:
        url: URL of the file.
        nbytes: its size.
    """
    owner = threading.current_thread()
    starts = iter(range(0, nbytes, CHUNK_BYTES))
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="avdata-chunk")

    def request(start: int) -> Future[bytes]:
        return pool.submit(read_range, url, start, min(CHUNK_BYTES, nbytes - start), thread=owner)

    try:
        pending = deque(request(start) for start in islice(starts, CONNECTIONS))
        while pending:
            data = wait_for(pending.popleft())
            if len(data) > CHUNK_BYTES:
                # The server ignored the range and sent the complete file.
                yield data
                return
            start = next(starts, None)
            if start is not None:
                pending.append(request(start))
            yield data
    except (KeyboardInterrupt, Terminated):
        cancel_reads()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class RangeReader(io.RawIOBase):
    """Remote file of known size as a stream that requests a range for each read.

    Args:
        url: URL of the file.
        nbytes: its size.
    """

    def __init__(self, url: str, nbytes: int) -> None:
        self._url, self._size, self._position = url, nbytes, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Change the position, without a request."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence, self._size)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes of the file into a buffer; return their number."""
        start, count = self._position, min(len(buffer), max(self._size - self._position, 0))
        if count:
            data = read_range(self._url, start, count)
            # A server that ignored the range sent the complete file.
            buffer[:count] = data if len(data) == count else data[start : start + count]
        self._position += count
        return count


def file_size(url: str) -> int:
    """Return the size of a remote file in bytes.

    Raises:
        AvdataError: the file does not exist, or the server does not state its size.
    """

    def read() -> int:
        files, path = open_remote(url)
        return int(files.info(path)["size"])

    return retry_remote(url, read)


def list_files(url: str) -> dict[str, RemoteFile]:
    """Return the files below a URL by their path below it; empty if nothing is there.

    Web consoles mark an empty folder by an object whose name ends in a slash. It is left out.

    Raises:
        UsageError: the URL is that of a web server.
        AvdataError: the URL cannot be listed completely.
    """
    check_has_folders(url)

    def read() -> tuple[str, Mapping[str, Mapping[str, Any]]]:
        files, base = open_remote(url.rstrip("/"))
        files.invalidate_cache()  # it may lack the files of other machines
        return base, _find(files, base)

    base, listing = retry_remote(url, read, first=True)
    key = find_backend(url).modified_key
    return {
        name: RemoteFile(int(facts["size"]), _modified_time(facts, key), _etag(facts))
        for path, facts in listing.items()
        if (name := relative_path(base, path))
    }


def _find(files: Any, base: str) -> dict[str, Mapping[str, Any]]:
    """Return the facts of all files below a folder by path; empty if there is no such folder.

    The clients of object stores list all names at once. Of the others, which walk the folders, the `find` of
    fsspec leaves out each folder that it fails to list.
    """
    from fsspec import AbstractFileSystem  # noqa: PLC0415
    from fsspec.asyn import AsyncFileSystem  # noqa: PLC0415

    client = type(files)
    is_async = issubclass(client, AsyncFileSystem)
    walks = client._find is AsyncFileSystem._find if is_async else client.find is AbstractFileSystem.find
    if not walks:
        return dict(files.find(base, detail=True))
    found: dict[str, Mapping[str, Any]] = {}
    folders = [base]
    try:
        while folders:
            for facts in files.ls(folders.pop(), detail=True):
                if facts["type"] == "directory":
                    folders.append(facts["name"])
                else:
                    found[facts["name"]] = facts
    except FileNotFoundError:
        if found or folders:
            raise
    return dict(sorted(found.items()))


def _modified_time(facts: Mapping[str, Any], key: str | None) -> float | None:
    value = facts.get(key) if key else None
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else value


def _etag(facts: Mapping[str, Any]) -> str:
    return str(facts.get("ETag") or facts.get("etag") or "").strip('"')


def open_remote(url: str) -> tuple[Any, str]:
    """Return the client for a URL and the URL's path in it."""
    files = _filesystem("/".join(url.split("/")[:3]), os.getpid())
    return files, files._strip_protocol(url)


@lru_cache(maxsize=16)
def _filesystem(base: str, process: int) -> Any:
    """Return the client of a server, one per process: connections are shared by threads but not forks."""
    with storage_errors(base):
        return open_filesystem(base)[0]


def retry_remote(url: str, action: Callable[[], _Result], *, first: bool = False) -> _Result:
    """Call `action`, retrying on network errors; missing files and refused access raise immediately.

    Args:
        url: The URL that `action` reads.
        action: Function without side effects.
        first: Raise immediately if the server is unreachable.
    """
    name = redact_url(url)

    def should_retry(error: Exception, attempt: int) -> bool:
        is_final = isinstance(error, AvdataError) or any(
            test(error) for test in (is_invalid, is_missing, is_refused)
        )
        return not is_final and not (first and is_unreachable(error)) and attempt < MAX_ATTEMPTS

    def warn(error: Exception, delay: float) -> None:
        _log.warning("Cannot read %s: %s; retrying", name, _describe(error))

    try:
        return retry(action, should_retry=should_retry, initial_delay_s=INITIAL_DELAY_S, on_retry=warn)
    except AvdataError:
        raise
    except Exception as error:
        if is_invalid(error):
            msg = f"Cannot read {name}: {error}"
            raise UsageError(msg, hint=access_hint(url, error)) from error
        if is_missing(error) or is_refused(error):
            msg = f"Cannot read {name}: {_describe(error)}"
            kind = MissingFileError if is_missing(error) else UnavailableError
            raise kind(msg, hint=access_hint(url, error)) from error
        if first and is_unreachable(error):
            msg = f"Cannot reach {name}: {_describe(error)}"
            raise UnavailableError(msg, hint="Check the network, the proxy and the URL") from error
        msg = f"Cannot read {name} after {MAX_ATTEMPTS} attempts: {_describe(error)}"
        hint = "Check the connection and retry; complete shards are cached"
        raise UnavailableError(msg, hint=hint) from error


def _describe(error: Exception) -> str:
    """Return the error as text, without credentials: some filesystems' errors contain the URL."""
    return redact_url(f"{type(error).__name__}: {error}")
