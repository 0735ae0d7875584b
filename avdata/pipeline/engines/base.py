"""Base."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from avdata.errors import AvdataError, QuarantineReason

Job = TypeVar("Job")

Report = Callable[[str], None]

Function = Callable[[Any, Report], Any]

# Called when a worker was lost over an item: the job to run instead, without that item.
ExcludeItem = Callable[[Job, str, QuarantineReason, str], Job]

CRASHES_ALLOWED = 3
"""An item that loses this many workers is banned. Before, its job is retried in a new one twice: the losses
may have been the machine's doing."""

NO_ITEM = ""
"""Reported when a job has no item in hand any more: what it does then, such as bringing up its shard, has no
time limit and is no item's fault."""


@dataclass(frozen=True)
class ShardTask(Generic[Job]):
    """A job to do.

    Attributes:
        job: what to do.
        careful: whether each of its items is to be told of before it begins.
        uncounted: workers that it lost before, over an item that is not known.
    """

    job: Job
    careful: bool = False
    uncounted: int = 0


@dataclass
class WorkerState(Generic[Job]):
    """What a worker has in hand.

    Attributes:
        task: the task it runs, None when it is idle.
        item: the item it reported last.
        begun: whether it reported any item.
        late: whether it was killed because its item took too long.
        since: when it reported the item, by the monotonic clock.
    """

    task: ShardTask[Job] | None = None
    item: str = NO_ITEM
    begun: bool = False
    late: bool = False
    since: float = field(default_factory=time.monotonic)

    def start_item(self, item: str) -> None:
        """Note the item that the worker reported."""
        self.item, self.begun = item, True
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count the item's time from now."""
        self.since = time.monotonic()

    def finish_task(self, crashes: dict[str, int]) -> None:
        """Note that the task is done; losses over no item no longer count."""
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
        jobs: Sequence[Any],
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
            jobs: what to run, the first ones first.
            workers: worker processes; see `EngineSpec` for 0.
            item_timeout: seconds an item may take before its worker is killed and the item is excluded.
            exclude: returns a job without one item, for a reason and with a detail.
            on_item: called with each item that begins.
            options: of the engine.

        Raises:
            AvdataError: a worker could not start, or raised one.
            Exception: whatever else the function raised.
        """


def _detail(reason: QuarantineReason, item_timeout: float) -> str:
    """What quarantine says of a banned item: on every engine and in every run the same."""
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
    """What is done after a worker was lost.

    Args:
        task: what the worker did.
        item: what it was last known to have in hand.
        reason: TIMEOUT or CRASH.
        crashes: losses by item so far; added to.
        exclude: as in `run_jobs`.
        item_timeout: likewise.
        ending: how the worker ended.

    Raises:
        AvdataError: workers are lost again and again over no item.
    """
    if item != NO_ITEM and not task.careful:
        return ShardTask(task.job, careful=True, uncounted=1)
    crashes[item] = crashes.get(item, 0) + 1
    if reason is QuarantineReason.CRASH and crashes[item] + task.uncounted < CRASHES_ALLOWED:
        return task
    if item == NO_ITEM:
        msg = f"{CRASHES_ALLOWED} workers were lost in a row while they put a shard in place ({ending})"
        raise AvdataError(msg, hint="is there enough memory and disk? Finished shards are kept")
    return ShardTask(exclude(task.job, item, reason, _detail(reason, item_timeout)), careful=True)


def picklable_error(error: Exception) -> Exception:
    """The error itself, or its words where it does not arrive whole in another process."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    except Exception:  # whatever its pickling or its constructor raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
