"""Fetching ahead: shards of a remote set in the order of their first use, a few before they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

CONCURRENT_FETCHES = 4  # shards on their way at a time

SHARDS_AHEAD = (
    8  # shards fetched before their first sample's turn; more would push others out of a small cache
)


class ShardPrefetcher:
    """Keeps shards coming while samples are delivered.

    >>> fetched = []
    >>> ahead = ShardPrefetcher(iter([(0, 7), (30, 9)]), fetched.append)
    >>> ahead.advance_to(1)
    >>> ahead.close(wait=True)
    >>> sorted(fetched)
    [7, 9]

    Args:
        uses: (place, sample) of the first sample of each shard, in the order of the epoch.
        fetch: brings the shard of a sample here; what it raises is raised again when the sample is read.
    """

    def __init__(self, uses: Iterator[tuple[int, int]], fetch: Callable[[int], None]) -> None:
        self._uses, self._fetch, self._lock = uses, fetch, threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self._asked: list[int] = []  # places of the first uses that were asked for, and not yet reached

    def advance_to(self, place: int) -> None:
        """The samples before `place` are wanted now: ask for their shards, and for some more."""
        with self._lock:
            self._asked = [first for first in self._asked if first >= place]
            while len(self._asked) < SHARDS_AHEAD and not self._closed:
                use = next(self._uses, None)
                if use is None:
                    return
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(CONCURRENT_FETCHES, thread_name_prefix="avdata-fetch")
                self._pool.submit(self._fetch, use[1])
                if use[0] >= place:
                    self._asked.append(use[0])

    def close(self, *, wait: bool = False) -> None:
        """Fetch no more; what is on its way may arrive."""
        with self._lock:
            self._closed = True
            if self._pool is not None:
                self._pool.shutdown(wait=wait, cancel_futures=not wait)
