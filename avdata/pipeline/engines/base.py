"""Base."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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
