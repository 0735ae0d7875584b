"""Rate limits: concurrent requests per host and total bandwidth.

An answer 429 or 503 halves the concurrency of its host; every `_FILES_PER_INCREASE` files raise it by one
(additive increase, multiplicative decrease). `Retry-After` delays all requests to the host. A host that
fails `_MAX_FAILURES` times in a row is skipped for the rest of the download, so that a dead mirror costs
seconds, not hours.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

_FILES_PER_INCREASE = 20

_MAX_FAILURES = 8


class Cancelled(Exception):
    """The download was cancelled by the user or by an error in another thread."""


@dataclass
class _Host:
    limit: float
    busy: int = 0
    paused_until: float = 0.0
    failures: int = 0
    served: int = 0


class HostLimiter:
    """Thread-safe limit of concurrent requests per host."""

    def __init__(self, limit: int, stop: threading.Event) -> None:
        self._limit = limit
        self._stop = stop
        self._hosts: dict[str, _Host] = {}
        self._changed = threading.Condition()

    def acquire(self, name: str) -> None:
        """Wait until the host's limit allows another request; call `release` after it.

        Raises:
            Cancelled: the download was cancelled.
        """
        with self._changed:
            host = self._host(name)
            while (wait := self._wait_time(host)) > 0:
                self._changed.wait(min(wait, 0.2))
                if self._stop.is_set():
                    raise Cancelled
            host.busy += 1

    def release(self, name: str) -> None:
        """End a request to the host."""
        with self._changed:
            self._hosts[name].busy -= 1
            self._changed.notify_all()

    def _host(self, name: str) -> _Host:
        return self._hosts.setdefault(name, _Host(self._limit))

    @staticmethod
    def _wait_time(host: _Host) -> float:
        pause = host.paused_until - time.monotonic()
        return max(pause, 1.0 if host.busy >= int(host.limit) else 0.0)

    def record_success(self, name: str) -> None:
        """Reset the host's failures, and raise its limit after every `_FILES_PER_INCREASE` files."""
        with self._changed:
            host = self._host(name)
            host.failures = 0
            host.served += 1
            if host.served % _FILES_PER_INCREASE == 0 and host.limit < self._limit:
                host.limit += 1

    def record_overload(self, name: str, wait: float) -> None:
        """Halve the host's limit and send it nothing for `wait` seconds."""
        with self._changed:
            host = self._host(name)
            now = time.monotonic()
            # Concurrent requests are refused together; count them once.
            if now >= host.paused_until:
                host.limit = max(1.0, host.limit / 2)
            host.paused_until = max(host.paused_until, now + wait)

    def record_failure(self, name: str) -> None:
        """Count a file that failed at the host."""
        with self._changed:
            self._host(name).failures += 1

    def is_skipped(self, name: str) -> bool:
        """Return whether too many files in a row failed at the host."""
        with self._changed:
            return self._host(name).failures >= _MAX_FAILURES


class BandwidthLimiter:
    """Thread-safe limit in bytes per second for all connections; None means unlimited."""

    def __init__(self, limit: float | None, stop: threading.Event) -> None:
        self._limit = limit
        self._stop = stop
        self._free_at = 0.0
        self._lock = threading.Lock()

    def consume(self, count: int) -> None:
        """Count received bytes and wait as long as the limit requires.

        Raises:
            Cancelled: the download was cancelled.
        """
        if self._limit is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._limit
            wait = self._free_at - now
        if self._stop.wait(wait):
            raise Cancelled
