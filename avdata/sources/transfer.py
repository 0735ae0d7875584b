"""Fetching many files at once, by threads that hand over each file as it arrives.

The files are taken in the order given. What came through waits in a short queue: a consumer that falls
behind holds the threads back, so that files can be used and deleted while others arrive.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from avdata.sources.fetcher import AttemptLog, FailedFile, FetchedFile, Fetcher
from avdata.sources.http import TransferError
from avdata.sources.rate_limit import Cancelled
from avdata.sources.types import FileRequest

SMALL_FILE_CONNECTIONS = 16

LARGE_FILE_CONNECTIONS = 4

_LARGE = 8 << 20

_QUEUE_SIZE = 32

_TICK_S = 0.1

_GRACE_S = 0.6

Tick = Callable[[int, int], None]


def default_connections(files: Sequence[FileRequest]) -> int:
    """How many connections suit the files: many for small ones, a few for large ones.

    >>> default_connections([FileRequest("a.wav", (), bytes=80_000)])
    16
    >>> default_connections([FileRequest("a.zip", ())])
    4
    """
    sizes = [file.bytes if file.bytes is not None else _LARGE for file in files]
    return SMALL_FILE_CONNECTIONS if sizes and sum(sizes) / len(sizes) < _LARGE else LARGE_FILE_CONNECTIONS


def transfer(
    root: Path,
    files: Sequence[FileRequest],
    log: AttemptLog,
    *,
    connections: int | None = None,
    bandwidth: float | None = None,
    tick: Tick = lambda on_disk, received: None,
) -> Generator[FetchedFile | FailedFile, None, None]:
    """Fetch files into `root`, yielding each as it arrives or is given up.

    Leaving the loop early, by an exception or Ctrl-C, stops all threads; the next call goes on from the byte.

    Args:
        root: the paths of `files` are below it.
        files: what to fetch, first things first.
        log: takes the attempts that fail.
        connections: at once; None chooses by the files' sizes.
        bandwidth: bytes a second over all connections together; None is no cap.
        tick: called ten times a second with the bytes on disk (parts included) and the bytes received.

    Raises:
        DiskError: the disk is full or may not be written to.
    """
    count = connections or default_connections(files)
    fetcher = Fetcher(root, files, log, connections=count, bandwidth=bandwidth)
    done: queue.Queue[FetchedFile | FailedFile | BaseException] = queue.Queue(_QUEUE_SIZE)
    todo = iter(files)
    lock = threading.Lock()

    def work() -> None:
        while not fetcher.stop.is_set():
            with lock:
                request = next(todo, None)
            if request is None:
                return
            outcome = _fetch_safely(fetcher, request)
            if outcome is None or not _hand_over(done, outcome, fetcher.stop):
                return

    # Daemons: a thread that waits for a dead server must not keep the process from ending.
    names = [f"avdata-fetch-{number}" for number in range(min(count, len(files)))]
    threads = [threading.Thread(target=work, name=name, daemon=True) for name in names]
    try:
        for thread in threads:
            thread.start()
        yield from _outcomes(done, len(files), lambda: tick(fetcher.stats.bytes, fetcher.stats.received))
    finally:
        fetcher.halt()
        deadline = time.monotonic() + _GRACE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        fetcher.close()


def _fetch_safely(fetcher: Fetcher, request: FileRequest) -> FetchedFile | FailedFile | BaseException | None:
    try:
        return fetcher.fetch(request)
    except Cancelled:
        return None
    except TransferError as error:
        return FailedFile(request, str(error), error.hint)
    except BaseException as error:  # raised again by the consumer's thread
        return error


def _hand_over(
    done: queue.Queue[FetchedFile | FailedFile | BaseException],
    outcome: FetchedFile | FailedFile | BaseException,
    stop: threading.Event,
) -> bool:
    while not stop.is_set():
        try:
            done.put(outcome, timeout=_TICK_S)
        except queue.Full:
            continue
        return True
    return False


def _outcomes(
    done: queue.Queue[FetchedFile | FailedFile | BaseException], count: int, tick: Callable[[], None]
) -> Iterator[FetchedFile | FailedFile]:
    told = time.monotonic()
    while count:
        try:
            outcome = done.get(timeout=_TICK_S)
        except queue.Empty:
            outcome = None
        if time.monotonic() - told >= _TICK_S:
            tick()
            told = time.monotonic()
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            count -= 1
            yield outcome
    tick()
