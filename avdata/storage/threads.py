"""Threads that read files, and that do not keep a command from ending after Ctrl-C."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from avdata.interrupts import Terminated, wait_for

_Item = TypeVar("_Item")

_Result = TypeVar("_Result")


def map_in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int, *, ahead: int | None = None
) -> Iterator[_Result]:
    """Yield the result of each item, in the order of the items.

    After an error or a signal, no other call is started, and nothing waits for running ones: a server that
    stalls would keep them for minutes, and a thread pool would wait for them, as Python does at its end.

    >>> list(map_in_threads(len, ["a", "bcd"], threads=2))
    [1, 3]

    Args:
        function: called in a thread.
        items: taken in this thread.
        threads: number of threads.
        ahead: number of items that are taken before the first result is awaited (default: all).
    """
    todo: queue.SimpleQueue[tuple[Future[_Result], _Item] | None] = queue.SimpleQueue()
    pending: deque[Future[_Result]] = deque()
    started: list[threading.Thread] = []

    def work() -> None:
        while (task := todo.get()) is not None:
            future, item = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(item))
                except BaseException as error:  # `wait_for` raises it
                    future.set_exception(error)

    try:
        for item in items:
            if len(started) < threads:
                started.append(threading.Thread(target=work, name=f"avdata-map-{len(started)}", daemon=True))
                started[-1].start()
            pending.append(Future())
            todo.put((pending[-1], item))
            if len(pending) == ahead:
                yield wait_for(pending.popleft())
        while pending:
            yield wait_for(pending.popleft())
    except (KeyboardInterrupt, Terminated):
        from avdata.storage.remote_files import cancel_reads  # noqa: PLC0415  # asyncio loads only when needed

        cancel_reads()
        raise
    finally:
        for future in pending:
            future.cancel()
        for _ in started:
            todo.put(None)
