"""Append the bytes of a URL to a partial file, checking that both belong together."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from avdata.errors import redact_url
from avdata.sources.attempt_log import TransferStats
from avdata.sources.limited_client import LimitedClient
from avdata.sources.partial_file import PartialFile, RemoteVersion
from avdata.sources.rate_limit import BandwidthLimiter, Cancelled
from avdata.sources.types import FileRequest, ResolvedUrl, TransferError
from avdata.sources.url_schemes import detect_wrong_content

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

_CHUNK = 1 << 20

_HEAD = 4096

_SIZE_HINT = "State the size of the file as `bytes` in the manifest."

_MAX_UNSTATED_BYTES = 32 << 30  # of a file whose size neither the manifest nor the server states


class Receiver:
    """Receiver of the files of one download, shared by its threads."""

    def __init__(
        self, client: LimitedClient, stats: TransferStats, bandwidth: BandwidthLimiter, stop: threading.Event
    ) -> None:
        self._client = client
        self._stats = stats
        self._bandwidth = bandwidth
        self._stop = stop

    def restart(self, part: PartialFile) -> None:
        """Discard all bytes."""
        self._stats.add(-part.size)
        part.restart()

    def receive(self, url: str, location: ResolvedUrl, request: FileRequest, part: PartialFile) -> None:
        """Complete a partial file from its location, resuming at the byte where that is safe.

        Args:
            url: URL in the manifest.
            location: its current location.
            request: the file.
            part: its bytes on disk.

        Raises:
            HostBusyError: the host accepts no request now.
            TransferError: the file is not complete.
        """
        expected = request.bytes if request.bytes is not None else location.bytes
        if part.size and not _can_resume(url, request, part, expected):
            self.restart(part)
        if part.size and part.size == expected:
            return
        headers = dict(location.headers)
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            if part.version and part.version.is_of(url) and part.version.validator:
                headers["If-Range"] = part.version.validator
        with self._client.open(location.url, headers) as response:
            total = self._begin(url, response, part)
            if expected is not None and total is not None and total != expected:
                head = response.read(_HEAD) if not part.size else b""
                raise detect_wrong_content(head, request.path) or _length_error(total, expected)
            complete = total if total is not None else expected
            self._copy(response, request, part, _MAX_UNSTATED_BYTES if complete is None else complete)
        if complete is not None and part.size < complete:
            msg = f"connection lost after {part.size:,} of {complete:,} bytes"
            raise TransferError(msg, retryable=True, cause="connection lost")

    def _begin(self, url: str, response: BaseHTTPResponse, part: PartialFile) -> int | None:
        """Check that the response continues the partial file; return the total size, if stated."""
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        if response.status == 200:
            self.restart(part)
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        else:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            changed = part.version and part.version.is_of(url) and part.version.etag not in (None, etag)
            if response.status == 416 or not span or int(span[1]) != part.size or changed:
                self.restart(part)
                msg = "cannot resume: the file has changed on the server"
                raise TransferError(msg, retryable=True)
            total = int(span[2]) if span[2] != "*" else None
        if part.version is None or not part.version.is_of(url):
            part.set_version(RemoteVersion(redact_url(url), etag, modified, total))
        return total

    def _copy(self, response: BaseHTTPResponse, request: FileRequest, part: PartialFile, limit: int) -> None:
        """Write the body, which may have no stated length; discard a file that exceeds `limit` bytes."""
        while chunk := response.read1(_CHUNK):
            if self._stop.is_set():
                raise Cancelled
            if part.size + len(chunk) > limit:
                self.restart(part)
                msg = f"size mismatch: more than {limit:,} bytes from the server"
                hint = _SIZE_HINT if limit == _MAX_UNSTATED_BYTES else None
                raise TransferError(msg, cause="size mismatch", hint=hint)
            if part.size == 0 and (wrong := detect_wrong_content(chunk, request.path)):
                raise wrong
            part.write(chunk)
            self._stats.receive(len(chunk))
            self._bandwidth.consume(len(chunk))


def _can_resume(url: str, request: FileRequest, part: PartialFile, expected: int | None) -> bool:
    if expected is not None and part.size > expected:
        return False
    if request.checksum:
        return True
    # Without a checksum, only an If-Range validator of the same URL ensures that both parts match.
    return part.version is not None and part.version.is_of(url) and part.version.validator is not None


def _length_error(total: int, expected: int) -> TransferError:
    msg = f"size mismatch: {total:,} bytes on the server, expected {expected:,}"
    return TransferError(msg, cause="size mismatch")
