"""Concurrency per host."""

from __future__ import annotations

import threading

import pytest

from avdata.sources.rate_limit import Cancelled, HostLimiter


def count_free(limiter: HostLimiter, stop: threading.Event, limit: int) -> int:
    """Return how many requests the host may have now; `stop` ends the wait for one more."""
    stop.set()
    for number in range(limit + 1):
        try:
            limiter.acquire("host")
        except Cancelled:
            for _ in range(number):
                limiter.release("host")
            return number
    pytest.fail("no limit")


def test_host_limiter_halves_the_limit_on_overload_and_raises_it_later() -> None:
    stop = threading.Event()
    limiter = HostLimiter(8, stop)
    assert count_free(limiter, stop, 8) == 8
    limiter.record_overload("host", 0.0)
    assert count_free(limiter, stop, 8) == 4
    for _ in range(40):
        limiter.record_success("host")
    assert count_free(limiter, stop, 8) == 6


def test_host_limiter_counts_concurrent_refusals_once() -> None:
    stop = threading.Event()
    limiter = HostLimiter(8, stop)
    for _ in range(8):
        limiter.record_overload("host", 0.05)
    stop.clear()
    limiter.acquire("host")  # after the pause
    limiter.release("host")
    assert count_free(limiter, stop, 8) == 4
