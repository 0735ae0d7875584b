"""Parts that all engines share: tasks, worker state, and the decision after a lost worker.

A job is any picklable object, with a function that takes the job and a `report` callable. The function calls
`report(item)` before each item and `report(NO_ITEM)` after the last. The engine therefore knows which item a
lost worker was processing.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from avdata.errors import AvdataError, QuarantineReason

Job = TypeVar("Job")

Report = Callable[[str], None]

Function = Callable[[Any, Report], Any]

# Called when a worker was lost while it processed an item; returns the job without that item.
ExcludeItem = Callable[[Job, str, QuarantineReason, str], Job]

CRASHES_ALLOWED = 3
"""Lost workers after which an item is excluded. Until then the job is retried in a new worker, because the
machine may have caused the loss."""

NO_ITEM = ""
"""Reported when a job has no more items. What follows, such as the upload of the shard, has no time limit,
and a loss then counts for no item."""


@dataclass(frozen=True)
class ShardTask(Generic[Job]):
    """Job that waits for a worker.

    Attributes:
        job: the job.
        careful: whether the worker reports each item before it begins, instead of several at a time.
        uncounted: lost workers whose item is unknown.
    """

    job: Job
    careful: bool = False
    uncounted: int = 0


class TaskQueue(Generic[Job]):
    """Tasks that wait for a worker. Only the next job is taken before a worker is free.

    >>> queue = TaskQueue(iter("abc"))
    >>> queue.count(2), queue.pop().job, queue.count(9)
    (2, 'a', 2)

    Args:
        jobs: jobs, in the order in which they start.
        careful: see `ShardTask`.
    """

    def __init__(self, jobs: Iterable[Job], *, careful: bool = False) -> None:
        self._tasks = (ShardTask(job, careful=careful) for job in jobs)
        self._waiting: deque[ShardTask[Job]] = deque()

    def count(self, limit: int) -> int:
        """Return the number of waiting tasks, at most `limit`."""
        self._waiting.extend(islice(self._tasks, max(limit - len(self._waiting), 0)))
        return min(len(self._waiting), limit)

    def __bool__(self) -> bool:
        return self.count(1) > 0

    def pop(self) -> ShardTask[Job]:
        """Remove the next task, and return it."""
        self.count(1)
        return self._waiting.popleft()

    def put_back(self, task: ShardTask[Job]) -> None:
        """Add the task of a lost worker, which starts next."""
        self._waiting.appendleft(task)


@dataclass
class WorkerState(Generic[Job]):
    """State of a worker, from its reports.

    Attributes:
        task: the running task; None if the worker is idle.
        item: the last reported item.
        begun: whether any item was reported.
        late: whether the worker was killed because its item took too long.
        since: time of the last report, monotonic seconds.
    """

    task: ShardTask[Job] | None = None
    item: str = NO_ITEM
    begun: bool = False
    late: bool = False
    since: float = field(default_factory=time.monotonic)

    def start_item(self, item: str) -> None:
        """Record a reported item."""
        self.item, self.begun = item, True
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count the item's time from now on."""
        self.since = time.monotonic()

    def finish_task(self, crashes: dict[str, int]) -> None:
        """Record that the task is done, and forget earlier losses without an item."""
        self.task, self.item = None, NO_ITEM
        crashes.pop(NO_ITEM, None)

    def is_overdue(self, item_timeout: float) -> bool:
        """Return whether the item took longer than `item_timeout` seconds."""
        elapsed = time.monotonic() - self.since
        return self.item != NO_ITEM and elapsed > item_timeout


class RunJobs(Protocol):
    """Function of an engine that runs jobs."""

    def __call__(
        self,
        function: Function,
        jobs: Iterable[Any],
        *,
        workers: int,
        item_timeout: float,
        exclude: ExcludeItem[Any],
        on_item: Report = ...,
        **options: Any,
    ) -> Generator[Any, None, None]:
        """Yield the result of `function(job, report)` for each job, in the order in which they are done.

        Args:
            function: a module-level function of a module that every worker can import.
            jobs: the jobs, in the order in which they start. Only the next one is taken
                before a worker is free.
            workers: number of worker processes; see `EngineSpec` for 0.
            item_timeout: seconds after which the worker is killed and its item excluded.
            exclude: returns the job without one item, for a reason and a detail.
            on_item: called with each item that begins.
            options: options of the engine.

        Raises:
            AvdataError: a worker could not start, or the function raised AvdataError.
            Exception: any other exception of the function.
        """


def _detail(reason: QuarantineReason, item_timeout: float) -> str:
    """Return the quarantine detail of an excluded item, the same on every engine and in every run."""
    if reason is QuarantineReason.TIMEOUT:
        return f"took more than {item_timeout:g} s"
    return f"{CRASHES_ALLOWED} workers were lost over it"


def next_task(
    task: ShardTask[Job],
    item: str,
    reason: QuarantineReason,
    crashes: dict[str, int],
    exclude: ExcludeItem[Job],
    item_timeout: float,
    ending: str,
) -> ShardTask[Job]:
    """Return the task to run after a worker was lost.

    Args:
        task: task of the lost worker.
        item: last reported item.
        reason: TIMEOUT or CRASH.
        crashes: number of losses by item; updated in place.
        exclude: see `RunJobs`.
        item_timeout: see `RunJobs`.
        ending: how the worker ended, for the message.

    Raises:
        AvdataError: too many workers were lost without an item.
    """
    if item != NO_ITEM and not task.careful:
        return ShardTask(task.job, careful=True, uncounted=1)
    crashes[item] = crashes.get(item, 0) + 1
    if reason is QuarantineReason.CRASH and crashes[item] + task.uncounted < CRASHES_ALLOWED:
        return task
    if item == NO_ITEM:
        msg = f"{CRASHES_ALLOWED} workers in a row crashed while they finished a shard ({ending})."
        hint = "Check free memory and disk space, then run the same command again: finished shards are kept."
        raise AvdataError(msg, hint=hint)
    return ShardTask(exclude(task.job, item, reason, _detail(reason, item_timeout)), careful=True)


def picklable_error(error: Exception) -> Exception:
    """Return the error, or a RuntimeError with its text if it cannot be pickled and unpickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    except Exception:  # pickling and constructors raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
