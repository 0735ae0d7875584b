"""Jobs for the tests of the engines. An item's name says what happens to the process that works on it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from avdata.errors import AvdataError, QuarantineReason

Excluded = tuple[tuple[str, QuarantineReason], ...]


@dataclass(frozen=True)
class Job:
    items: tuple[str, ...]
    excluded: Excluded = field(default=())


def exclude_item(job: Job, item: str, reason: QuarantineReason, detail: str) -> Job:
    return replace(job, excluded=(*job.excluded, (item, reason)))


def run_items(
    job: Job, report: Callable[[str], None], act: Callable[[str], None]
) -> tuple[tuple[str, ...], Excluded]:
    """Report each item and act on it; returns the items done and those excluded."""
    done = []
    for item in job.items:
        if item in dict(job.excluded):
            continue
        report(item)
        if item == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == "hang":
            threading.Event().wait()
        if item == "raise":
            msg = "this item raises"
            raise AvdataError(msg)
        act(item)
        done.append(item)
    return tuple(done), job.excluded
