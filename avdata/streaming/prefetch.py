"""Prefetch remote shards in the order in which samples first need them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

CONCURRENT_FETCHES = 4

SHARDS_AHEAD = 8  # fetched before their first sample's turn; more could evict others from a small cache


class ShardPrefetcher:
    """Prefetcher of the shards that upcoming samples need.

    >>> fetched = []
    >>> prefetcher = ShardPrefetcher(iter([(0, 7), (30, 9)]), fetched.append)
    >>> prefetcher.advance_to(1)
    >>> prefetcher.close(wait=True)
    >>> sorted(fetched)
    [7, 9]

    Args:
        uses: (position, sample) for the first sample of each shard, in epoch order.
        fetch: Function that fetches the shard of a sample; reading the sample raises its errors again.
    """

    def __init__(self, uses: Iterator[tuple[int, int]], fetch: Callable[[int], None]) -> None:
        self._uses, self._fetch, self._lock = uses, fetch, threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self._upcoming: list[int] = []  # positions of requested shards' first uses, not yet reached

    def advance_to(self, position: int) -> None:
        """Request the shards of the samples before `position`, and `SHARDS_AHEAD` more."""
        with self._lock:
            self._upcoming = [first for first in self._upcoming if first >= position]
            while len(self._upcoming) < SHARDS_AHEAD and not self._closed:
                use = next(self._uses, None)
                if use is None:
                    return
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(CONCURRENT_FETCHES, thread_name_prefix="avdata-fetch")
                self._pool.submit(self._fetch, use[1])
                if use[0] >= position:
                    self._upcoming.append(use[0])

    def close(self, *, wait: bool = False) -> None:
        """Start no further fetches; with `wait`, wait for those requested."""
        with self._lock:
            self._closed = True
            if self._pool is not None:
                self._pool.shutdown(wait=wait, cancel_futures=not wait)
