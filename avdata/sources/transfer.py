"""Parallel download of many files by threads, in order.

Downloaded files pass through a short queue. A slow consumer therefore blocks the threads, so that files can
be used and deleted while others are downloaded.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from avdata.sources.fetcher import AttemptLog, FailedFile, FetchedFile, Fetcher
from avdata.sources.rate_limit import Cancelled
from avdata.sources.types import FileRequest, TransferError

SMALL_FILE_CONNECTIONS = 16

LARGE_FILE_CONNECTIONS = 4

_LARGE_BYTES = 8 << 20

_QUEUE_SIZE = 32

_TICK_S = 0.1

_JOIN_TIMEOUT_S = 0.6

Tick = Callable[[int, int], None]


def default_connections(files: Sequence[FileRequest]) -> int:
    """Return the number of connections for the files: many for small files, few for large.

    >>> default_connections([FileRequest("a.wav", (), bytes=80_000)])
    16
    >>> default_connections([FileRequest("a.zip", ())])
    4
    """
    sizes = [file.bytes if file.bytes is not None else _LARGE_BYTES for file in files]
    return (
        SMALL_FILE_CONNECTIONS if sizes and sum(sizes) / len(sizes) < _LARGE_BYTES else LARGE_FILE_CONNECTIONS
    )


def transfer(
    root: Path,
    files: Sequence[FileRequest],
    log: AttemptLog,
    *,
    connections: int | None = None,
    bandwidth: float | None = None,
    tick: Tick = lambda on_disk, received: None,
) -> Generator[FetchedFile | FailedFile, None, None]:
    """Yield each file when it is downloaded into `root` or has failed.

    Closing the generator stops all threads. The next call resumes partial files at the byte.

    Args:
        root: folder of the files.
        files: files to download, in order.
        log: log for failed attempts.
        connections: number of parallel connections (default: by the sizes of the files).
        bandwidth: limit in bytes per second for all connections together (default: unlimited).
        tick: called ten times a second with the bytes on disk (partial files included) and received.

    Raises:
        DiskError: the disk is full or not writable.
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
            if outcome is None or not _enqueue(done, outcome, fetcher.stop):
                return

    # Daemons: a thread that waits for a dead server must not keep the process alive.
    names = [f"avdata-fetch-{number}" for number in range(min(count, len(files)))]
    threads = [threading.Thread(target=work, name=name, daemon=True) for name in names]
    try:
        for thread in threads:
            thread.start()
        yield from _outcomes(done, len(files), lambda: tick(fetcher.stats.bytes, fetcher.stats.received))
    finally:
        fetcher.halt()
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
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
    except BaseException as error:  # re-raised in the consumer's thread
        return error


def _enqueue(
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
    last_tick = time.monotonic()
    while count:
        try:
            outcome = done.get(timeout=_TICK_S)
        except queue.Empty:
            outcome = None
        if time.monotonic() - last_tick >= _TICK_S:
            tick()
            last_tick = time.monotonic()
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            count -= 1
            yield outcome
    tick()
