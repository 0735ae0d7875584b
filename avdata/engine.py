"""Where shard jobs run: worker processes of this machine that may crash or hang without taking the run along.

A job is anything picklable with a function that takes it and a `report` callable. The function calls
`report(item)` before each of its items; so the engine knows which item a lost worker had in hand. Where items
wait for what they are made from, it returns when the item may begin. Workers are started as
`python -m avdata.engine`, not by multiprocessing: a user's script needs no `__main__` guard.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Generic, TypeVar

from avdata.errors import AvdataError, Reason

Job = TypeVar("Job")
Report = Callable[[str], None]
Function = Callable[[Any, Report], Any]
# Called when a worker was lost over an item: the job to run instead, without that item.
Ban = Callable[[Job, str, Reason, str], Job]

CRASHES_ALLOWED = 3
"""An item that loses this many workers is banned. Before, its job is retried in a new one twice: the losses
may have been the machine's doing."""

_LOOK = 0.02
_LOOK_LAZILY = 1.0


@dataclass
class _Worker(Generic[Job]):
    process: subprocess.Popen[bytes]
    pipe: Connection
    job: Job | None = None
    item: str | None = None
    held: bool = False
    late: bool = False
    since: float = field(default_factory=time.monotonic)


def run_jobs(
    function: Function,
    jobs: Sequence[Job],
    *,
    workers: int,
    item_timeout: float,
    ban: Ban[Job],
    on_item: Report = lambda item: None,
    may_begin: Callable[[str], bool] | None = None,
) -> Generator[Any, None, None]:
    """Results of `function(job, report)` for each job, in the order in which they are done.

    Args:
        function: a module-level function.
        jobs: what to run, the first ones first.
        workers: processes; 0 runs in this process, where a crash is a crash and nothing is timed.
        item_timeout: seconds an item may take before its worker is killed and the item banned.
        ban: makes a job that leaves one item out, with the reason and a detail.
        on_item: called with each item as it is begun.
        may_begin: asked again and again until an item may begin; what it raises ends the run. None lets all
            begin unasked: an answer to each would keep the workers waiting for this process.

    Raises:
        AvdataError: a worker could not start, or raised one.
        Exception: whatever else the function raised.
    """
    if workers == 0:

        def begin(item: str) -> None:
            while may_begin is not None and not may_begin(item):
                time.sleep(_LOOK)
            on_item(item)

        for job in jobs:
            yield function(job, begin)
        return
    waiting = list(reversed(jobs))
    farm: list[_Worker[Job]] = []
    crashes: dict[str, int] = {}
    try:
        while waiting or any(worker.job is not None for worker in farm):
            _hand_out(function, waiting, farm, workers, asks=may_begin is not None)
            for worker in _ready(farm, item_timeout):
                message = _receive(worker)
                if isinstance(message, _Lost):
                    farm.remove(worker)
                    waiting.append(_after_loss(worker, message, crashes, ban))
                elif message[0] == "item":
                    worker.item, worker.since = message[1], time.monotonic()
                    worker.held = may_begin is not None
                    if not worker.held:
                        on_item(message[1])
                elif message[0] == "error":
                    raise message[1]
                else:
                    worker.job = worker.item = None
                    yield message[1]
            if may_begin is not None:
                _let_begin(farm, may_begin, on_item)
    finally:
        for worker in farm:
            worker.process.kill()
            worker.process.wait()
            worker.pipe.close()


@dataclass(frozen=True)
class _Lost:
    reason: Reason
    detail: str


def _hand_out(
    function: Function, waiting: list[Job], farm: list[_Worker[Job]], workers: int, *, asks: bool
) -> None:
    busy = sum(worker.job is not None for worker in farm)
    while len(farm) < min(workers, busy + len(waiting)):
        farm.append(_start(function, asks=asks))
    for worker in farm:
        if worker.job is None and waiting:
            job = waiting.pop()
            worker.job, worker.item, worker.held = job, None, False
            worker.since = time.monotonic()
            # A worker that died between two jobs is noticed when it is read from.
            with suppress(BrokenPipeError):
                worker.pipe.send(job)


def _start(function: Function, *, asks: bool) -> _Worker[Any]:
    ours, theirs = Pipe()
    command = [
        sys.executable,
        "-m",
        "avdata.engine",
        str(theirs.fileno()),
        function.__module__,
        function.__qualname__,
        *(["asks"] if asks else []),
    ]
    # One thread a worker: the cores are shared out by clips, and sums keep their order.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL)  # noqa: S603
    theirs.close()
    return _Worker(process, ours)


def _let_begin(farm: list[_Worker[Job]], may_begin: Callable[[str], bool], on_item: Report) -> None:
    for worker in farm:
        if worker.held and worker.item is not None and may_begin(worker.item):
            worker.held, worker.since = False, time.monotonic()
            on_item(worker.item)
            with suppress(BrokenPipeError):
                worker.pipe.send("begin")


def _ready(farm: list[_Worker[Job]], item_timeout: float) -> list[_Worker[Job]]:
    waiting = any(worker.held for worker in farm)
    readable = wait([worker.pipe for worker in farm], timeout=_LOOK if waiting else _LOOK_LAZILY)
    ready = [worker for worker in farm if worker.pipe in readable]
    now = time.monotonic()
    for worker in farm:
        began = worker.item is not None and not worker.held
        if began and worker not in ready and now - worker.since > item_timeout:
            worker.late = True
            worker.process.kill()
            ready.append(worker)
    return ready


def _receive(worker: _Worker[Job]) -> tuple[str, Any] | _Lost:
    try:
        message: tuple[str, Any] = worker.pipe.recv()
    except (EOFError, OSError):
        code = worker.process.wait()
        worker.pipe.close()
        if worker.late:
            return _Lost(Reason.TIMEOUT, f"took more than {time.monotonic() - worker.since:.0f} s")
        return _Lost(Reason.CRASH, f"the worker ended with {_ending(code)}")
    return message


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _after_loss(worker: _Worker[Job], lost: _Lost, crashes: dict[str, int], ban: Ban[Job]) -> Job:
    job = worker.job
    if job is None or worker.item is None:
        msg = f"a worker could not start: {lost.detail}"
        raise AvdataError(msg, hint="its own words stand above; `avdata doctor` checks what is installed")
    crashes[worker.item] = crashes.get(worker.item, 0) + 1
    if lost.reason is Reason.TIMEOUT or crashes[worker.item] >= CRASHES_ALLOWED:
        return ban(job, worker.item, lost.reason, lost.detail)
    return job


def _work(fd: int, module: str, name: str, *, asks: bool) -> None:
    """Serve jobs until the other end of the pipe closes; Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(fd)
    function: Function = getattr(importlib.import_module(module), name)

    def begin(item: str) -> None:
        pipe.send(("item", item))
        if not asks:
            return
        try:
            pipe.recv()
        except (EOFError, OSError):  # the parent is gone, and with it whoever wanted the result
            sys.exit(1)

    with suppress(EOFError, BrokenPipeError):
        while True:
            job = pipe.recv()
            try:
                result = function(job, begin)
            except BrokenPipeError:
                raise
            except Exception as error:  # whatever it is, the parent raises it
                pipe.send(("error", error))
            else:
                pipe.send(("done", result))


if __name__ == "__main__":
    _work(int(sys.argv[1]), sys.argv[2], sys.argv[3], asks=len(sys.argv) > 4)
