"""Local engine: run shard jobs in worker processes of this machine. A crash or hang costs only its item.

Workers report items in batches, because each message wakes the engine. After a lost worker, the job runs
again and reports each item before it begins. Where items wait for their source files, `report` returns when
the item may begin.

Workers are started as `python -P -m avdata.pipeline.engines.local`, not by multiprocessing, so that a user's
script needs no `__main__` guard.
"""

from __future__ import annotations

import importlib
import logging
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

from avdata.errors import AvdataError, QuarantineReason
from avdata.pipeline.engines.base import (
    NO_ITEM,
    ExcludeItem,
    Function,
    Job,
    Report,
    ShardTask,
    TaskQueue,
    WorkerState,
    next_task,
    picklable_error,
)
from avdata.subprocesses import python_command, python_environment

log = logging.getLogger(__name__)

MALLOC_ENV = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
"""Settings with which glibc reuses the memory of one clip for the next. This avoids 200 page faults a
clip."""

REPORT_INTERVAL_S = 0.1

_POLL_INTERVAL_S = 0.02

_IDLE_POLL_INTERVAL_S = 1.0


@dataclass(kw_only=True)
class _Worker(WorkerState[Job]):
    process: subprocess.Popen[bytes]
    pipe: Connection
    is_waiting: bool = False


def run_jobs(
    function: Function,
    jobs: Iterable[Job],
    *,
    workers: int,
    item_timeout: float,
    exclude: ExcludeItem[Job],
    on_item: Report = lambda item: None,
    is_ready: Callable[[str], bool] | None = None,
) -> Generator[Any, None, None]:
    """Run the jobs in processes of this machine; see `base.RunJobs`.

    Args:
        function: see `RunJobs`.
        jobs: see `RunJobs`.
        workers: number of processes; 0 runs in this process, without crash protection and time limit.
        item_timeout: see `RunJobs`.
        exclude: see `RunJobs`.
        on_item: see `RunJobs`.
        is_ready: polled until an item may begin; its exceptions end the run. None lets all items begin.
    """
    if workers == 0:
        yield from _run_here(function, jobs, on_item, is_ready)
        return
    waiting = TaskQueue(jobs, careful=is_ready is not None)
    pool: list[_Worker[Job]] = []
    crashes: dict[str, int] = {}
    with selectors.DefaultSelector() as pipes:
        try:
            while waiting or any(worker.task for worker in pool):
                _dispatch(function, waiting, pool, workers, pipes, items_wait=is_ready is not None)
                for worker in _ready_workers(pool, pipes, item_timeout):
                    message = _receive(worker, pipes)
                    if isinstance(message, _Lost):
                        pool.remove(worker)
                        waiting.put_back(_after_loss(worker, message, crashes, exclude, item_timeout))
                    elif message[0] == "items":
                        _start_items(worker, message[1], on_item, items_wait=is_ready is not None)
                    elif message[0] == "error":
                        raise message[1]
                    else:
                        worker.finish_task(crashes)
                        yield message[1]
                if is_ready is not None:
                    _start_ready(pool, is_ready, on_item)
        finally:
            for worker in pool:
                worker.process.kill()
                worker.process.wait()
                worker.pipe.close()


def _run_here(
    function: Function,
    jobs: Iterable[Job],
    on_item: Report,
    is_ready: Callable[[str], bool] | None,
) -> Generator[Any, None, None]:
    def begin(item: str) -> None:
        if item == NO_ITEM:
            return
        while is_ready is not None and not is_ready(item):
            time.sleep(_POLL_INTERVAL_S)
        on_item(item)

    for job in jobs:
        yield function(job, begin)


@dataclass(frozen=True)
class _Lost:
    reason: QuarantineReason
    ending: str


def _dispatch(
    function: Function,
    waiting: TaskQueue[Job],
    pool: list[_Worker[Job]],
    workers: int,
    pipes: selectors.BaseSelector,
    *,
    items_wait: bool,
) -> None:
    busy = sum(worker.task is not None for worker in pool)
    while len(pool) < busy + waiting.count(workers - busy):
        pool.append(_start(function, items_wait=items_wait))
        pipes.register(pool[-1].pipe, selectors.EVENT_READ, pool[-1])
    for worker in pool:
        if worker.task is None and waiting:
            worker.task, worker.item, worker.is_waiting = waiting.pop(), NO_ITEM, False
            # A worker that died between two jobs is detected at the next read.
            with suppress(BrokenPipeError):
                worker.pipe.send(worker.task)


def _start(function: Function, *, items_wait: bool) -> _Worker[Any]:
    ours, theirs = Pipe()
    command = python_command(
        "-m",
        "avdata.pipeline.engines.local",
        str(theirs.fileno()),
        function.__module__,
        function.__qualname__,
        *(["items-wait"] if items_wait else []),
    )
    # One thread per worker: clips are parallel already, and sums keep their order.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    env = python_environment(**threads, **MALLOC_ENV)
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL)  # noqa: S603
    theirs.close()
    return _Worker(process=process, pipe=ours)


def _start_items(worker: _Worker[Job], items: list[str], on_item: Report, *, items_wait: bool) -> None:
    worker.start_item(items[-1])
    worker.is_waiting = items_wait and worker.item != NO_ITEM
    for item in items:
        if item != NO_ITEM and not items_wait:
            on_item(item)


def _start_ready(pool: list[_Worker[Job]], is_ready: Callable[[str], bool], on_item: Report) -> None:
    for worker in pool:
        if worker.is_waiting and is_ready(worker.item):
            worker.is_waiting = False
            worker.restart_clock()
            on_item(worker.item)
            with suppress(BrokenPipeError):
                worker.pipe.send("begin")


def _ready_workers(
    pool: list[_Worker[Job]], pipes: selectors.BaseSelector, item_timeout: float
) -> list[_Worker[Job]]:
    waiting = any(worker.is_waiting for worker in pool)
    events = pipes.select(timeout=_POLL_INTERVAL_S if waiting else _IDLE_POLL_INTERVAL_S)
    ready: list[_Worker[Job]] = [key.data for key, _ in events]
    for worker in pool:
        if worker.is_overdue(item_timeout) and not worker.is_waiting and worker not in ready:
            worker.late = True
            worker.process.kill()
            ready.append(worker)
    return ready


def _receive(worker: _Worker[Job], pipes: selectors.BaseSelector) -> tuple[str, Any] | _Lost:
    try:
        message: tuple[str, Any] = worker.pipe.recv()
        while worker.late:  # discard messages sent before the kill
            message = worker.pipe.recv()
    except (EOFError, OSError):
        code = worker.process.wait()
        pipes.unregister(worker.pipe)
        worker.pipe.close()
        return _Lost(QuarantineReason.TIMEOUT if worker.late else QuarantineReason.CRASH, _exit_reason(code))
    return message


def _exit_reason(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _after_loss(
    worker: _Worker[Job], lost: _Lost, crashes: dict[str, int], exclude: ExcludeItem[Job], item_timeout: float
) -> ShardTask[Job]:
    if worker.task is None or not worker.begun:
        msg = f"A worker process could not start: it ended with {lost.ending}."
        raise AvdataError(msg, hint="See its error output above, and run `avdata doctor`.")
    if lost.reason is QuarantineReason.CRASH:
        log.warning("A worker process ended with %s.", lost.ending)
    return next_task(worker.task, worker.item, lost.reason, crashes, exclude, item_timeout, lost.ending)


def _work(fd: int, module: str, name: str, *, items_wait: bool) -> None:
    """Run jobs until the other end of the pipe closes. The parent handles Ctrl-C and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(fd)
    function: Function = getattr(importlib.import_module(module), name)
    task: ShardTask[Any]
    unsent: list[str] = []
    last_sent = 0.0

    def begin(item: str) -> None:
        nonlocal last_sent
        unsent.append(item)
        if not task.careful and item != NO_ITEM and time.monotonic() - last_sent < REPORT_INTERVAL_S:
            return
        try:
            pipe.send(("items", unsent))
            # The parent can read the message even after this process died, so no reply is needed.
            if items_wait and item != NO_ITEM:
                pipe.recv()
        except (EOFError, OSError):  # the parent is gone
            sys.exit(1)
        unsent.clear()
        last_sent = time.monotonic()

    # A parent that was killed before it read all messages resets the connection.
    with suppress(EOFError, OSError):
        while True:
            task = pipe.recv()
            last_sent = 0.0
            unsent.clear()
            try:
                result = function(task.job, begin)
            except Exception as error:  # the parent raises it
                pipe.send(("error", picklable_error(error)))
            else:
                pipe.send(("done", result))


if __name__ == "__main__":
    _work(int(sys.argv[1]), sys.argv[2], sys.argv[3], items_wait="items-wait" in sys.argv[4:])
