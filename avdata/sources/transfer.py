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

from avdata.sources.fetcher import Arrived, AttemptLog, Fetcher, Missed
from avdata.sources.http import AttemptError
from avdata.sources.rate_limit import Stopped
from avdata.sources.types import Wanted

MANY = 16

FEW = 4

_LARGE = 8 << 20

_AHEAD = 32

_TICK = 0.1

_GRACE = 0.6

Tick = Callable[[int, int], None]


def connections_for(files: Sequence[Wanted]) -> int:
    """How many connections suit the files: many for small ones, a few for large ones.

    >>> connections_for([Wanted("a.wav", (), bytes=80_000)]), connections_for([Wanted("a.zip", ())])
    (16, 4)
    """
    sizes = [file.bytes if file.bytes is not None else _LARGE for file in files]
    return MANY if sizes and sum(sizes) / len(sizes) < _LARGE else FEW


def transfer(
    root: Path,
    files: Sequence[Wanted],
    log: AttemptLog,
    *,
    connections: int | None = None,
    bandwidth: float | None = None,
    tick: Tick = lambda on_disk, received: None,
) -> Generator[Arrived | Missed, None, None]:
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
    count = connections or connections_for(files)
    fetcher = Fetcher(root, files, log, connections=count, bandwidth=bandwidth)
    done: queue.Queue[Arrived | Missed | BaseException] = queue.Queue(_AHEAD)
    todo = iter(files)
    lock = threading.Lock()

    def work() -> None:
        while not fetcher.stop.is_set():
            with lock:
                wanted = next(todo, None)
            if wanted is None:
                return
            outcome = _guarded(fetcher, wanted)
            if outcome is None or not _hand_over(done, outcome, fetcher.stop):
                return

    # Daemons: a thread that waits for a dead server must not keep the process from ending.
    names = [f"avdata-fetch-{number}" for number in range(min(count, len(files)))]
    threads = [threading.Thread(target=work, name=name, daemon=True) for name in names]
    try:
        for thread in threads:
            thread.start()
        yield from _outcomes(done, len(files), lambda: tick(fetcher.meter.bytes, fetcher.meter.received))
    finally:
        fetcher.halt()
        deadline = time.monotonic() + _GRACE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        fetcher.close()


def _guarded(fetcher: Fetcher, wanted: Wanted) -> Arrived | Missed | BaseException | None:
    try:
        return fetcher.fetch(wanted)
    except Stopped:
        return None
    except AttemptError as error:
        return Missed(wanted, str(error), error.hint)
    except BaseException as error:  # raised again by the consumer's thread
        return error


def _hand_over(
    done: queue.Queue[Arrived | Missed | BaseException],
    outcome: Arrived | Missed | BaseException,
    stop: threading.Event,
) -> bool:
    while not stop.is_set():
        try:
            done.put(outcome, timeout=_TICK)
        except queue.Full:
            continue
        return True
    return False


def _outcomes(
    done: queue.Queue[Arrived | Missed | BaseException], count: int, tick: Callable[[], None]
) -> Iterator[Arrived | Missed]:
    told = time.monotonic()
    while count:
        try:
            outcome = done.get(timeout=_TICK)
        except queue.Empty:
            outcome = None
        if time.monotonic() - told >= _TICK:
            tick()
            told = time.monotonic()
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            count -= 1
            yield outcome
    tick()
