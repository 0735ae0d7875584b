"""Download of one file: mirrors, retries, resumption and checksum verification.

`mirrors` chooses a URL, `url_schemes` resolves it, and `receiver` appends its bytes to a `partial_file`. A
file has its final name only when it is complete and its checksum verified.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avdata.errors import redact_url
from avdata.sources.attempt_log import AttemptLog, TransferStats
from avdata.sources.hosts import GIVE_UP_AFTER_S, HostBusyError, Hosts
from avdata.sources.limited_client import LimitedClient
from avdata.sources.mirrors import Mirror, choose_mirror
from avdata.sources.partial_file import PartialFile
from avdata.sources.rate_limit import BandwidthLimiter, Cancelled, Clock
from avdata.sources.receiver import Receiver
from avdata.sources.types import FileRequest, ResolvedUrl, TransferError, host_of, server_of
from avdata.sources.url_schemes import UrlResolver, is_direct
from avdata.storage.retry import backoff

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 6

_DEFER_AFTER = 3  # attempts, before the host is set aside for long

_MAX_MISMATCHES = 3

_PROGRESS_BYTES = 1 << 20  # an attempt that received this much resets the count of attempts

_EXPIRED_STATUSES = (401, 403)


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """File on disk under its final name, checksum verified."""

    request: FileRequest
    checksum: str
    stat: os.stat_result


@dataclass(frozen=True, slots=True)
class FailedFile:
    """File that failed at all of its URLs.

    Attributes:
        request: the file.
        reason: the last error of each URL.
        hint: what the user can do.
        message: the same errors with the host instead of the URL.
        cause: the message without what differs between files, to count equal ones.
    """

    request: FileRequest
    reason: str
    hint: str | None
    message: str
    cause: str


class ChecksumMismatchError(TransferError):
    """The received file has another checksum than expected."""


class DeferredError(Exception):
    """Other files should be tried before this one is tried again."""


class Fetcher:
    """Downloader of files of one dataset, shared by threads.

    Attributes:
        stop: set to stop all threads.
        stats: bytes on disk and received.
        hosts: state of the hosts.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[FileRequest],
        log: AttemptLog,
        *,
        connections: int,
        bandwidth: float | None = None,
        give_up_after: float | None = None,
    ) -> None:
        from avdata.sources.http import HttpClient  # noqa: PLC0415  # requests loads only for a transfer

        self.stop = threading.Event()
        self.stats = TransferStats()
        self._patience = GIVE_UP_AFTER_S if give_up_after is None else give_up_after
        self.hosts = Hosts(connections, self.stop, give_up_after=self._patience, clock=Clock())
        self._root = root
        self._log = log
        self._net = HttpClient(connections)
        self._client = LimitedClient(self._net, self.hosts)
        self._resolver = UrlResolver(self._client, files)
        self._receiver = Receiver(self._client, self.stats, BandwidthLimiter(bandwidth, self.stop), self.stop)
        self._storage: dict[str, str] = {}  # host of the bytes, by host of a URL that must be resolved
        self._deferred: dict[str, list[Mirror]] = {}
        self._told: set[str] = set()
        for folder in {os.path.dirname(request.path) for request in files}:
            os.makedirs(root / folder, exist_ok=True)

    def halt(self) -> None:
        """Stop all threads now; partial files keep what was received."""
        self.stop.set()
        self._net.abort()

    def close(self) -> None:
        """Close all connections."""
        self._net.close()

    def fetch(self, request: FileRequest, *, may_defer: bool = False) -> FetchedFile | FailedFile:
        """Try the file's URLs until one returns the expected bytes or all have failed.

        Args:
            request: the file.
            may_defer: raise DeferredError after several errors of a server, to try other files first. They
                show whether the file or the server is at fault.

        Raises:
            Cancelled: `halt` was called.
            DeferredError: `fetch` should be called again later.
            DiskError: the disk is full or not writable.
        """
        algorithm = request.checksum.partition(":")[0] if request.checksum else "sha256"
        part = PartialFile(self._root / request.path, algorithm, pinned=request.checksum is not None)
        self.stats.add(part.size)
        mirrors = self._deferred.pop(request.path, None) or [self._mirror(url) for url in request.urls]
        try:
            while (mirror := choose_mirror(mirrors, self.hosts)) is not None:
                if self._try_mirror(mirror, request, part):
                    self._tell_mirror(mirrors, mirror)
                    return FetchedFile(request, part.checksum(), part.publish())
                left = [mirror for mirror in mirrors if not mirror.is_final]
                if may_defer and left and all(mirror.attempts >= _DEFER_AFTER for mirror in left):
                    self._deferred[request.path] = mirrors
                    self.stats.add(-part.size)
                    raise DeferredError
        finally:
            part.close()
        return self._failed_file(request, mirrors)

    def check(self, request: FileRequest, *, may_defer: bool = False) -> FailedFile | None:
        """Request one byte of a file; return a FailedFile if all of its URLs refuse it.

        Other errors are left to `fetch`, which repeats.

        Raises:
            Cancelled: `halt` was called.
        """
        mirrors = [self._mirror(url) for url in request.urls]
        while (mirror := choose_mirror(mirrors, self.hosts)) is not None:
            try:
                location = self._resolve(mirror, request)
                with self._client.open(location.url, {**location.headers, "Range": "bytes=0-0"}):
                    return None
            except HostBusyError as busy:
                mirror.wait_for(busy.server)
            except TransferError as error:
                if self.stop.is_set():
                    raise Cancelled from error
                if error.retryable:
                    return None
                mirror.error, mirror.is_final = error, True
        return self._failed_file(request, mirrors)

    def _mirror(self, url: str) -> Mirror:
        server = server_of(url)
        needed = server if is_direct(url) else self._storage.get(server, server)
        return Mirror(url, server, [needed])

    def _try_mirror(self, mirror: Mirror, request: FileRequest, part: PartialFile) -> bool:
        """Make one attempt; return whether the file is complete and verified."""
        size = part.size
        try:
            self._attempt(mirror, request, part)
        except HostBusyError as busy:
            mirror.wait_for(busy.server)
            return False
        except TransferError as error:
            if self.stop.is_set():
                raise Cancelled from error
            self._note_failure(mirror, request, error, part.size - size)
            return False
        self.hosts.record_file(mirror.server)
        return True

    def _attempt(self, mirror: Mirror, request: FileRequest, part: PartialFile) -> None:
        location = self._resolve(mirror, request)
        try:
            self._receiver.receive(mirror.url, location, request, part)
        except TransferError:
            mirror.location = None
            raise
        expected = request.checksum or location.checksum
        checksum = part.checksum()
        if expected and checksum != expected:
            size = part.size
            self._receiver.restart(part)
            mirror.location = None
            msg = f"checksum mismatch: {checksum} ({size:,} bytes), expected {expected}"
            raise ChecksumMismatchError(msg, retryable=True, cause="checksum mismatch")

    def _resolve(self, mirror: Mirror, request: FileRequest) -> ResolvedUrl:
        """Return the current location of the bytes, once more if its host was busy."""
        mirror.is_resolved = False
        if mirror.location is None:
            is_at_url = is_direct(mirror.url)
            mirror.location = (
                ResolvedUrl(mirror.url) if is_at_url else self._resolver.resolve(mirror.url, request)
            )
            if not is_at_url:
                self._storage[mirror.server] = server_of(mirror.location.url)
                mirror.servers = [self._storage[mirror.server]]
        mirror.is_resolved = True
        return mirror.location

    def _note_failure(
        self, mirror: Mirror, request: FileRequest, error: TransferError, received: int
    ) -> None:
        """Record a failed attempt and decide whether and when another follows."""
        server, now = error.server or mirror.server, self.hosts.clock.now()
        is_mismatch = isinstance(error, ChecksumMismatchError)
        if received >= _PROGRESS_BYTES or not mirror.attempts:
            # A long file on a bad line is cut many times: stop only if it makes no progress.
            mirror.attempts, mirror.first_failure = 0, now
            mirror.served_before = self.hosts.served(server)
        mirror.attempts += 1
        mirror.mismatches += is_mismatch
        mirror.error = error
        if error.server is None and error.retryable and not is_mismatch:
            self.hosts.fail(server, str(error), now, is_answer=error.status is not None)
        is_renewed = self._is_expired_link(mirror, error)
        mirror.has_new_link = is_renewed or (mirror.has_new_link and not received)
        mirror.is_final = not is_renewed and self._is_final(mirror, error, server, now)
        wait = backoff(mirror.attempts)
        if is_renewed or error.overloaded:
            wait = max(self.hosts.delay(server), 0.0)
        else:
            mirror.retry_at = now + wait
        self._log.note(request.path, mirror.url, mirror.attempts, error, None if mirror.is_final else wait)
        if mirror.is_final:
            self.hosts.deny(mirror.server, str(error))

    def _is_final(self, mirror: Mirror, error: TransferError, server: str, now: float) -> bool:
        """Return whether no attempt should follow although the host is not given up."""
        if not error.retryable or mirror.mismatches >= _MAX_MISMATCHES:
            return True
        if mirror.attempts < _MAX_ATTEMPTS:
            return False
        if error.overloaded:
            return now - mirror.first_failure >= self._patience
        # The host served other requests in the meantime: the file is at fault.
        return self.hosts.served(server) > mirror.served_before

    @staticmethod
    def _is_expired_link(mirror: Mirror, error: TransferError) -> bool:
        """Return whether a fresh link should be requested: the refused one is signed and may have expired."""
        is_link = mirror.is_resolved and (error.is_redirected or not is_direct(mirror.url))
        return error.status in _EXPIRED_STATUSES and is_link and not mirror.has_new_link

    def _failed_file(self, request: FileRequest, mirrors: Sequence[Mirror]) -> FailedFile:
        errors = [(mirror, self._last_error(mirror)) for mirror in mirrors]
        reasons = [f"{redact_url(mirror.url)}: {error}" for mirror, error in errors]
        messages = [_with_host(mirror, str(error)) for mirror, error in errors]
        causes = [_with_host(mirror, error.cause) for mirror, error in errors]
        failed = FailedFile(
            request,
            "; ".join(reasons) or "no URL in the manifest",
            next((error.hint for _, error in errors if error.hint), None),
            "; ".join(dict.fromkeys(messages)) or "no URL in the manifest",
            "; ".join(dict.fromkeys(causes)) or "no URL in the manifest",
        )
        if failed.cause not in self._told:
            self._told.add(failed.cause)
            logger.warning("Not downloaded: %s: %s. The download continues.", request.path, failed.message)
        return failed

    def _last_error(self, mirror: Mirror) -> TransferError:
        problems = (self.hosts.problem(server) for server in mirror.servers)
        return mirror.error or TransferError(next(filter(None, problems), "not requested"))

    def _tell_mirror(self, mirrors: Sequence[Mirror], used: Mirror) -> None:
        """Log once which mirror is used if it is not the first, and why."""
        first = mirrors[0]
        if used is first or self._told & {used.server, first.server}:
            return
        self._told.add(used.server)
        problem = str(first.error or "") or self.hosts.problem(first.servers[-1]) or "busy"
        logger.warning(
            "Downloading from %s instead of %s: %s.",
            host_of(used.url) or used.url, host_of(first.url) or first.url, problem,
        )  # fmt: skip


def _with_host(mirror: Mirror, text: str) -> str:
    host = host_of(mirror.url) or mirror.url
    return text if host in text else f"{text} ({host})"
