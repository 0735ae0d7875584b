"""How fast to go: how many requests a host gets at once, and the bandwidth cap.

A host that answers 429 or 503 gets half as many requests at once, and one more again after every
`_FILES_PER_INCREASE`
files (additive increase, multiplicative decrease); `Retry-After` holds all its requests back. A host that
only fails is given up for the rest of the run, so that a dead mirror costs seconds, not hours.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

_FILES_PER_INCREASE = 20

_MAX_FAILURES = 8


class Cancelled(Exception):
    """The run was stopped: by the user, or because it cannot go on."""


@dataclass
class _Host:
    limit: float
    busy: int = 0
    open_at: float = 0.0
    strikes: int = 0
    served: int = 0


class HostLimiter:
    """How many requests each host gets at once, and when; safe to use from many threads."""

    def __init__(self, limit: int, stop: threading.Event) -> None:
        self._limit = limit
        self._stop = stop
        self._hosts: dict[str, _Host] = {}
        self._changed = threading.Condition()

    def acquire(self, name: str) -> None:
        """Wait for one of the host's places and take it; `release` gives it back.

        Raises:
            Stopped: the run ended meanwhile.
        """
        with self._changed:
            host = self._host(name)
            while (wait := self._closed_for(host)) > 0:
                self._changed.wait(min(wait, 0.2))
                if self._stop.is_set():
                    raise Cancelled
            host.busy += 1

    def release(self, name: str) -> None:
        """Give the place back."""
        with self._changed:
            self._hosts[name].busy -= 1
            self._changed.notify_all()

    def _host(self, name: str) -> _Host:
        return self._hosts.setdefault(name, _Host(self._limit))

    @staticmethod
    def _closed_for(host: _Host) -> float:
        pause = host.open_at - time.monotonic()
        return max(pause, 1.0 if host.busy >= int(host.limit) else 0.0)

    def record_success(self, name: str) -> None:
        """A file came whole: the host is well, and may be asked for a little more."""
        with self._changed:
            host = self._host(name)
            host.strikes = 0
            host.served += 1
            if host.served % _FILES_PER_INCREASE == 0 and host.limit < self._limit:
                host.limit += 1

    def record_overload(self, name: str, wait: float) -> None:
        """The host asked for less: halve what it gets, and leave it alone for `wait` seconds."""
        with self._changed:
            host = self._host(name)
            now = time.monotonic()
            # Requests that were under way together are refused together: that is one refusal.
            if now >= host.open_at:
                host.limit = max(1.0, host.limit / 2)
            host.open_at = max(host.open_at, now + wait)

    def record_failure(self, name: str) -> None:
        """A file was given up at this host."""
        with self._changed:
            self._host(name).strikes += 1

    def is_given_up(self, name: str) -> bool:
        """Whether many files in a row failed at this host, so that it is not worth asking."""
        with self._changed:
            return self._host(name).strikes >= _MAX_FAILURES


class BandwidthLimiter:
    """A cap on bytes a second over all connections together; None is no cap."""

    def __init__(self, limit: float | None, stop: threading.Event) -> None:
        self._limit = limit
        self._stop = stop
        self._free_at = 0.0
        self._lock = threading.Lock()

    def consume(self, count: int) -> None:
        """Account for `count` bytes received, and wait as long as they should have taken.

        Raises:
            Stopped: the run ended meanwhile.
        """
        if self._limit is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._limit
            wait = self._free_at - now
        if self._stop.wait(wait):
            raise Cancelled
