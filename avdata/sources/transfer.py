"""Parallel download of many files by threads, in order.

Downloaded files pass through a short queue. A slow consumer therefore blocks the threads, so that files can
be used and deleted while others are downloaded.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from avdata.sources.attempt_log import AttemptLog
from avdata.sources.fetcher import DeferredError, FailedFile, FetchedFile, Fetcher
from avdata.sources.types import FileRequest, TransferError, host_of

SMALL_FILE_CONNECTIONS = 16

LARGE_FILE_CONNECTIONS = 4

_LARGE_BYTES = 8 << 20

_CHECKED_BYTES = 100_000_000

_QUEUE_SIZE = 32

_TICK_S = 0.1

_JOIN_TIMEOUT_S = 0.6


@dataclass(frozen=True, slots=True)
class TransferState:
    """Progress of a transfer.

    Attributes:
        on_disk: bytes of the files on disk, partial files included.
        received: bytes received over the network.
        host: host that sent the newest file; empty at first.
        waiting: number of threads that wait for a host.
    """

    on_disk: int
    received: int
    host: str
    waiting: int


Tick = Callable[[TransferState], None]

_Step = Callable[..., FetchedFile | FailedFile | None]

_Outcome = FetchedFile | FailedFile | BaseException | None

_Outcomes = queue.Queue[_Outcome]


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
    give_up_after: float | None = None,
    tick: Tick = lambda state: None,
) -> Generator[FetchedFile | FailedFile, None, None]:
    """Yield each file when it is downloaded into `root` or has failed.

    Closing the generator stops all threads. The next call resumes partial files at the byte.

    Args:
        root: folder of the files.
        files: files to download, in order.
        log: log for failed attempts.
        connections: number of parallel connections (default: by the sizes of the files).
        bandwidth: limit in bytes per second for all connections together (default: unlimited).
        give_up_after: seconds after which files of a host that sends nothing fail (default: 600).
        tick: called ten times a second.

    Raises:
        DiskError: the disk is full or not writable.
    """
    count = connections or default_connections(files)
    fetcher = Fetcher(root, files, log, connections=count, bandwidth=bandwidth, give_up_after=give_up_after)
    threads: list[threading.Thread] = []

    def run(step: _Step, files: Sequence[FileRequest]) -> Iterator[FetchedFile | FailedFile | None]:
        yield from _run(fetcher, step, files, threads, count, lambda: tick(_state(fetcher)))

    try:
        refused = [outcome for outcome in run(fetcher.check, _files_to_check(files)) if outcome]
        yield from filter(None, refused or run(fetcher.fetch, files))
    finally:
        fetcher.halt()
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        fetcher.close()


def _files_to_check(files: Sequence[FileRequest]) -> list[FileRequest]:
    """Return the single files of a large download of several sources.

    A missing login or file is then reported before gigabytes of another source are fetched.
    """
    counts = Counter(file.source for file in files)
    size = sum(_CHECKED_BYTES if file.bytes is None else file.bytes for file in files)
    if len(counts) == 1 or size < _CHECKED_BYTES:
        return []
    return [file for file in files if counts[file.source] == 1]


def _run(
    fetcher: Fetcher,
    step: _Step,
    files: Sequence[FileRequest],
    threads: list[threading.Thread],
    count: int,
    tick: Callable[[], None],
) -> Iterator[FetchedFile | FailedFile | None]:
    """Yield the result of `step` for each file; add the threads that run it to `threads`."""
    done: _Outcomes = queue.Queue(_QUEUE_SIZE)
    todo = deque((request, True) for request in files)
    lock = threading.Lock()

    def work() -> None:
        while not fetcher.stop.is_set():
            with lock:
                request, may_defer = todo.popleft() if todo else (None, False)
            if request is None:
                return
            try:
                outcome = _call_safely(step, request, may_defer=may_defer)
            except DeferredError:
                todo.append((request, False))
                continue
            if not _enqueue(done, outcome, fetcher.stop):
                return

    # Daemons: a thread that waits for a dead server must not keep the process alive.
    names = [f"avdata-fetch-{number}" for number in range(min(count, len(files)))]
    started = [threading.Thread(target=work, name=name, daemon=True) for name in names]
    threads += started
    for thread in started:
        thread.start()
    yield from _outcomes(done, len(files), tick)


def _state(fetcher: Fetcher) -> TransferState:
    stats, hosts = fetcher.stats, fetcher.hosts
    return TransferState(stats.bytes, stats.received, host_of(hosts.current), hosts.waiting)


def _call_safely(step: _Step, request: FileRequest, *, may_defer: bool) -> _Outcome:
    try:
        return step(request, may_defer=may_defer)
    except DeferredError:
        raise
    except TransferError as error:
        return FailedFile(request, str(error), error.hint, str(error), error.cause)
    except BaseException as error:  # re-raised in the consumer's thread, except Cancelled
        return error


def _enqueue(
    done: _Outcomes,
    outcome: _Outcome,
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
    done: _Outcomes, count: int, tick: Callable[[], None]
) -> Iterator[FetchedFile | FailedFile | None]:
    last_tick = time.monotonic()
    while count:
        try:
            outcome, is_done = done.get(timeout=_TICK_S), True
        except queue.Empty:
            outcome, is_done = None, False
        if time.monotonic() - last_tick >= _TICK_S:
            tick()
            last_tick = time.monotonic()
        if isinstance(outcome, BaseException):
            raise outcome
        if is_done:
            count -= 1
            yield outcome
    tick()
