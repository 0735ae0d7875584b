"""State of the hosts of a download, shared by its threads: limits, pauses and outages.

A host has three kinds of trouble. It refuses a request because there were too many (429, 503, `Retry-After`):
its limits are lowered. It does not answer, or with a server error: after `_MAX_OUTAGES` in a row it is set
aside for all files and tried again later, by one request at a time. It answers nothing else for
`give_up_after` seconds: files that need it fail.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from avdata.sources.rate_limit import AdaptiveLimit, Cancelled, Clock

GIVE_UP_AFTER_S = 600.0

_UNREACHABLE_S = 60.0  # a host that never answered is more likely misspelled, blocked or offline than busy

_MAX_OUTAGES = 3

_ASIDE_S = 5.0

_MAX_ASIDE_S = 60.0

_DOUBT_S = 30.0  # longer than two connect timeouts, so that two dead mirrors do not take turns

_MAX_DOUBT_S = 300.0

_HEAD_START_S = 2.0

_FIRST_TIMEOUT_S = 10.0

_MAX_REFUSALS = 3

_POLL_S = 0.2


class HostBusyError(Exception):
    """A host accepts no further request at the moment.

    Attributes:
        server: name of the host.
    """

    def __init__(self, server: str) -> None:
        super().__init__(f"{server} is busy")
        self.server = server


@dataclass
class _Host:
    limit: AdaptiveLimit
    active: int = 0  # requests, until their body is read
    unanswered: int = 0  # of these, requests without response headers
    asked_at: float = 0.0  # start of the newest request
    is_known: bool = False  # whether it ever answered
    served: int = 0  # accepted requests
    served_at: float = 0.0
    paused_until: float = 0.0
    outages: int = 0  # in a row
    aside_until: float = 0.0  # no request at all
    doubted_until: float = 0.0  # no request while a mirror works
    refused_files: int = 0  # files in a row that it does not have, or does not give
    quiet_since: float | None = None
    failed_at: float = 0.0
    problem: str = ""


@dataclass
class Ticket:
    """A request to a host."""

    server: str
    started: float
    together: int
    is_answered: bool = field(default=False)


class Hosts:
    """Thread-safe state of all hosts, by name `scheme://host`.

    Attributes:
        clock: source of time.
        current: host that sent the newest response; at first, the host that was asked.
        waiting: number of threads that wait for a host.
    """

    def __init__(
        self,
        connections: int,
        stop: threading.Event,
        *,
        give_up_after: float = GIVE_UP_AFTER_S,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self._connections = connections
        self._stop = stop
        self._give_up_after = give_up_after
        self._hosts: dict[str, _Host] = {}
        self._changed = threading.Condition()
        self.waiting = 0
        self.current = ""

    def _host(self, server: str) -> _Host:
        return self._hosts.setdefault(server, _Host(AdaptiveLimit(self._connections)))

    def delay(self, server: str) -> float:
        """Return the seconds until the host may accept another request; at most 0 if it may now."""
        with self._changed:
            return self._delay(self._host(server))

    def _delay(self, host: _Host) -> float:
        now = self.clock.now()
        is_doubtful = not host.is_known or host.outages >= _MAX_OUTAGES
        is_full = host.active >= int(host.limit.concurrency) or (is_doubtful and host.unanswered)
        aside = host.aside_until - now if host.outages >= _MAX_OUTAGES else 0.0
        return max(host.paused_until - now, aside, host.limit.delay(now), _POLL_S if is_full else 0.0)

    @contextmanager
    def request(self, server: str) -> Iterator[Ticket]:
        """Count a request to the host until the block ends; call `accept`, `refuse` or `fail` in it.

        Raises:
            HostBusyError: the host accepts no request now; see `delay`.
        """
        with self._changed:
            host = self._host(server)
            if self._delay(host) > 0:
                raise HostBusyError(server)
            now = self.clock.now()
            host.active, host.unanswered, host.asked_at = host.active + 1, host.unanswered + 1, now
            host.limit.start(now)
            self.current = self.current or server
            ticket = Ticket(server, now, host.active)
        try:
            yield ticket
        finally:
            with self._changed:
                host.active -= 1
                self._answered(host, ticket)
                self._changed.notify_all()

    @staticmethod
    def _answered(host: _Host, ticket: Ticket) -> None:
        host.unanswered -= not ticket.is_answered
        ticket.is_answered = True

    def read_timeout(self, server: str) -> float | None:
        """Return the seconds to wait for bytes; None for a host that has already answered.

        A dead mirror must not cost the usual timeout. A slow host gets twice the time after each failure.
        """
        with self._changed:
            host = self._host(server)
            return None if host.is_known else _FIRST_TIMEOUT_S * 2.0 ** min(host.outages, 8)

    def accept(self, ticket: Ticket) -> None:
        """Record that the host sends what was requested."""
        with self._changed:
            host, now = self._host(ticket.server), self.clock.now()
            self._answered(host, ticket)
            host.is_known, host.quiet_since, host.outages, host.aside_until = True, None, 0, 0.0
            host.served, host.served_at = host.served + 1, now
            host.limit.accept(now, ticket.together)
            self.current = ticket.server
            self._changed.notify_all()

    def refuse(self, ticket: Ticket, problem: str, wait: float | None) -> bool:
        """Record that the host refused a request as one of too many; return whether a limit is new.

        Args:
            ticket: the request.
            problem: the error.
            wait: seconds without requests that the host demands.
        """
        with self._changed:
            host, now = self._host(ticket.server), self.clock.now()
            had_no_limit = host.limit.rate is None
            host.is_known = True
            host.limit.refuse(now, ticket.started, ticket.together)
            host.paused_until = max(host.paused_until, now + (wait or 0.0))
            self._failed(host, problem, now)
            self._changed.notify_all()
            return had_no_limit and host.limit.rate is not None

    def fail(self, server: str, problem: str, started: float, *, is_answer: bool = False) -> bool:
        """Record that the host did not answer, or with an error of its own.

        Args:
            server: name of the host.
            problem: the error.
            started: start of the request. If another one succeeded later, the host works.
            is_answer: whether the error is an HTTP status.

        Returns:
            Whether the host is set aside now, after several failures in a row.
        """
        with self._changed:
            host, now = self._host(server), self.clock.now()
            host.is_known |= is_answer
            if host.served and host.served_at >= started:
                return False
            host.outages += 1
            doubling = 2.0 ** min(host.outages - 1, 10)
            host.aside_until = now + min(_ASIDE_S * doubling, _MAX_ASIDE_S)
            host.doubted_until = now + min(_DOUBT_S * doubling, _MAX_DOUBT_S)
            self._failed(host, problem, now)
            self._changed.notify_all()
            return host.outages == _MAX_OUTAGES

    def deny(self, server: str, problem: str) -> None:
        """Record that a file failed at the host although the host works."""
        with self._changed:
            host = self._host(server)
            host.is_known = True
            host.refused_files += 1
            host.problem = problem

    def record_file(self, server: str) -> None:
        """Record a complete file of the host."""
        with self._changed:
            self._host(server).refused_files = 0

    @staticmethod
    def _failed(host: _Host, problem: str, now: float) -> None:
        if host.quiet_since is None:
            host.quiet_since = now
        host.failed_at, host.problem = now, problem

    def served(self, server: str) -> int:
        """Return the number of requests that the host accepted."""
        with self._changed:
            return self._host(server).served

    def problem(self, server: str) -> str:
        """Return the host's last error, or that it has not answered yet."""
        with self._changed:
            host = self._host(server)
            return host.problem or ("" if host.is_known else "no answer yet")

    def is_given_up(self, server: str) -> bool:
        """Return whether the host has failed for so long that its files fail."""
        with self._changed:
            host = self._host(server)
            if host.quiet_since is None:
                return False
            patience = self._give_up_after if host.is_known else min(self._give_up_after, _UNREACHABLE_S)
            return host.failed_at - host.quiet_since >= patience

    def rank(self, server: str) -> int:
        """Return how promising a host is among mirrors: 0 best."""
        with self._changed:
            host = self._host(server)
            if host.refused_files >= _MAX_REFUSALS:
                return 2
            return int(host.outages > 0 and self.clock.now() < host.doubted_until)

    def is_known(self, server: str) -> bool:
        """Return whether the host has answered, and does not fail at the moment."""
        with self._changed:
            host = self._host(server)
            return host.served > 0 and not host.outages

    def is_starting(self, server: str) -> bool:
        """Return whether the host's first request is so recent that mirrors need not be asked yet."""
        with self._changed:
            host = self._host(server)
            return (
                not host.is_known and host.unanswered > 0 and self.clock.now() - host.asked_at < _HEAD_START_S
            )

    def wait(self, seconds: float) -> None:
        """Wait until a host changes, at most `seconds`.

        Raises:
            Cancelled: the download was cancelled.
        """
        with self._changed:
            self.waiting += 1
            try:
                self.clock.wait(self._changed, min(max(seconds, 0.001), _POLL_S))
            finally:
                self.waiting -= 1
        if self._stop.is_set():
            raise Cancelled
