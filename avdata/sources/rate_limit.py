"""Limits that a download keeps: what a host accepts, learned from its answers, and the bandwidth.

`AdaptiveLimit` is additive increase, multiplicative decrease (AIMD), as in TCP, of two quantities: concurrent
requests and requests per second. It reads no clock and does not wait, so tests simulate servers with it.
Retry libraries (tenacity, urllib3's `Retry`) wait per request, and limiters (aiolimiter, pyrate-limiter) keep
a rate that is known in advance; neither learns a rate that all files of a host share.
"""

from __future__ import annotations

import threading
import time
from collections import deque

_DECREASE = 0.8

_MIN_RATE, _MAX_RATE = 0.05, 1000.0  # requests per second

_RATE_STEP = 0.5  # requests per second, per second

_RATE_STEP_SHARE = 0.1  # of the rate at the last refusal, per second

_CONCURRENCY_STEP_S = 5.0

_WINDOW_S = 2.0

_ISOLATED_SHARE = 0.05  # refused requests of a window that do not show a limit


class Cancelled(Exception):
    """The download was cancelled by the user or by an error in another thread."""


class Clock:
    """Time and waiting; tests replace it by one that does not wait."""

    def now(self) -> float:
        """Return a monotonic time in seconds."""
        return time.monotonic()

    def wait(self, changed: threading.Condition, seconds: float) -> None:
        """Wait until `changed`, which the caller holds, is notified, at most `seconds`."""
        changed.wait(seconds)


class AdaptiveLimit:
    """Limits of one host, learned from accepted and refused requests; not thread-safe.

    Attributes:
        concurrency: number of concurrent requests.
        rate: requests per second; None until a request was refused.
    """

    def __init__(self, connections: int) -> None:
        self.concurrency = float(connections)
        self.rate: float | None = None
        self._connections = connections
        self._accepted: deque[float] = deque(maxlen=1024)
        self._refused: deque[float] = deque(maxlen=64)
        self._accepted_together = 0
        self._first = self._next = self._decreased = self._grown = self._updated = 0.0
        self._step = _RATE_STEP
        self._is_first_refusal = True

    def delay(self, now: float) -> float:
        """Return the seconds until the rate allows the next request."""
        return self._next - now if self.rate else 0.0

    def start(self, now: float) -> None:
        """Count a request that is sent now."""
        self._first = self._first or now
        if self.rate:
            self._next = max(now, self._next) + 1 / self.rate

    def accept(self, now: float, together: int) -> None:
        """Raise the limits after an accepted request; `together` were active when it started."""
        self._accepted.append(now)
        self._accepted_together = max(self._accepted_together, together)
        if self.concurrency < self._connections and now - self._grown >= _CONCURRENCY_STEP_S:
            self.concurrency, self._grown = self.concurrency + 1, now
        if self.rate:
            # At most doubled: an increase per second would be too coarse for one request per 20 s.
            step = min((self._step or self.rate) * (now - self._updated), self.rate)
            self.rate, self._updated = min(self.rate + step, _MAX_RATE), now

    def refuse(self, now: float, started: float, together: int) -> None:
        """Lower the limits after a refused request, which started at `started`."""
        if started <= self._decreased:
            return  # sent with the old limits; they were lowered for another request of them
        self._refused.append(now)
        if self.rate is None and self._is_isolated(now):
            return
        self._decreased = self._grown = self._updated = now
        is_rate_known = self.rate is not None
        if together > max(self._accepted_together, 1):
            self.concurrency = max(1.0, self.concurrency * _DECREASE, float(self._accepted_together))
            if is_rate_known:
                return
        accepted = self._accepted_rate(now)
        if accepted:
            self.rate = _DECREASE * min(accepted, self.rate or accepted)
        else:
            self.rate = (self.rate or 1.0) / 2
        self.rate = max(self.rate, _MIN_RATE)
        # After the first refusal the rate doubles each second, as in TCP's slow start.
        self._step = 0.0 if self._is_first_refusal else max(_RATE_STEP, _RATE_STEP_SHARE * accepted)
        self._is_first_refusal = False
        self._next = now + 1 / self.rate

    def _is_isolated(self, now: float) -> bool:
        """Return whether the host refuses so few requests that these are failures, not its limit."""
        refused = sum(then > now - _WINDOW_S for then in self._refused)
        accepted = sum(then > now - _WINDOW_S for then in self._accepted)
        return refused <= _ISOLATED_SHARE * accepted

    def _accepted_rate(self, now: float) -> float:
        while self._accepted and self._accepted[0] < now - _WINDOW_S:
            self._accepted.popleft()
        return len(self._accepted) / min(max(now - self._first, 1.0), _WINDOW_S)


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
