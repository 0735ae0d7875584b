"""Download of one file: mirrors in order, retries, resumption and checksum verification.

`url_schemes` resolves a URL, `http` opens it, and `partial_file` stores the bytes. A file has its final name
only when it is complete and its checksum verified.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar
from urllib.parse import urlsplit

from avdata.sources.partial_file import PartialFile, RemoteVersion
from avdata.sources.rate_limit import BandwidthLimiter, Cancelled, HostLimiter
from avdata.sources.types import FileRequest, ResolvedUrl, TransferError, host_of
from avdata.sources.url_schemes import UrlResolver, detect_wrong_content, is_direct
from avdata.storage.remote import redact_url
from avdata.storage.retry import backoff

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_MAX_ATTEMPTS = 6

_MAX_MISMATCHES = 3

_PROGRESS_BYTES = 1 << 20  # an attempt that received this much resets the count of attempts

_CHUNK = 1 << 20

_HEAD = 4096

_MIRROR_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """File on disk under its final name, checksum verified."""

    request: FileRequest
    checksum: str
    stat: os.stat_result


@dataclass(frozen=True, slots=True)
class FailedFile:
    """File that failed at all of its URLs."""

    request: FileRequest
    reason: str
    hint: str | None


class ChecksumMismatchError(TransferError):
    """The received file has another checksum than expected."""


class AttemptLog:
    """Log of failed attempts as JSON lines (`attempts.jsonl`): time, URL and error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        self.count = 0

    def note(self, path: str, url: str, attempt: int, error: TransferError, wait: float | None) -> None:
        """Append a failed attempt; `wait` is the delay in seconds before the next, None if none."""
        record = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "path": path,
            "url": redact_url(url),
            "attempt": attempt,
            "status": error.status,
            "error": str(error),
            "wait": None if wait is None else round(wait, 2),
        }
        with self._lock:
            self.count += 1
            try:
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self.path.open("a", encoding="utf-8", buffering=1)
                self._file.write(json.dumps(record) + "\n")
            except OSError as failure:
                logger.warning("Cannot write %s: %s", self.path, failure)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class TransferStats:
    """Byte counts of all threads: on disk (without discarded bytes) and received."""

    def __init__(self) -> None:
        self.bytes = 0
        self.received = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes that were on disk already, or (negative) were discarded."""
        with self._lock:
            self.bytes += count

    def receive(self, count: int) -> None:
        """Count bytes received over the network."""
        with self._lock:
            self.bytes += count
            self.received += count


class Fetcher:
    """Downloader of single files, shared by several threads."""

    def __init__(
        self,
        root: Path,
        files: Sequence[FileRequest],
        log: AttemptLog,
        *,
        connections: int,
        bandwidth: float | None,
    ) -> None:
        # Not at the top of the file: importing requests takes 0.1 s.
        from avdata.sources.http import HttpClient  # noqa: PLC0415

        self.stop = threading.Event()
        self.stats = TransferStats()
        self._root = root
        self._log = log
        self._net = HttpClient(connections)
        self._hosts = HostLimiter(connections, self.stop)
        self._bandwidth = BandwidthLimiter(bandwidth, self.stop)
        self._resolver = UrlResolver(self._net, files)

    def halt(self) -> None:
        """Stop all threads now; partial files keep what was received."""
        self.stop.set()
        self._net.abort()

    def close(self) -> None:
        """Close all connections."""
        self._net.close()

    def fetch(self, request: FileRequest) -> FetchedFile | FailedFile:
        """Try the file's URLs in order until one returns the expected bytes.

        Raises:
            Cancelled: `halt` was called.
            DiskError: the disk is full or not writable.
        """
        algorithm = request.checksum.partition(":")[0] if request.checksum else "sha256"
        part = PartialFile(self._root / request.path, algorithm, pinned=request.checksum is not None)
        self.stats.add(part.size)
        failures = []
        try:
            for number, url in enumerate(request.urls, start=1):
                if self._hosts.is_skipped(_server(url)):
                    failures.append((url, TransferError("skipped after repeated failures of this server")))
                    continue
                failure = self._try_url(url, request, part, last=number == len(request.urls))
                if failure is None:
                    return FetchedFile(request, part.checksum(), part.publish())
                failures.append((url, failure))
                self._hosts.record_failure(_server(url))
        finally:
            part.close()
        reason = "; ".join(f"{redact_url(url)}: {failure}" for url, failure in failures)
        hint = next((failure.hint for _, failure in failures if failure.hint), None)
        return FailedFile(request, reason or "no URL in the manifest", hint)

    def _try_url(
        self, url: str, request: FileRequest, part: PartialFile, *, last: bool
    ) -> TransferError | None:
        """Download from one URL with retries; return None on success, else the last error."""
        attempt = mismatches = 0
        while True:
            size = part.size
            try:
                self._attempt(url, request, part)
            except TransferError as error:
                if self.stop.is_set():
                    raise Cancelled from error
                # A long file on a bad line is cut many times: stop only if it makes no progress.
                attempt = 1 if part.size - size >= _PROGRESS_BYTES else attempt + 1
                mismatches += isinstance(error, ChecksumMismatchError)
                should_retry = error.retryable and attempt < _MAX_ATTEMPTS and mismatches < _MAX_MISMATCHES
                wait = error.wait if error.wait is not None else backoff(attempt)
                should_retry = should_retry and (last or wait <= _MIRROR_WAIT_S)
                self._log.note(request.path, url, attempt, error, wait if should_retry else None)
                if not should_retry:
                    return error
                if error.overloaded:
                    self._hosts.record_overload(error.server or _server(url), wait)
                elif self.stop.wait(wait):
                    raise Cancelled from error
            else:
                self._hosts.record_success(_server(url))
                return None

    def _attempt(self, url: str, request: FileRequest, part: PartialFile) -> None:
        location = ResolvedUrl(url)
        if not is_direct(url):
            location = self._at(_server(url), lambda: self._resolver.resolve(url, request))
        self._at(_server(location.url), lambda: self._receive(url, location, request, part))
        expected = request.checksum or location.checksum
        checksum = part.checksum()
        if expected and checksum != expected:
            size = part.size
            self._restart(part)
            msg = f"checksum mismatch: {checksum} ({size:,} bytes), expected {expected}"
            raise ChecksumMismatchError(msg, retryable=True)

    def _at(self, server: str, step: Callable[[], _Result]) -> _Result:
        """Run `step` within the server's limit of concurrent requests."""
        self._hosts.acquire(server)
        try:
            result = step()
        except TransferError as error:
            error.server = server
            raise
        finally:
            self._hosts.release(server)
        self._hosts.record_success(server)
        return result

    def _restart(self, part: PartialFile) -> None:
        self.stats.add(-part.size)
        part.restart()

    def _receive(self, url: str, location: ResolvedUrl, request: FileRequest, part: PartialFile) -> None:
        expected = request.bytes if request.bytes is not None else location.bytes
        if part.size and not _can_resume(url, request, part, expected):
            self._restart(part)
        if part.size and part.size == expected:
            return
        headers = dict(location.headers)
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            if part.version and part.version.url == url and part.version.validator:
                headers["If-Range"] = part.version.validator
        with self._net.open(location.url, headers) as response:
            total = self._begin(url, response, part)
            if expected is not None and total is not None and total != expected:
                head = response.read(_HEAD) if not part.size else b""
                raise detect_wrong_content(head, request.path) or _length_error(total, expected)
            self._copy(response, request, part)
        complete = total if total is not None else expected
        if complete is not None and part.size < complete:
            msg = f"connection lost after {part.size:,} of {complete:,} bytes"
            raise TransferError(msg, retryable=True)
        if complete is not None and part.size > complete:
            self._restart(part)
            raise _length_error(part.size, complete)

    def _begin(self, url: str, response: BaseHTTPResponse, part: PartialFile) -> int | None:
        """Check that the response continues the partial file; return the total size, if stated."""
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        if response.status == 200:
            self._restart(part)
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        else:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            changed = part.version and part.version.url == url and part.version.etag not in (None, etag)
            if response.status == 416 or not span or int(span[1]) != part.size or changed:
                self._restart(part)
                msg = "cannot resume: the file has changed on the server"
                raise TransferError(msg, retryable=True)
            total = int(span[2]) if span[2] != "*" else None
        if part.version is None or part.version.url != url:
            part.set_version(RemoteVersion(url, etag, modified, total))
        return total

    def _copy(self, response: BaseHTTPResponse, request: FileRequest, part: PartialFile) -> None:
        while chunk := response.read1(_CHUNK):
            if self.stop.is_set():
                raise Cancelled
            if part.size == 0 and (wrong := detect_wrong_content(chunk, request.path)):
                raise wrong
            part.write(chunk)
            self.stats.receive(len(chunk))
            self._bandwidth.consume(len(chunk))


def _server(url: str) -> str:
    """Return the unit of rate limiting: scheme and host, or the URL if it has no host."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{host_of(url)}" if parts.netloc else url


def _can_resume(url: str, request: FileRequest, part: PartialFile, expected: int | None) -> bool:
    if expected is not None and part.size > expected:
        return False
    if request.checksum:
        return True
    # Without a checksum, only an If-Range validator of the same URL ensures that both parts match.
    return part.version is not None and part.version.url == url and part.version.validator is not None


def _length_error(total: int, expected: int) -> TransferError:
    return TransferError(f"size mismatch: {total:,} bytes on the server, expected {expected:,}")
