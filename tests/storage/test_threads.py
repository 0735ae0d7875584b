"""Calls in threads: order, errors, and what is left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support.processes import wait_until

from avdata.storage.threads import map_in_threads


def test_map_in_threads_yields_in_order_and_runs_at_a_time() -> None:
    barrier = threading.Barrier(3, timeout=60)

    def call(number: int) -> int:
        barrier.wait()
        return number * 10

    assert list(map_in_threads(call, range(6), 3)) == [0, 10, 20, 30, 40, 50]
    wait_until(lambda: not any(thread.name.startswith("avdata-map") for thread in threading.enumerate()))


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_map_in_threads_takes_few_items_ahead(ahead: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    for done, result in enumerate(map_in_threads(str, items(), 2, ahead=ahead), start=1):
        assert result == str(done - 1)
        assert len(taken) <= done + ahead
    assert len(taken) == 20


@pytest.mark.parametrize("error", [OSError("broken"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_map_in_threads_waits_for_no_other_call_after_an_error(error: BaseException) -> None:
    stalled, released, called = threading.Event(), threading.Event(), []

    def call(number: int) -> None:
        called.append(number)
        if number == 0:
            stalled.wait(60)
            raise error
        stalled.set()
        released.wait(60)

    try:
        with pytest.raises(type(error)):
            list(map_in_threads(call, range(9), 2))
        assert sorted(called[:2]) == [0, 1]
        assert len(called) <= 3  # the thread of the error may take one more before the others are canceled
    finally:
        released.set()


def test_map_in_threads_starts_no_call_after_its_consumer_ended() -> None:
    called: list[int] = []
    first = threading.Event()

    def call(number: int) -> int:
        called.append(number)
        if number:
            first.wait(60)
        return number

    results = map_in_threads(call, range(50), 1)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    first.set()
    wait_until(lambda: not any(thread.name.startswith("avdata-map") for thread in threading.enumerate()))
    assert len(called) <= 2
