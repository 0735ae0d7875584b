"""Limits learned from servers that are simulated in virtual time."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from avdata.sources.rate_limit import AdaptiveLimit

Server = Callable[[float, int], bool]
"""Whether a request at a time is accepted, given the number of accepted ones in progress."""


def simulate(files: int, server: Server, latency: float) -> tuple[float, int]:
    """Return the seconds and refusals until `files` requests of 16 workers were accepted."""
    limit = AdaptiveLimit(16)
    now, busy, active, refused, answered = 0.0, 0, 0, 0, False
    events: list[tuple[float, int, bool, float, int]] = []
    sent = 0
    left = files
    while left or busy:
        while left and busy < (min(int(limit.concurrency), 16) if answered else 1) and limit.delay(now) <= 0:
            busy, left, sent = busy + 1, left - 1, sent + 1
            limit.start(now)
            is_accepted = server(now, active)
            active += is_accepted
            heapq.heappush(events, (now + latency, sent, is_accepted, now, busy))
        coming = [events[0][0]] if events else []
        if left and limit.delay(now) > 0:
            coming.append(now + limit.delay(now) + 1e-6)
        now = min(coming)
        while events and events[0][0] <= now:
            _, _, is_accepted, started, together = heapq.heappop(events)
            busy, active, answered = busy - 1, active - is_accepted, True
            if is_accepted:
                limit.accept(now, together)
            else:
                refused, left = refused + 1, left + 1
                limit.refuse(now, started, together)
    return now, refused


def limit_requests(rate: float, burst: int = 0) -> Server:
    """nginx's `limit_req` with `nodelay`: a leaky bucket."""
    excess, last = 0.0, -1e9

    def server(now: float, active: int) -> bool:
        nonlocal excess, last
        level = max(0.0, excess - (now - last) * rate + 1) if last >= 0 else 0.0
        if level > burst:
            return False
        excess, last = level, now
        return True

    return server


@pytest.mark.parametrize(
    ("rate", "burst", "latency"), [(5, 0, 0.01), (5, 10, 0.3), (20, 5, 0.02), (20, 5, 1.0)]
)
def test_adaptive_limit_learns_a_servers_rate(rate: float, burst: int, latency: float) -> None:
    files = int(rate * 40)
    seconds, refused = simulate(files, limit_requests(rate, burst), latency)
    assert seconds < 1.6 * files / rate
    assert refused < 0.2 * files


@pytest.mark.parametrize("connections", [1, 4])
def test_adaptive_limit_learns_a_servers_connections(connections: int) -> None:
    seconds, refused = simulate(400, lambda now, active: active < connections, latency=0.1)
    assert seconds < 3.5 * 400 * 0.1 / connections
    assert refused < 40


def test_adaptive_limit_does_not_slow_down_an_unlimited_server() -> None:
    seconds, refused = simulate(320, lambda now, active: True, latency=0.1)
    assert seconds == pytest.approx(0.1 + 0.1 * 320 / 16)
    assert not refused


def test_adaptive_limit_lowers_the_rate_once_for_requests_sent_together() -> None:
    limit = AdaptiveLimit(16)
    for _ in range(16):
        limit.refuse(1.0, started=0.5, together=16)
    assert limit.rate == 0.5
    assert limit.concurrency == pytest.approx(12.8)


def test_adaptive_limit_recovers_from_a_long_refusal() -> None:
    limit = AdaptiveLimit(16)
    for second in range(60):
        limit.refuse(float(second), started=second - 0.1, together=1)
    assert limit.rate == 0.05
    now = 60.0
    for _ in range(30):
        now += max(limit.delay(now), 0.0)
        limit.start(now)
        limit.accept(now, together=1)
    assert limit.rate > 2


def test_limit_stays_open_for_isolated_failures() -> None:
    """A host that refuses 2 % of the requests, at any pace, has no limit to learn."""
    answered = 0

    def server(now: float, active: int) -> bool:
        nonlocal answered
        answered += 1
        return answered % 50 != 0

    seconds, refused = simulate(2000, server, latency=0.1)
    assert 30 <= refused <= 50
    assert seconds < 1.1 * (2000 + refused) * 0.1 / 16
